"""Words of a text, for methods that count words."""

from __future__ import annotations

import re

WORD = re.compile(r"\b\w\w+\b")
"""Two or more word characters, the default of scikit-learn and bm25s."""


def words(text: str) -> list[str]:
    """The words of a text, in order and in lower case."""
    return [word.lower() for word in WORD.findall(text)]
