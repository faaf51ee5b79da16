"""Scripts without spaces between words: which characters they have, and texts cut into characters and words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Segmentation = Literal["words", "characters"]
"""How F1 cuts answers: at spaces only, or also around each character of a script without spaces."""

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def characters_and_words(text: str) -> list[str]:
    """Each character of a script without spaces on its own, and the runs between them cut at spaces."""
    return _PIECE.findall(text)


def mostly_unspaced(texts: Iterable[str]) -> bool:
    """True if more than half of the texts have most of their letters in scripts without spaces."""
    votes = [2 * len(_CHARACTER.findall(text)) > sum(map(str.isalpha, text)) for text in texts]
    return 2 * sum(votes) > len(votes)
