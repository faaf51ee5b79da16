"""Arms replace the documents of a stream, or reset the method between them."""

from __future__ import annotations

import pytest

from bench.data.arms import documents_per_reset, shuffled
from bench.data.documents import Document, Entry


def entries(*groups: str) -> list[Entry]:
    return [Entry(Document(f"d{i}", f"text {i}"), group=group) for i, group in enumerate(groups)]


@pytest.mark.parametrize(
    ("arm", "every"),
    [("stream", None), ("placebo", None), ("empty", None), ("gold_only", 1), ("shuffled", 1), ("every_16", 16)],
)
def test_arms_reset_the_method_every_n_documents(arm: str, every: int | None) -> None:
    assert documents_per_reset(arm) == every


def test_shuffled_takes_the_next_document_of_another_group() -> None:
    documents = shuffled(entries("a", "a", "b", "a"))
    assert [document.id for document in documents] == ["d2", "d2", "d3", "d2"]
    assert [document.id for document in shuffled(entries("", "", ""))] == ["d1", "d2", "d0"]


def test_within_a_single_group_shuffled_takes_the_next_document() -> None:
    assert [document.id for document in shuffled(entries("a", "a"))] == ["d1", "d0"]
    assert [document.id for document in shuffled(entries("a"))] == ["d0"]
