"""Rows of a board: the records of one method with one config on one arm, and their scores and costs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.answering import metrics
from bench.records.schema import AnswerEvent, DocumentEvent, RunRecord, TuningRecord
from bench.records.store import read_answers, read_documents
from reports.statistics import ErrorKind, Estimate, Item, mean_over_streams, summarize

FLOOR = "closed_book"
"""The control that does not adapt."""

ANSWER_SCORES = (*metrics.ANSWER_SCORES, "answer_nll", "recall")
TEXT_SCORES = ("token_nll", "bits_per_byte")
ANCHOR_SCORES = ("anchor_f1_before", "anchor_f1", "forgetting", "anchor_nll_before", "anchor_nll")
DIFFERENCES = ("f1_vs_reference", "token_nll_vs_reference")
SCORES = (*ANSWER_SCORES, *TEXT_SCORES, *DIFFERENCES, "knowledge_gain", *ANCHOR_SCORES)
"""All scores that a row can have; missing ones are null in the tables."""
SE_DOC = (*ANSWER_SCORES, *TEXT_SCORES, *DIFFERENCES)
"""The scores that also have SE_doc."""
COSTS = (
    "seconds_per_document",
    "flops_per_document",
    "seconds_per_question",
    "offline_seconds",
    "offline_flops",
    "peak_bytes",
    "state_bytes",
)

Status = Literal["complete", "incomplete", "diverged", "failed"]


@dataclass(frozen=True)
class Row:
    """One method with one config on one arm, over the board's streams."""

    label: str
    """The method's name, the settings that distinguish this config if the board has several, and the arm."""
    method: str
    config: Mapping[str, Any]
    arm: str
    control: bool
    """True for closed book, methods that see the evidence, and control arms."""
    status: Status
    note: str
    """Reason why the row is not complete; "" if it is."""
    streams: int
    """Number of streams with scores; the row's means are over these."""
    seeds: int
    trials: int
    """Number of configurations tried on the validation streams."""
    tuned: bool | None
    """None for a method that has nothing to tune."""
    scores: Mapping[str, tuple[Estimate, ...]]
    """By name (:data:`SCORES`): the mean with SE_stream, then, for the scores in :data:`SE_DOC`, with SE_doc."""
    costs: Mapping[str, float]
    """By name (:data:`COSTS`). Seconds and FLOPs are means, bytes are maxima."""
    records: tuple[RunRecord, ...]
    """The records of the streams on which no run failed: the source of the scores."""
    leading: bool = False
    """True for the best method and those not significantly worse: paired t test with SE_doc, Holm correction, 5 %."""
    overlap: bool = False
    """True if the experiment allows splits that share documents, and they do."""

    @property
    def title(self) -> str:
        """The label, with the note and the mark of shared documents in brackets if there are any."""
        marks = [mark for mark in (self.note, "overlap" * self.overlap) if mark]
        return " ".join([self.label, *(f"[{mark}]" for mark in marks)])

    def value(self, score: str) -> float | None:
        """The mean of a score, or None."""
        return self.scores[score][0].mean if score in self.scores else None

    def estimate(self, score: str, kind: ErrorKind) -> Estimate | None:
        """The estimate of a score with this kind of error, or None."""
        return next((estimate for estimate in self.scores.get(score, ()) if estimate.kind == kind), None)


@dataclass(frozen=True)
class Group:
    """The records of one row."""

    method: str
    config: Mapping[str, Any]
    arm: str
    records: tuple[RunRecord, ...]

    def complete(self) -> tuple[RunRecord, ...]:
        """The records of the streams on which no run failed."""
        failed_streams = {record.spec.stream for record in self.records if record.status != "complete"}
        return tuple(record for record in self.records if record.spec.stream not in failed_streams)


def final_answers(runs: Path, record: RunRecord) -> list[AnswerEvent]:
    """A run's answers on the stream's questions at its last probe."""
    answers = [event for event in read_answers(runs, record.id) if event.set == "stream"]
    last = max((event.probe for event in answers), default=None)
    return [event for event in answers if event.probe == last]


Items = Mapping[str, Sequence[Item]]
"""Items by score; every score has at least one."""


def read_items(runs: Path, group: Group) -> Items:
    """The scored questions and documents of the group's complete records."""
    items: dict[str, list[Item]] = defaultdict(list)
    for record in group.complete():
        stream = record.spec.stream
        for answer in final_answers(runs, record):
            for name in ANSWER_SCORES:
                value = answer.nll if name == "answer_nll" else getattr(answer, name)
                if value is not None:
                    items[name].append(Item(stream, f"question {answer.question_id}", answer.document_id, value))
        for _, events in itertools.groupby(read_documents(runs, record.id), lambda event: event.position):
            for name, item in _text_items(stream, list(events)):
                items[name].append(item)
    return items


