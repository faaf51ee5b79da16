"""The board: the records of one experiment as rows, one for each method, config and arm."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError
from bench.records.schema import NOT_COMPARED, BoardRecord, CellSpec, RunRecord, TuningRecord
from bench.records.store import read_board, read_run, read_tuning
from reports.rows import FLOOR, Group, Items, Row, make_row, read_items
from reports.statistics import ErrorKind, Estimate, holm, paired_difference, ratio, stream_means

REFERENCE = "uniform"
"""The default reference: the method from which paired differences are taken."""
CEILING = "gold_in_prompt"
"""The control that reads each question's document; the top of the scale of knowledge gain."""

LEVEL = 0.05
"""Family-wise level at which a method counts as worse than the best one."""

FAR = 3.0
"""Standard errors (SE_doc) of the difference by which a placebo arm counts as far above closed book."""

Headline = Literal["f1", "token_nll"]


@dataclass(frozen=True)
class Board:
    """Comparable rows: one protocol, dataset, base model and set of streams."""

    experiment: str
    protocol: str
    comparability: str
    dataset: str
    model: str
    streams: tuple[str, ...]
    headline: Headline
    """``f1`` (higher is better), or ``token_nll`` (lower is better) if there are no questions."""
    reference: str
    rows: tuple[Row, ...]
    tuning: tuple[TuningRecord, ...]
    remarks: tuple[str, ...]

    @property
    def error(self) -> ErrorKind:
        """The error to show: SE_stream, or SE_doc if there is a single stream and so no SE_stream."""
        return "SE_stream" if len(self.streams) > 1 else "SE_doc"


def load(runs: Path, experiment: str | None = None) -> tuple[list[Group], BoardRecord]:
    """The records of an experiment (default: the most recent one) grouped into rows, and its board record.

    Raises:
        BenchError: there is no such board, a record is missing or unreadable, or the records are not comparable.
    """
    board = read_board(runs, experiment)
    records = [read_run(runs / run_id) for run_id in dict.fromkeys(board.runs)]
    if not records:
        raise BenchError(f"The experiment {board.experiment} has no runs. Give it at least one method.")
    _check_comparable(records)
    by_row: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        spec = record.spec
        by_row[spec.method, json.dumps(spec.config, sort_keys=True), spec.arm].append(record)
    groups = [Group(method, json.loads(config), arm, tuple(rs)) for (method, config, arm), rs in by_row.items()]
    return groups, board


def build(runs: Path, experiment: str | None = None, reference: str = REFERENCE) -> Board:
    """The board of an experiment (default: the most recent one): rows by headline score, controls last.

    Raises:
        BenchError: as :func:`load`, or a tuning record is missing or unreadable.
    """
    groups, record = load(runs, experiment)
    first = groups[0].records[0]
    streams = tuple(sorted({run.spec.stream for group in groups for run in group.records}))
    tuning = read_tuning(runs, record.tuning)
    entries = []
    for group, label in zip(groups, _labels(groups, tuning), strict=True):
        items = read_items(runs, group)
        entries.append((make_row(runs, group, label, items, len(streams), tuning), items))
    headline: Headline = "f1" if any("f1" in row.scores for row, _ in entries) else "token_nll"
    leaders = _leaders(entries, headline)
    rows = [
        replace(
            row,
            leading=row.label in leaders,
            overlap=bool(record.overlaps),
            scores={
                **row.scores,
                **_difference(row, items, entries, headline, reference),
                **_gain(row, items, entries),
            },
        )
        for row, items in entries
    ]
    rows.sort(
        key=lambda row: (
            row.control,
            row.status != "complete",
            headline not in row.scores,
            _rank(row, headline),
            row.label,
        )
    )
    overlaps = [f"Overlap: {sentence}" for sentence in record.overlaps]
    return Board(
        experiment=record.experiment,
        protocol=first.spec.protocol,
        comparability=first.comparability_key,
        dataset=first.spec.dataset,
        model=first.spec.model,
        streams=streams,
        headline=headline,
        reference=reference,
        rows=tuple(rows),
        tuning=tuple(tuning),
        remarks=(
            *overlaps,
            *record.remarks,
            *_noted_remarks(groups),
            *_placebo_remarks(entries),
            *_provenance_remarks(groups),
        ),
    )


