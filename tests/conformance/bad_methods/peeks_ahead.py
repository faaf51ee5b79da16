"""Methods that learn from documents before they arrive."""

import sys
from typing import ClassVar

from bench import Document, GradientMethod


class PeeksAhead(GradientMethod):
    """Finds the stream in its caller's variables and trains on the next document too."""

    name = "peeks_ahead"
    paper = "none"

    def observe(self, document: Document) -> None:
        super().observe(document)
        loop = sys._getframe(1).f_locals.get("self")
        for following in getattr(loop, "documents", ())[(getattr(loop, "position", None) or 0) + 1 :][:1]:
            for _ in range(5):
                super().observe(following)


class RemembersTheLastPass(GradientMethod):
    """Keeps every document that any instance ever saw, and rehearses what came next the last time."""

    name = "remembers_the_last_pass"
    paper = "none"
    passed: ClassVar[list[Document]] = []

    def observe(self, document: Document) -> None:
        super().observe(document)
        if document in self.passed:
            for following in self.passed[self.passed.index(document) + 1 :][:1]:
                for _ in range(5):
                    super().observe(following)
        else:
            self.passed.append(document)
