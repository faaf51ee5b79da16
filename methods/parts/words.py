"""Words, as TF-IDF and BM25 count them."""

from __future__ import annotations

import re

WORD = re.compile(r"\b\w\w+\b")
"""Two characters or more: scikit-learn's and bm25s's default."""


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return [word.lower() for word in WORD.findall(text)]
