"""Rows of a board: the records of one method with one config on one arm, and their scores and costs."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.answering import metrics
from bench.records.imported import ImportedRow
from bench.records.schema import (
    CHANGE_SCORES,
    AnswerEvent,
    BoardEntry,
    BoardRecord,
    DocumentEvent,
    RunRecord,
    TuningRecord,
    first_probe,
)
from bench.records.store import read_answers, read_documents
from reports.origins import summary_of
from reports.prices import prices
from reports.ranks import Standing
from reports.spread import Run
from reports.statistics import ErrorKind, Estimate, Item, mean_over_streams, run_items, summarize

FLOOR = "closed_book"
"""The control that does not adapt."""
CEILING = "gold_in_prompt"
"""The control that reads each question's document; the top of the scale of knowledge gain."""

ANSWER_SCORES = (*metrics.ANSWER_SCORES, "answer_nll", "ended", "recall", *CHANGE_SCORES)
FIRST = "f1_first_probe"
"""F1 at the first probe, if every probe asks the same questions (``questions: first``)."""
TEXT_SCORES = ("token_nll", "token_nll_after", "bits_per_byte")
ANCHOR_SCORES = ("anchor_f1_before", "anchor_f1", "forgetting", "anchor_nll_before", "anchor_nll")
DIFFERENCES = ("f1_vs_reference", "token_nll_vs_reference")
SCORES = (*ANSWER_SCORES, FIRST, "relative_f1", *TEXT_SCORES, *DIFFERENCES, "knowledge_gain", *ANCHOR_SCORES)
"""All scores that a row can have; missing ones are null in the tables."""
SE_DOC = (*ANSWER_SCORES, FIRST, *TEXT_SCORES, *DIFFERENCES)
"""The scores that also have SE_doc."""

CHANGED = 0.1
"""Share of the questions at the last probe, on facts that have changed, from which on a board is about changes."""

ALL_ENDED = 0.9995
"""Share of answers that end by themselves from which on it is 1 to three digits."""

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
    orders: int
    """Number of orders of the documents."""
    tuning: TuningRecord | None
    """How its settings were chosen; None if they were not tuned."""
    tuned: bool | None
    """None for a method that has nothing to tune."""
    hand_set: tuple[str, ...]
    """Settings that the experiment sets by hand (dotted names)."""
    entries: tuple[int, ...]
    """Places in the experiment of the entries that list the row's runs: several if tuning made them the same, none if
    the row was imported."""
    scores: Mapping[str, tuple[Estimate, ...]]
    """By name (:data:`SCORES`): the mean with SE_stream, then, for the scores in :data:`SE_DOC`, with SE_doc."""
    costs: Mapping[str, float]
    """By name (:data:`reports.prices.COSTS`)."""
    records: tuple[RunRecord, ...]
    """The records of the streams on which no run failed or is missing: the source of the scores."""
    runs: Path = field(compare=False)
    """Folder of these records."""
    standing: Standing | None = None
    """The ranks that the row can have; None if it does not compete, as a control or an incomplete row."""
    p_vs_reference: float | None = None
    """p-value of its difference from the reference in the headline score, adjusted for the number of rows that compete
    and have one (Holm)."""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Shares of streams, seeds, orders and the rest in the spread of the headline score; empty if there are none."""
    overlap: bool = False
    """True if the experiment that ran it allows splits that share documents, and they do."""
    imported: str = ""
    """The mark of an imported row, which its label has, too; "" for a row that was run here."""

    @property
    def documents(self) -> int:
        """Number of documents of its longest stream; 0 without results."""
        return max((summary_of(record).documents for record in self.records), default=0)

    @property
    def trials(self) -> int:
        """Number of configurations tried on the validation streams."""
        return 0 if self.tuning is None else len(self.tuning.trials)

    @property
    def as_good_as_best(self) -> bool:
        """True if the row competes and no other one is significantly better."""
        return self.standing is not None and self.standing.as_good_as_best

    @property
    def is_bold(self) -> bool:
        """True if it is as good as the best, and another row is not: else bold type would say nothing."""
        return self.standing is not None and self.standing.as_good_as_best and self.standing.is_decided

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
    runs: Path
    """Folder of the records."""
    label: str = ""
    """The label of the row (:attr:`Row.label`)."""
    imported: ImportedRow | None = None
    """Where the row is from, if it was imported."""

    def complete(self) -> tuple[RunRecord, ...]:
        """The records of the streams on which no run failed, and on which every seed and order ran."""
        ran: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for record in self.records:
            if record.status == "complete":
                ran[record.spec.stream].add((record.spec.seed, record.spec.order))
        expected = {(record.spec.seed, record.spec.order) for record in self.records}
        return tuple(record for record in self.records if ran[record.spec.stream] == expected)


def final_answers(runs: Path, record: RunRecord) -> list[AnswerEvent]:
    """A run's answers on the stream's questions at its last probe."""
    answers = [event for event in read_answers(runs, record.id) if event.set == "stream"]
    last = max((event.probe for event in answers), default=None)
    return [event for event in answers if event.probe == last]


Items = Mapping[str, Sequence[Item]]
"""Items by score; every score has at least one."""
Entries = Sequence[tuple[Row, Items]]


def find(entries: Entries, method: str) -> Items | None:
    """The items of a method's first complete row on the streams themselves, which is one's own if there is one."""
    complete = (items for row, items in entries if (row.method, row.arm, row.status) == (method, "stream", "complete"))
    return next(complete, None)


def is_arm_of(one: Row | Group, other: Row | Group) -> bool:
    """True if two rows, or groups, are of one method with the same settings and from the same source, on any arms."""
    return (one.method, one.config, one.imported) == (other.method, other.config, other.imported)


def find_arm(entries: Entries, of: Row, arm: str) -> Items | None:
    """The items of a row's method on an arm, with the same settings and from the same source, if complete."""
    found = (items for row, items in entries if is_arm_of(row, of) and (row.arm, row.status) == (arm, "complete"))
    return next(found, None)


