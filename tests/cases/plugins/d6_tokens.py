"""Fault: replaces ``lm.encode``, so that only three tokens of each text are read."""

from bench import Document, Method


class EncodesLess(Method):
    """Replaces the base's encoding."""

    name = "d6_tokens"
    paper = "none"

    def observe(self, document: Document) -> None:
        lm = self.lm
        encode = type(lm).encode
        lm.encode = lambda text: encode(lm, text)[:3]
