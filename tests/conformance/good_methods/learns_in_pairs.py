"""Replay of the document before: learns two documents at a time."""

from collections.abc import Mapping

from torch import Tensor

from bench import Document, GradientMethod
from bench.contract.method import packed, unpacked


class LearnsInPairs(GradientMethod):
    """Waits for a second document, and then learns from both; a probe does not wait."""

    name = "learns_in_pairs"
    paper = "none"
    waiting: tuple[str, ...] = ()

    def reset(self) -> None:
        super().reset()
        self.waiting = ()

    def observe(self, document: Document) -> None:
        self.waiting = (*self.waiting, document.text)
        if len(self.waiting) == 2:
            self.flush()

    def flush(self) -> None:
        for text in self.waiting:
            super().observe(Document("", text))
        self.waiting = ()

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "method.waiting": packed(self.waiting)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.waiting = tuple(unpacked(state["method.waiting"]))
