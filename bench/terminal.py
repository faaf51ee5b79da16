"""Text on a terminal: whatever came from data, models or file names is shown, never obeyed."""

from __future__ import annotations

_REPLACEMENT = 0xFFFD
_SYMBOLS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], _REPLACEMENT),
}
"""A visible character in place of each control character, and of those that reverse the direction of a line."""


def visible(text: str) -> str:
    """The text with symbols such as ␛ in place of control characters, one for one; newlines and tabs stay."""
    return text.translate(_SYMBOLS)
