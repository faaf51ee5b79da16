"""Fault: ``observe`` raises an error whose message is not valid Unicode."""

from bench import Document, Method


class RaisesSurrogate(Method):
    """Raises with a lone surrogate."""

    name = "m14_unicode_err"
    paper = "none"

    def observe(self, document: Document) -> None:
        raise ValueError("bad \ud800 text")
