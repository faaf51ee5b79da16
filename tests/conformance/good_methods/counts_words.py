"""A cache of texts in the method's module, which reset clears."""

import functools
from collections.abc import Sequence

import torch

from bench import Conditioning, Document, Method, Question


@functools.cache
def count_words(text: str) -> int:
    """Number of words."""
    return len(text.split())


class CountsWords(Method):
    """Counts the words of a text once."""

    name = "counts_words"
    paper = "none"

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.register("words", torch.zeros(()))

    def reset(self) -> None:
        super().reset()
        count_words.cache_clear()

    def observe(self, document: Document) -> None:
        self.words = self.words + count_words(document.text)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[f"There were {int(self.words)} words."] * len(questions))
