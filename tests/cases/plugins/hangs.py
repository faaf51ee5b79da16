"""Fault: ``observe`` never returns on the second document, inside C code that keeps the interpreter's lock."""

import ctypes

import torch

from bench import Document, Method


class Hangs(Method):
    """Waits for something that never comes."""

    name = "hangs"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register("seen", torch.zeros(()))

    def observe(self, document: Document) -> None:
        self.seen += 1
        if self.seen == 2:
            ctypes.PyDLL(None).sleep(600)
