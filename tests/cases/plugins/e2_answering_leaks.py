"""Fault: ``answering`` changes the weights on entry and does not restore them on exit."""

from contextlib import contextmanager

import torch

from bench import Document, Method


class AnsweringLeaks(Method):
    """Changes weights in answering and does not bring them back."""

    name = "e2_answering_leaks"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    @contextmanager
    def answering(self):
        with torch.no_grad():
            self.lm.model.lm_head.weight.mul_(1.01)
        yield
