"""Methods that reach the reference answers."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from bench import Conditioning, Document, Method, Question


def the_loop() -> Any:
    """The harness's loop, found by walking up the stack."""
    callers = (frame.frame.f_locals.get("self") for frame in inspect.stack())
    return next(caller for caller in callers if hasattr(caller, "entries"))


class ReadsAnswers(Method):
    """Puts the reference answer before each question, and keeps none of them."""

    name = "reads_answers"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        golds = {gold.question.text: gold.answers[0] for entry in the_loop().entries for gold in entry.questions}
        return Conditioning(text=[golds.get(question.text, "") for question in questions])


class KeepsTheFrame(Method):
    """Keeps a frame from which it could read the answers later, and does not read them."""

    name = "keeps_the_frame"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.caller = sys._getframe(1)
