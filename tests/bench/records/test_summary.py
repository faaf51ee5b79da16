"""The summary of a run from its events: means computed by hand, and texts without tokens or bytes."""

from __future__ import annotations

import math

import pytest

from bench.records.schema import DocumentEvent
from bench.records.summary import summarize
from tests.reports.records_factory import answer


def text(position: int, nll: float | None, tokens: int = 10, utf8_bytes: int = 40, segment: int = 0) -> DocumentEvent:
    return DocumentEvent(
        position=position,
        segment=segment,
        document_id=f"d{position}",
        tokens=tokens,
        bytes=utf8_bytes,
        windows=1,
        nll=nll,
        observe_seconds=0,
    )


def test_answers_count_at_the_last_probe_and_anchors_before_and_after() -> None:
    answers = [
        answer(0.75, "old", "o", set="anchor", probe=0.0),
        answer(0.0, "a", "d0", probe=0.5),
        answer(1.0, "a", "d0", retrieved=2),
        answer(0.5, "b", "d1", retrieved=0),
        answer(0.25, "old", "o", set="anchor"),
    ]
    summary = summarize([], answers, anchor_nll_before=2.0, anchor_nll=3.0)
    assert (summary.documents, summary.questions) == (0, 2)
    assert (summary.f1, summary.em, summary.answer_nll, summary.recall) == (0.75, 0.5, 0.25, 0.5)
    assert (summary.anchor_f1_before, summary.anchor_f1) == (0.75, 0.25)
    assert (summary.anchor_nll_before, summary.anchor_nll) == (2.0, 3.0)


def test_texts_are_weighted_by_tokens_and_by_bytes() -> None:
    summary = summarize([text(0, 20.0), text(1, 5.0, segment=0), text(1, 5.0, 20, 80, segment=1)], [])
    assert (summary.documents, summary.questions, summary.f1) == (2, 0, None)
    assert summary.token_nll == pytest.approx(30 / 40)
    assert summary.bits_per_byte == pytest.approx(30 / math.log(2) / 160)


@pytest.mark.parametrize(
    ("documents", "token_nll", "bits_per_byte"),
    [
        ([], None, None),
        ([text(0, None)], None, None),  # not scored
        ([text(0, 0.0, 0, 0)], None, None),  # an empty text
        ([text(0, 3.0, 1, 0)], 3.0, None),
        ([text(0, 3.0, 1, 0, 0), text(0, 1.0, 1, 4, 1)], 2.0, 1 / math.log(2)),  # a character in two segments
        ([text(0, 0.0, 0, 0), text(1, 4.0, 2, 8)], 2.0, 0.5 / math.log(2)),
    ],
)
def test_texts_without_tokens_or_bytes_divide_nothing(
    documents: list[DocumentEvent], token_nll: float | None, bits_per_byte: float | None
) -> None:
    summary = summarize(documents, [])
    assert summary.token_nll == token_nll
    assert summary.bits_per_byte == (None if bits_per_byte is None else pytest.approx(bits_per_byte))