def _text_items(stream: str, events: Sequence[DocumentEvent]) -> Iterator[tuple[str, Item]]:
    """The scores of one document: per token of each segment, and per byte of all, since one character may be in two."""
    for event in events:
        if event.nll is not None and event.tokens:
            unit = f"document {event.position}, segment {event.segment}"
            yield "token_nll", Item(stream, unit, event.document_id, event.nll / event.tokens, event.tokens)
    utf8_bytes = sum(event.bytes for event in events)
    if utf8_bytes and all(event.nll is not None for event in events):
        bits = metrics.bits_per_byte(sum(event.nll or 0.0 for event in events), utf8_bytes)
        yield "bits_per_byte", Item(stream, f"document {events[0].position}", events[0].document_id, bits, utf8_bytes)


def make_row(runs: Path, group: Group, label: str, items: Items, streams: int, tuning: Sequence[TuningRecord]) -> Row:
    """The row of a group on a board with ``streams`` streams, before it is compared with other rows."""
    complete = group.complete()
    status, note = _status(group, streams)
    scores: dict[str, tuple[Estimate, ...]] = {name: tuple(summarize(scored)) for name, scored in items.items()}
    for name in ANCHOR_SCORES:
        if anchor_items := _anchor_items(complete, name):
            scores[name] = (mean_over_streams(anchor_items),)
    spec = group.records[0].spec
    trials = [
        len(record.trials)
        for record in tuning
        if (record.method, record.dataset, record.model_hash) == (spec.method, spec.dataset, spec.model_hash)
        and record.chosen == spec.config
    ]
    return Row(
        label=label,
        method=group.method,
        config=group.config,
        arm=group.arm,
        control=group.records[0].control or group.arm != "stream" or group.method == FLOOR,
        status=status,
        note=note,
        streams=len({record.spec.stream for record in complete}),
        seeds=len({record.spec.seed for record in group.records}),
        trials=max(trials, default=0),
        tuned=True if trials else False if group.records[0].tunable else None,
        scores=scores,
        costs=_costs(runs, complete),
        records=complete,
    )


def _status(group: Group, expected: int) -> tuple[Status, str]:
    failures = [record for record in group.records if record.status != "complete"]
    if failures:
        kinds = sorted({record.failure.kind if record.failure else record.status for record in failures})
        count = len({record.spec.stream for record in failures})
        status: Status = "diverged" if all(record.status == "diverged" for record in failures) else "failed"
        return status, f"{' and '.join(kinds).replace('_', ' ')} on {count} of {expected}"
    present = len({record.spec.stream for record in group.records})
    return ("complete", "") if present == expected else ("incomplete", f"{present} of {expected} streams")


def _anchor_items(records: Iterable[RunRecord], name: str) -> list[Item]:
    """An anchor score of each run that has it."""
    items = []
    for record in records:
        if record.summary is None:
            continue
        if name == "forgetting":
            before, after = record.summary.anchor_f1_before, record.summary.anchor_f1
            value = before - after if before is not None and after is not None else None
        else:
            value = getattr(record.summary, name)
        if value is not None:
            items.append(Item(record.spec.stream, record.id, "", value))
    return items


def _costs(runs: Path, records: Sequence[RunRecord]) -> dict[str, float]:
    pairs = [(record.costs, record.summary) for record in records if record.costs and record.summary]
    if not pairs:
        return {}
    costs = [cost for cost, _ in pairs]
    documents = sum(summary.documents for _, summary in pairs)
    questions = sum(len(read_answers(runs, record.id)) for record in records)
    phases = ("offline", "score", "observe", "answer")
    by_name = {
        "seconds_per_document": _per(documents, (cost.observe.seconds for cost in costs)),
        "flops_per_document": _per(documents, (cost.observe.flops for cost in costs)),
        "seconds_per_question": _per(questions, (cost.answer.seconds for cost in costs)),
        "offline_seconds": _per(len(costs), (cost.offline.seconds for cost in costs)),
        "offline_flops": _per(len(costs), (cost.offline.flops for cost in costs)),
        "peak_bytes": max(getattr(cost, phase).peak_bytes for cost in costs for phase in phases),
        "state_bytes": max(cost.state_bytes for cost in costs),
    }
    return {name: value for name, value in by_name.items() if value is not None}


def _per(count: int, values: Iterable[float]) -> float | None:
    return sum(values) / count if count else None
