"""Fault: ``condition`` changes the weights."""

import torch

from bench import Conditioning, Document, Method


class ConditionWrites(Method):
    """Writes to the weights in condition and never restores them."""

    name = "e1_condition_writes"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions):
        with torch.no_grad():
            self.lm.model.lm_head.weight.mul_(1.01)
        return Conditioning()
