"""The summary of a run from its events: means computed by hand, and texts without tokens or bytes."""

from __future__ import annotations

import math

import pytest

from bench.hashing import closure
from bench.paths import ROOT
from bench.records import tuning
from bench.records.schema import DocumentEvent, TrialRecord
from bench.records.summary import summarize
from tests.reports.records_factory import answer


def test_the_harness_is_no_other_one_if_records_are_stored_or_checked_otherwise() -> None:
    files = closure(ROOT / "bench" / "harness" / "loop.py")
    assert {path.stem for path in files if path.parent.name == "records"} == {"schema", "summary"}


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


def trial(score: float | None, nll: float | None = 1.0, whole: bool = True) -> TrialRecord:
    return {"config": {}, "score": score, "answer_nll": nll, "documents": 3, "whole": whole, "runs": ["one"]}


@pytest.mark.parametrize(
    ("metric", "floor", "trials", "best"),
    [
        ("f1", 0.1, [trial(0.2), trial(0.3), trial(0.3)], 1),  # of equals the earliest
        ("f1", 0.1, [trial(0.2), trial(0.9, whole=False), trial(None)], 0),  # stopped, failed
        ("f1", 0.5, [trial(0.2, 3.0), trial(0.4, 2.0), trial(0.1, 1.0)], 2),  # at the floor the likelihood decides
        ("f1", 0.5, [trial(0.2, 1.0), trial(0.6, 9.0)], 1),
        ("f1", None, [trial(0.2, 1.0), trial(0.3, 9.0)], 1),
        ("f1", 0.5, [trial(0.5, 2.0), trial(0.5, 1.0)], 1),
        ("token_nll", None, [trial(2.0, None), trial(1.0, None), trial(3.0, None)], 1),
        ("f1", 0.1, [trial(None), trial(0.2, whole=False)], None),
        ("f1", 0.1, [], None),
    ],
)
def test_the_best_trial_is_one_on_whole_streams(
    metric: tuning.Metric, floor: float | None, trials: list[TrialRecord], best: int | None
) -> None:
    assert tuning.best(metric, floor, trials) == best
