"""A short part of ``make attack``, and checks that an attack can fail."""

from __future__ import annotations

from typing import Any

import pytest

from bench.data.documents import Entry
from bench.errors import BenchError
from tests.attack import data_files
from tests.attack.__main__ import attack


@pytest.mark.parametrize(
    ("kind", "tries"),
    [("data files", 300), ("experiment files", 60), ("command lines", 60), ("records", 40), ("faulty methods", 3)],
)
def test_a_short_attack_is_survived(kind: str, tries: int) -> None:
    made, failures = attack(kind, seconds=20, tries=tries, seed=1)
    assert failures == []
    assert made > 0


def test_a_document_lost_in_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load_split = data_files.load_split

    def lose_a_seventh(*arguments: Any) -> tuple[Entry, ...]:
        return load_split(*arguments)[:6]

    monkeypatch.setattr(data_files, "load_split", lose_a_seventh)
    _, failures = attack("data files", seconds=20, tries=1000, seed=1)
    assert any("read (6, " in failure and ", not (7, " in failure for failure in failures)


def test_another_error_than_a_sentence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load_split = data_files.load_split

    def raise_another_error(*arguments: Any) -> tuple[Entry, ...]:
        try:
            return load_split(*arguments)
        except BenchError as error:
            raise KeyError(str(error)) from None

    monkeypatch.setattr(data_files, "load_split", raise_another_error)
    _, failures = attack("data files", seconds=20, tries=50, seed=1)
    assert any("KeyError" in failure for failure in failures)
