"""Texts and token ids are found wherever a method may keep them."""

from __future__ import annotations

import array
import collections
import functools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import Document, Method
from bench.conformance import fixtures
from bench.conformance.reach import reachable_strings, spelled

WORD = "quagmire"
IDS = [7, 311, 5, 42]


class Keeper(Method):
    """Keeps what it gets."""

    __module__ = Method.__module__  # not this module, whose variables hold the word and the ids
    name = "keeper"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass


def reached(kept: object) -> list[str]:
    """Where the word or the ids are found."""
    method: Any = Keeper(fixtures.base_model())
    method.kept = kept
    strings = reachable_strings(method)
    return [place for place, string in strings if WORD in string or spelled(IDS) in string]


@pytest.mark.parametrize(
    "kept",
    [
        f"a {WORD} of words",
        {f"the {WORD}": 1},
        [{1: {(0, WORD)}}],
        frozenset({WORD}),
        SimpleNamespace(text=WORD),
        lambda word=WORD: word,
        functools.partial(print, WORD),
        (item for item in [WORD]),
        collections.deque([WORD]),
        f"the {WORD}".encode(),
        bytearray(WORD, "ascii"),
        torch.tensor(list(WORD.encode()), dtype=torch.uint8),
        np.array([WORD]),
        np.array([[WORD, None]], dtype=object),
        [1, *IDS, 2],
        tuple(IDS),
        collections.deque(IDS),
        array.array("i", IDS),
        torch.tensor([[1, 2, 3, 4], IDS]),
        np.array(IDS, dtype=np.int16),
        torch.tensor(IDS).numpy().tobytes(),
        json.dumps(f"{WORD}s"),
    ],
    ids=lambda kept: type(kept).__name__,
)
def test_what_is_kept_is_found(kept: object) -> None:
    assert set(reached(kept)) <= {"self.kept", "<lambda>"} and reached(kept)


@pytest.mark.parametrize("kept", [None, "other words", [7, 311, 42, 5], torch.tensor([7.0, 311.0, 5.0, 42.0]), json])
def test_nothing_else_is_found(kept: object) -> None:
    assert reached(kept) == []