def row_of(rows: Iterable[Row], method: str) -> Row | None:
    """The first row of a method on the streams themselves, one's own if there is one; None without one."""
    found = [row for row in rows if (row.method, row.arm) == (method, "stream")]
    return min(found, key=lambda row: row.imported != "", default=None)


def read_items(group: Group) -> Items:
    """The scored questions and documents of the group's complete records."""
    items: dict[str, list[Item]] = defaultdict(list)
    for record in group.complete():
        run = run_of(record)
        for answer in final_answers(group.runs, record):
            for name in ANSWER_SCORES:
                value = answer.nll if name == "answer_nll" else getattr(answer, name)
                if value is not None:
                    items[name].append(_answer_item(run, answer, value))
        if record.spec.questions == "first":
            probe = first_probe(record.spec.probes)
            for answer in read_answers(group.runs, record.id):
                if (answer.set, answer.probe) == ("stream", probe):
                    items[FIRST].append(_answer_item(run, answer, answer.f1))
        seen: Counter[str] = Counter()
        for document in read_segments(group.runs, record):
            seen[document[0].document_id] += 1  # the shuffled arm can observe a document twice
            for name, item in _text_items(run, document, seen[document[0].document_id]):
                items[name].append(item)
    return items


def read_segments(runs: Path, record: RunRecord) -> Iterator[Sequence[DocumentEvent]]:
    """The segments of each document of a run, in the order of the stream; a document that is not cut has one.

    Raises:
        BenchError: the events of the run are missing or damaged.
    """
    for _, segments in itertools.groupby(read_documents(runs, record.id), lambda event: event.position):
        yield list(segments)


def token_nll(segments: Sequence[DocumentEvent]) -> float | None:
    """NLL per token of a document, of all its segments together; None if it was not scored, or has no tokens."""
    if not (tokens := sum(event.tokens for event in segments)) or any(event.nll is None for event in segments):
        return None
    return sum(event.nll or 0.0 for event in segments) / tokens


def run_of(record: RunRecord) -> Run:
    """The run of a record."""
    return Run(record.spec.stream, record.spec.seed, record.spec.order, record.spec.train_hash)


def _answer_item(run: Run, answer: AnswerEvent, value: float) -> Item:
    return Item.of(run, f"question {answer.question_id}", answer.document_id, value)


