"""Attacks: each makes one seeded try at a time and says what went wrong, if anything.

A try is survived if the benchmark does the right thing or refuses with a sentence (``BenchError``). It is not survived
if it ends with another error, gives another count than an independent reading of the same file, or changes a number.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Try = Callable[[random.Random], str | None]
"""One try: None if it was survived, else one line on what went wrong."""

Attack = Callable[[Path], Try]
"""Prepares an attack in an empty folder."""


class Missed(Exception):
    """Raised by a try that did not come to its attack, as when all had ended before it: it does not count."""


JUNK: tuple[object, ...] = (
    *(None, True, False, 0, -1, 7, 99, 1e308, -1e308, float("inf"), float("nan"), 10**30),
    *("", " ", "0", "1.0", "-1", "nan", "null", "*", "\ud800", "\u202e", "é" * 40, "x" * 5000, "../..", "/dev/null"),
    *([], [[]], {}, {"a": 1}, ["a", 2], "!!python/x"),
)
"""Values that stand where another type, size or range is expected."""


def mutate_text(text: str, rng: random.Random) -> str:
    """Change a text in one place: delete, insert, repeat, cut short, or swap a word for junk."""
    a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 3, 20, 200)))
    insertions = (
        "\0",
        "\n",
        "\r",
        '"',
        "'",
        ",",
        ";",
        ":",
        "{",
        "}",
        "[",
        "]",
        "\\",
        "\t",
        "é",
        "𝄞",
        "\ufeff",
        "-",
        "0",
        "e9",
    )
    return rng.choice(
        (
            text[:a] + text[b:],
            text[:a] + rng.choice(insertions) + text[a:],
            text[:b] + text[a:b] + text[b:],
            text[:b],
            text[:a] + rng.choice("[{-(") * 3000 + text[b:],
            text[:a] + str(rng.choice(JUNK)).encode(errors="replace").decode() + text[b:],
        )
    )


def mutate_value(value: object, rng: random.Random) -> object:
    """Change one place of a nested value: replace it with junk, drop or repeat an item, or swap two."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value, key=str))
        if rng.random() < 0.1:
            return {other: item for other, item in value.items() if other != key}
        if rng.random() < 0.05:
            return {**value, rng.choice((f"{key}_", 1, None, True, "", 2.5)): value[key]}
        return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        i, j = rng.randrange(len(value)), rng.randrange(len(value))
        action = rng.random()
        if action < 0.1:
            return value[:i] + value[i + 1 :]
        if action < 0.2:
            return [*value[:i], value[i], *value[i:]]
        if action < 0.3:
            swapped = list(value)
            swapped[i], swapped[j] = value[j], value[i]
            return swapped
        return [*value[:i], mutate_value(value[i], rng), *value[i + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value + 1e-3, value / 3, 1.0, 0))
    if isinstance(value, str) and value and rng.random() < 0.5:
        return mutate_text(value, rng)
    return rng.choice(JUNK)
