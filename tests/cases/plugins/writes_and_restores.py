"""No fault: changes the weights while questions are answered, and restores them bit for bit."""

from contextlib import contextmanager

import torch

from bench import Conditioning, Document, Method


class WritesAndRestores(Method):
    """Answers with other weights, and brings the old ones back."""

    name = "writes_and_restores"
    paper = "none"

    def observe(self, document: Document) -> None:
        with torch.no_grad():
            self.lm.model.lm_head.weight.add_(1e-3)

    @contextmanager
    def answering(self):
        weight = self.lm.model.lm_head.weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.01)
        yield
        with torch.no_grad():
            weight.copy_(before)

    def condition(self, questions):
        with torch.no_grad():
            self.lm.model.lm_head.weight.mul_(1.01)
        return Conditioning()