def _rank(row: Row, headline: Headline) -> float:
    """Sort key of a row by its headline score: the lower, the better."""
    score = row.value(headline) or 0
    return -score if headline == "f1" else score


def _noted_remarks(groups: Sequence[Group]) -> list[str]:
    """Remarks of the methods on their runs, each once, and on questions that did not fit into the model's window."""
    noted, unanswered = [], []
    for group in groups:
        summaries = [record.summary for record in group.records if record.summary is not None]
        if count := sum(summary.unanswered for summary in summaries):
            unanswered.append(
                f"{group.method} on the {group.arm} arm ({count} of {sum(summary.questions for summary in summaries)})"
            )
        noted += [remark for record in group.records for remark in record.notes.get("remarks", ())]
    if unanswered:
        noted.append(
            f"Questions that did not fit into the model's window count as answered wrongly: {', '.join(unanswered)}."
        )
    return list(dict.fromkeys(noted))


def _provenance_remarks(groups: Sequence[Group]) -> list[str]:
    """Remarks on differences in threads and packages between runs, which can show in the last digits of scores."""
    provenances = [record.provenance for group in groups for record in group.records]
    values = {
        "threads": {str(provenance.get("threads")) for provenance in provenances},
        **{
            package: {str(provenance.get("packages", {}).get(package)) for provenance in provenances}
            for package in ("torch", "transformers")
        },
    }
    return [
        f"The runs were made with different {name} ({', '.join(sorted(options))}); last digits may differ."
        for name, options in values.items()
        if len(options) > 1
    ]


def _check_comparable(records: Sequence[RunRecord]) -> None:
    first = records[0]
    for other in records:
        if other.comparability_key != first.comparability_key:
            raise BenchError(
                f"{first.id} and {other.id} cannot be on one board; they differ in "
                f"{', '.join(_differences(first.spec, other.spec)) or 'what their keys are computed from'}. "
                f"Run the experiment again."
            )
    first_runs: dict[tuple[str, str], RunRecord] = {}
    for record in records:
        earlier = first_runs.setdefault((record.spec.stream, record.spec.arm), record)
        if earlier.spec.stream_hash != record.spec.stream_hash:
            raise BenchError(
                f"{earlier.id} and {record.id} saw different documents under the name {record.spec.stream}. "
                f"Run the experiment again."
            )


def _differences(a: CellSpec, b: CellSpec) -> list[str]:
    left, right = (
        {**spec.model_dump(exclude=NOT_COMPARED), "streams": spec.stream.rpartition("-")[0]} for spec in (a, b)
    )
    return [
        key if key.endswith(("_code", "_hash")) else f"{key} ({left[key]} and {right[key]})"
        for key in left
        if left[key] != right[key]
    ]


def _labels(groups: Sequence[Group], tuning: Sequence[TuningRecord]) -> list[str]:
    """The method with the settings that distinguish its rows; tuned settings are shown only if they are needed."""
    short = [_label(group, groups, hidden=_tuned_keys(tuning, group.method)) for group in groups]
    return [
        label if short.count(label) == 1 else _label(group, groups, hidden=set())
        for group, label in zip(groups, short, strict=True)
    ]


def _tuned_keys(tuning: Sequence[TuningRecord], method: str) -> set[str]:
    """The settings in which the method's trials differ."""
    keys = set()
    for record in tuning:
        configs = [trial["config"] for trial in record.trials if record.method == method]
        keys |= {key for config in configs for key in config if any(c.get(key) != config[key] for c in configs)}
    return keys


