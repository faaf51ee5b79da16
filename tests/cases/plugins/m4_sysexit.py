"""Fault: ``observe`` ends the program."""

import sys

from bench import Document, Method


class Exits(Method):
    """Calls sys.exit(0)."""

    name = "m4_sysexit"
    paper = "none"

    def observe(self, document: Document) -> None:
        sys.exit(0)
