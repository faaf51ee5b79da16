"""Arms: what stands in place of each document."""

from __future__ import annotations

import pytest

from bench.data.arms import apart, shuffled
from bench.data.documents import Document, Entry


def entries(*groups: str) -> list[Entry]:
    return [Entry(Document(f"d{i}", f"text {i}"), group=group) for i, group in enumerate(groups)]


@pytest.mark.parametrize(
    ("arm", "every"),
    [("stream", None), ("placebo", None), ("empty", None), ("gold_only", 1), ("shuffled", 1), ("every_16", 16)],
)
def test_arms_start_afresh(arm: str, every: int | None) -> None:
    assert apart(arm) == every


def test_shuffled_takes_the_next_document_of_another_group() -> None:
    found = shuffled(entries("a", "a", "b", "a"))
    assert [document.id for document in found] == ["d2", "d2", "d3", "d2"]
    assert [document.id for document in shuffled(entries("", "", ""))] == ["d1", "d2", "d0"]


def test_where_all_are_of_one_group_it_is_the_next() -> None:
    assert [document.id for document in shuffled(entries("a", "a"))] == ["d1", "d0"]
    assert [document.id for document in shuffled(entries("a"))] == ["d0"]