def _label(group: Group, groups: Sequence[Group], hidden: set[str]) -> str:
    """The label of a row. It omits values that most rows of the method share or, if none is, values that are off."""
    configs = [_flat(other.config) for other in groups if other.method == group.method]
    settings = []
    for key, value in _flat(group.config).items():
        values = [config[key] for config in configs if key in config]
        common = [other for other in values if 2 * values.count(other) > len(configs)]
        omitted = common[0] == value if common else value in (None, False, "none")
        if key not in hidden and not omitted:
            settings.append(f"{key}={'null' if value is None else value}")
    label = f"{group.method} ({', '.join(settings)})" if settings else group.method
    return label if group.arm == "stream" else f"{label} on {group.arm}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings, nested ones under dotted names."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        settings |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return settings


Entries = Sequence[tuple[Row, Items]]
Scores = dict[str, tuple[Estimate, ...]]


def _find(entries: Entries, method: str, arm: str = "stream", config: Mapping[str, Any] | None = None) -> Items | None:
    """The items of the one complete row that matches; None if no row or several match."""
    matches = [
        items
        for row, items in entries
        if (row.method, row.arm, row.status) == (method, arm, "complete") and config in (None, row.config)
    ]
    return matches[0] if len(matches) == 1 else None


def _difference(row: Row, items: Items, entries: Entries, headline: Headline, reference: str) -> Scores:
    """The paired difference from the reference. Other arms score other documents, so only their answers are paired."""
    other = _find(entries, reference)
    paired = row.status == "complete" and (headline == "f1" or row.arm == "stream")
    if other is None or other is items or not paired or headline not in items:
        return {}
    return {f"{headline}_vs_reference": tuple(paired_difference(items[headline], other[headline]))}


def _gain(row: Row, items: Items, entries: Entries) -> Scores:
    """Knowledge gain = (method - placebo) / (gold in prompt - placebo) in F1, if both controls are complete."""
    placebo, gold = _find(entries, row.method, "placebo", row.config), _find(entries, CEILING)
    if row.control or row.status != "complete" or placebo is None or gold is None or "f1" not in items:
        return {}
    method_f1, placebo_f1, gold_f1 = ([*stream_means(scored["f1"]).values()] for scored in (items, placebo, gold))
    gains = [m - p for m, p in zip(method_f1, placebo_f1, strict=True)]
    ranges = [g - p for g, p in zip(gold_f1, placebo_f1, strict=True)]
    return {"knowledge_gain": (ratio(gains, ranges),)} if sum(ranges) > 0 else {}


def _placebo_remarks(entries: Entries) -> list[str]:
    """Remarks on methods whose F1 on placebo is far above closed book and not significantly below that on the stream.

    A method that has not seen the documents cannot know their answers, so it may remember an earlier stream.
    """
    floor = _find(entries, FLOOR)
    remarks = []
    for row, items in entries:
        stream = _find(entries, row.method, config=row.config)
        if (row.arm, row.status) != ("placebo", "complete") or not floor or not stream or "f1" not in items:
            continue
        above = paired_difference(items["f1"], floor["f1"]).document
        below = paired_difference(stream["f1"], items["f1"]).document.interval(1 - LEVEL)
        if above.se is not None and above.mean > FAR * above.se and below is not None and below[0] <= 0:
            remarks.append(
                f"{row.label} scores as on its stream, far above closed book (F1 {above.mean:+.3f}): what it gains is "
                f"not from its documents, and it may remember earlier streams (docs/rules.md, section 13)."
            )
    return remarks


def _leaders(entries: Entries, headline: Headline) -> set[str]:
    """Labels of the best method and of those not significantly worse. Controls and incomplete rows do not compete."""
    candidates = {
        row.label: (row, items)
        for row, items in entries
        if not row.control and row.status == "complete" and headline in items
    }
    if not candidates:
        return set()
    best = min(candidates, key=lambda label: (_rank(candidates[label][0], headline), label))
    p_values, leaders = {}, {best}
    for label, (_, items) in candidates.items():
        difference = paired_difference(items[headline], candidates[best][1][headline]).document
        p_value = difference.p_value()
        if p_value is not None:
            p_values[label] = p_value
        elif difference.mean == 0:
            leaders.add(label)
    return leaders | {label for label, p_value in holm(p_values).items() if p_value >= LEVEL}
