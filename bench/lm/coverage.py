"""Share of a text that a tokenizer knows. The rest is read as one unknown token, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST_UNKNOWN = 0.05
"""Largest share of unknown characters with which texts are still used."""
REMARKED = 0.001
"""Share of unknown characters from which readers of a board are told."""


@dataclass(frozen=True)
class Coverage:
    """Share of the characters of some texts, white space aside, that the tokenizer does not know."""

    unknown: float
    example: str
    """The most frequent of these characters; "" if there are none."""

    def sentence(self, base: str, split: str) -> str:
        """The share in words."""
        return (
            f"The tokenizer of {base} does not know {100 * self.unknown:.2g} % of the characters of the {split} split "
            f"(such as {self.example!r})"
        )


def coverage(tokenizer: Any, texts: Iterable[str]) -> Coverage:
    """Share of unknown characters in the texts: those of unknown tokens, and those of no token."""
    unknown: Counter[str] = Counter()
    total = 0
    for text in texts:
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        known: set[int] = set()
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token != tokenizer.unk_token_id:
                known.update(range(start, end))
        unknown.update(char for i, char in enumerate(text) if i not in known and not char.isspace())
        total += sum(not char.isspace() for char in text)
    example = unknown.most_common(1)[0][0] if unknown else ""
    return Coverage(unknown.total() / total if total else 0.0, example)
