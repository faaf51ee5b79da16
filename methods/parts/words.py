"""Words of a text in any script, for methods that count words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import regex  # unlike re, it knows scripts and combining marks

_UNSPACED = r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{lb=SA}]"
"""Characters of scripts without spaces between words; line-break class SA has those of South-East Asia."""
_CHARACTER = rf"[[\p{{L}}\p{{N}}]&&{_UNSPACED}]\p{{M}}*"
_SPACED = rf"[[\p{{L}}\p{{N}}_]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}_]--{_UNSPACED}]+"
_WORDS = regex.compile(rf"{_SPACED}|(?P<character>{_CHARACTER})+", regex.VERSION1)


class Word(NamedTuple):
    """A word in lower case, and its first character and the one after its last in the text."""

    text: str
    start: int
    end: int


def find_words(text: str) -> Iterator[Word]:
    """The words of a text, in order.

    A word is two or more letters, digits and underscores with their combining marks; apart from the marks, this is the
    default of scikit-learn and bm25s. In scripts without spaces, words are all pairs of neighbouring characters.
    """
    for match in _WORDS.finditer(text):
        if match["character"] is None:
            yield Word(match[0].lower(), *match.span())
            continue
        characters = match.spans("character")
        for (start, _), (_, end) in zip(characters, characters[1:] or characters, strict=False):
            yield Word(text[start:end].lower(), start, end)


def words(text: str) -> list[str]:
    """The words of a text, in order and in lower case."""
    return [word.text for word in find_words(text)]
