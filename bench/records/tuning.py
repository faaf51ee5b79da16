"""Tuning by its records: the score of a trial from its runs, and the choice among trials."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple

from bench.records.schema import RunRecord, TrialRecord, TuningRecord, mean

Metric = Literal["f1", "token_nll"]


class Measurement(NamedTuple):
    """A trial's scores: means over the validation streams, on their first part or on all of them."""

    score: float | None
    """The metric; None if a run has no results."""
    answer_nll: float | None
    documents: int
    """Documents of each stream."""
    whole: bool
    """True if the streams were run to their ends."""


def runs_of(record: TuningRecord) -> list[str]:
    """The ids of all runs of a search."""
    return [*record.runs, *(run_id for trial in record.trials for run_id in trial["runs"])]


def measure(runs: Sequence[RunRecord], metric: Metric) -> Measurement:
    """The scores of a trial from its runs, of which it has at least one, on the longest part of the streams."""
    whole = any(run.spec.prefix is None for run in runs)
    last = [run for run in runs if (run.spec.prefix is None) == whole]
    summaries = [run.summary for run in last if run.summary is not None]
    values = [getattr(summary, metric) for summary in summaries]
    complete = len(summaries) == len(last) and None not in values
    losses = [summary.answer_nll for summary in summaries if summary.answer_nll is not None]
    documents = last[0].spec.prefix or max((summary.documents for summary in summaries), default=0)
    return Measurement(mean(values) if complete else None, mean(losses), documents, whole)


def floor(runs: Sequence[RunRecord], prefix: int | None = None) -> float | None:
    """Mean F1 of the runs without documents, on whole streams or on their ``prefix``; None if one failed."""
    summaries = [run.summary for run in runs if run.spec.arm == "empty" and run.spec.prefix == prefix]
    scores = [summary.f1 for summary in summaries if summary is not None and summary.f1 is not None]
    return mean(scores) if len(scores) == len(summaries) else None


def merit(metric: Metric, score: float, answer_nll: float | None, floor: float | None) -> tuple[float, float]:
    """A key by which scores compare: the larger, the better.

    F1 at or below the ``floor``, the method's score without documents, counts as the floor, where the answers' NLL
    decides.
    """
    if metric == "token_nll":
        return -score, 0.0
    return max(score, floor or 0.0), -inf if answer_nll is None else -answer_nll


def best(metric: Metric, floor: float | None, trials: Sequence[TrialRecord]) -> int | None:
    """Index of the best trial among those that ran on whole streams, of equals the earliest; None if there is none."""
    merits = [
        (merit(metric, trial["score"], trial["answer_nll"], floor), -index)
        for index, trial in enumerate(trials)
        if trial["whole"] and trial["score"] is not None
    ]
    return -max(merits)[1] if merits else None
