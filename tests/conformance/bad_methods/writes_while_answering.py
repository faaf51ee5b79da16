"""Methods that change the weights while questions are answered, and do not bring them back bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bench import Conditioning, Document, Method, Question


class LeaksFromAnswering(Method):
    """Changes the weights on entry to answering, and forgets to bring them back."""

    name = "leaks_from_answering"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    @contextmanager
    def answering(self) -> Iterator[None]:
        with torch.no_grad():
            self.lm.model.lm_head.weight.mul_(1.01)
        yield


class UndoesRoughly(Method):
    """Multiplies the weights while questions are answered, and divides them afterwards, which rounds."""

    name = "undoes_roughly"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    @contextmanager
    def answering(self) -> Iterator[None]:
        with torch.no_grad():
            self.lm.model.lm_head.weight.mul_(1.1)
            yield
            self.lm.model.lm_head.weight.div_(1.1)


class WritesAtTheEnd(Method):
    """Changes one weight when it is asked at the end of the stream, after which nothing is scored."""

    name = "writes_at_the_end"
    paper = "none"
    seen = 0

    def reset(self) -> None:
        super().reset()
        self.seen = 0

    def observe(self, document: Document) -> None:
        self.seen += 1

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        if self.seen == 6:
            with torch.no_grad():
                self.lm.model.model.norm.weight[0] += 1e-3
        return Conditioning()
