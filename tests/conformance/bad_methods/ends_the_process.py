"""A method that ends the process, so that no verdict can follow from within."""

import os

from bench import Document, Method


class ExitsAtOnce(Method):
    """Calls os._exit(0)."""

    name = "exits_at_once"
    paper = "none"

    def observe(self, document: Document) -> None:
        os._exit(0)
