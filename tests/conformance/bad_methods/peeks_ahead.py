"""Methods that learn from documents before they arrive."""

import sys
from typing import ClassVar

from bench import Document, GradientMethod


class PeeksAhead(GradientMethod):
    """Finds the stream in the variables of its caller, and also trains on the next document."""

    name = "peeks_ahead"
    paper = "none"

    def observe(self, document: Document) -> None:
        super().observe(document)
        loop = sys._getframe(1).f_locals.get("self")
        for following in getattr(loop, "documents", ())[(getattr(loop, "position", None) or 0) + 1 :][:1]:
            for _ in range(5):
                super().observe(following)


class RemembersTheLastPass(GradientMethod):
    """Keeps all documents of all instances, and rehearses the document that came next in an earlier pass."""

    name = "remembers_the_last_pass"
    paper = "none"
    history: ClassVar[list[Document]] = []

    def observe(self, document: Document) -> None:
        super().observe(document)
        if document in self.history:
            for following in self.history[self.history.index(document) + 1 :][:1]:
                for _ in range(5):
                    super().observe(following)
        else:
            self.history.append(document)
