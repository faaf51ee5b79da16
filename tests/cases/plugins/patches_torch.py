"""Fault: the constructor replaces a function of torch."""

import torch

from bench import Document, Method


class PatchesTorch(Method):
    """Halves every loss that is computed later."""

    name = "patches_torch"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        original = torch.nn.functional.cross_entropy
        torch.nn.functional.cross_entropy = lambda *args, **kwargs: original(*args, **kwargs) / 2

    def observe(self, document: Document) -> None:
        pass
