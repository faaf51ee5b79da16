"""Fault: ``observe`` ends the process at once."""

import os

from bench import Document, Method


class ExitsAtOnce(Method):
    """Calls os._exit(0)."""

    name = "m5_osexit"
    paper = "none"

    def observe(self, document: Document) -> None:
        os._exit(0)
