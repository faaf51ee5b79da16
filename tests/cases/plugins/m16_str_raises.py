"""Fault: ``observe`` raises an error whose message cannot be computed."""

from bench import Document, Method


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")


class RaisesUnspeakable(Method):
    """Raises an error that cannot be told."""

    name = "m16_str_raises"
    paper = "none"

    def observe(self, document: Document) -> None:
        raise Unspeakable
