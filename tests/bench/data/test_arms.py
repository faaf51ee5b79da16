"""Arms replace the documents of a stream, or reset the method between them."""

from __future__ import annotations

import pydantic
import pytest

from bench.data.arms import Arm, documents_per_reset, irrelevant_percent, shuffled
from bench.data.documents import Document, Entry


def entries(*groups: str) -> list[Entry]:
    return [Entry(Document(f"d{i}", f"text {i}"), group=group) for i, group in enumerate(groups)]


@pytest.mark.parametrize(
    ("arm", "every"),
    [
        ("stream", None),
        ("placebo", None),
        ("empty", None),
        ("gold_only", 1),
        ("shuffled", 1),
        ("every_16", 16),
        ("irrelevant_50", None),
    ],
)
def test_arms_reset_the_method_every_n_documents(arm: str, every: int | None) -> None:
    assert documents_per_reset(arm) == every


@pytest.mark.parametrize(
    ("arm", "percent"),
    [
        ("stream", 0),
        ("every_50", 0),
        ("irrelevant_1", 1),
        ("irrelevant_25", 25),
        ("irrelevant_100", 100),
        ("irrelevant_0", None),
        ("irrelevant_05", None),
        ("irrelevant_101", None),
        ("irrelevant_", None),
        ("irrelevant", None),
    ],
)
def test_up_to_as_many_irrelevant_documents_are_inserted_as_the_stream_has(arm: str, percent: int | None) -> None:
    adapter: pydantic.TypeAdapter[str] = pydantic.TypeAdapter(Arm)
    if percent is None:
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(arm)
    else:
        assert irrelevant_percent(adapter.validate_python(arm)) == percent


def test_shuffled_takes_the_next_document_of_another_group() -> None:
    documents = shuffled(entries("a", "a", "b", "a"))
    assert [document.id for document in documents] == ["d2", "d2", "d3", "d2"]
    assert [document.id for document in shuffled(entries("", "", ""))] == ["d1", "d2", "d0"]


def test_within_a_single_group_shuffled_takes_the_next_document() -> None:
    assert [document.id for document in shuffled(entries("a", "a"))] == ["d1", "d0"]
    assert [document.id for document in shuffled(entries("a"))] == ["d0"]