def _text_items(run: Run, events: Sequence[DocumentEvent], time: int) -> Iterator[tuple[str, Item]]:
    """The scores of one document, of all its segments together: methods may cut it differently.

    A unit is named by its document and not by its position, which is another one in each order.
    """
    document, nll = events[0].document_id, sum(event.nll or 0.0 for event in events)
    tokens, utf8_bytes = sum(event.tokens for event in events), sum(event.bytes for event in events)
    unit = f"document {document}, time {time}"
    if (per_token := token_nll(events)) is not None:
        yield "token_nll", Item.of(run, unit, document, per_token, tokens)
    if tokens and all(event.nll_after is not None for event in events):
        after = sum(event.nll_after or 0.0 for event in events)
        yield "token_nll_after", Item.of(run, unit, document, after / tokens, tokens)
    if utf8_bytes and all(event.nll is not None for event in events):
        yield "bits_per_byte", Item.of(run, unit, document, metrics.bits_per_byte(nll, utf8_bytes), utf8_bytes)


def make_row(group: Group, items: Items, streams: int, board: BoardRecord, tuning: Sequence[TuningRecord]) -> Row:
    """The row of a group on a board with ``streams`` streams, before it is compared with other rows.

    ``board`` is the record of the board for which the group was run, and ``tuning`` has its tuning records.
    """
    complete = group.complete()
    status, note = _status(group, streams)
    scores: dict[str, tuple[Estimate, ...]] = {name: tuple(summarize(scored)) for name, scored in items.items()}
    for name in ANCHOR_SCORES:
        if anchor_items := _anchor_items(complete, name):
            scores[name] = (mean_over_streams(anchor_items),)
    entry = entry_of(group, board.entries)
    tuned = next((record for record in tuning if record.key == entry.tuning), None)
    listing = (place for place, other in enumerate(board.entries) if any(run.id in other.runs for run in group.records))
    return Row(
        label=group.label,
        method=group.method,
        config=group.config,
        arm=group.arm,
        control=group.records[0].control or group.arm != "stream" or group.method == FLOOR,
        status=status,
        note=note,
        streams=len({record.spec.stream for record in complete}),
        seeds=len({record.spec.seed for record in group.records}),
        orders=len({record.spec.order for record in group.records}),
        tuning=tuned,
        tuned=True if tuned else False if group.records[0].tunable else None,
        hand_set=tuple(entry.hand_set),
        entries=tuple(listing) if group.imported is None else (),
        scores=scores,
        costs=prices(group.runs, complete, tuned),
        records=complete,
        runs=group.runs,
        overlap=bool(board.overlaps),
        imported="" if group.imported is None else group.imported.mark,
    )


def some_run_on(rows: Iterable[Row]) -> bool:
    """True if a share of answers that end by themselves is below 1 in some row, to three digits."""
    shares = (row.value("ended") for row in rows)
    return any(share < ALL_ENDED for share in shares if share is not None)


def about_changes(rows: Iterable[Row]) -> bool:
    """True if at least :data:`CHANGED` of the questions at the last probe are on facts that have changed."""
    summaries = [summary_of(record) for row in rows for record in row.records]
    questions = sum(summary.questions for summary in summaries)
    return sum(summary.changed for summary in summaries) >= CHANGED * questions > 0


def entry_of(group: Group, entries: Sequence[BoardEntry]) -> BoardEntry:
    """The entry of the experiment that lists the group's runs; a tuned entry if several do."""
    ids = {record.id for record in group.records}
    candidates = [entry for entry in entries if ids & set(entry.runs)]
    return next((entry for entry in candidates if entry.tuning), candidates[0])


def _status(group: Group, expected: int) -> tuple[Status, str]:
    failures = [record for record in group.records if record.status != "complete"]
    if failures:
        kinds = sorted({record.failure.kind if record.failure else record.status for record in failures})
        count = len({record.spec.stream for record in failures})
        status: Status = "diverged" if all(record.status == "diverged" for record in failures) else "failed"
        return status, f"{' and '.join(kinds).replace('_', ' ')} on {count} of {expected}"
    present = len({record.spec.stream for record in group.complete()})
    return ("complete", "") if present == expected else ("incomplete", f"{present} of {expected} streams")


def _anchor_items(records: Iterable[RunRecord], name: str) -> list[Item]:
    """An anchor score of each run that has it."""
    values: dict[Run, float] = {}
    for record in records:
        summary = summary_of(record)
        if name == "forgetting":
            before, after = summary.anchor_f1_before, summary.anchor_f1
            value = before - after if before is not None and after is not None else None
        else:
            value = getattr(summary, name)
        if value is not None:
            values[run_of(record)] = value
    return run_items(values)
