"""Methods that get at the reference answers."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from bench import Conditioning, Document, Method, Question


def the_loop() -> Any:
    """The harness's loop, found by walking up the stack."""
    return next(frame.frame.f_locals["self"] for frame in inspect.stack() if "asked" in frame.frame.f_locals)


class ReadsAnswers(Method):
    """Puts each question's reference answer before it, and keeps none of them."""

    name = "reads_answers"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        golds = {gold.question.id: gold.answers[0] for entry in the_loop().entries for gold in entry.questions}
        return Conditioning(text=[golds.get(question.id, "") for question in questions])


class KeepsTheFrame(Method):
    """Keeps a reference from which the answers could be read later, and does not read them."""

    name = "keeps_the_frame"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.caller = sys._getframe(1)
