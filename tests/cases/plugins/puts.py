"""No fault, unless only deterministic algorithms are allowed: one of its operations has none."""

import torch

from bench import Document, Method


class Puts(Method):
    """Writes to a place of a tensor, where another thread could write too."""

    name = "puts"
    paper = "none"

    def observe(self, document: Document) -> None:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
