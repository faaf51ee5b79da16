"""The board: what the records of one experiment say, one row per method, config and arm."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.records.schema import FREE, CellSpec, RunRecord, TuningRecord
from bench.records.store import read_board, read_run, read_tuning
from reports.rows import Group, Items, Row, make_row, read_items
from reports.statistics import Estimate, Kind, holm, paired_difference, ratio, stream_means

REFERENCE = "uniform"
"""The method that every other is set against by paired differences, unless told otherwise."""
CEILING = "gold_in_prompt"
"""The control that reads each question's document; the top of the scale of knowledge gain."""

LEVEL = 0.05
"""Family-wise level at which a method counts as worse than the best one."""


@dataclass(frozen=True)
class Board:
    """Rows that may be compared: one protocol, dataset, base model and set of streams."""

    experiment: str
    protocol: str
    comparability: str
    dataset: str
    model: str
    streams: tuple[str, ...]
    reference: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]

    @property
    def headline(self) -> str:
        """``f1`` (higher is better), or ``token_nll`` (lower is better) where no questions are asked."""
        return "f1" if any("f1" in row.scores for row in self.rows) else "token_nll"

    @property
    def error(self) -> Kind:
        """The error to show: SE_stream, or SE_doc where a single stream leaves no SE_stream."""
        return "SE_stream" if len(self.streams) > 1 else "SE_doc"


def load(runs: Path, experiment: str | None = None) -> tuple[list[Group], str, tuple[str, ...]]:
    """The records of an experiment (default: the one run last) grouped into rows, its name, and its remarks.

    Raises:
        BenchError: there is no such board, a record is missing or unreadable, or they cannot stand on one board.
    """
    found = read_board(runs, experiment)
    records = [read_run(runs / name) for name in dict.fromkeys(found.runs)]
    if not records:
        raise BenchError(f"The experiment {found.experiment} has no runs. Give it at least one method.")
    _check_comparable(records)
    groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        spec = record.spec
        groups[spec.method, json.dumps(spec.config, sort_keys=True), spec.arm].append(record)
    rows = [Group(method, json.loads(text), arm, tuple(some)) for (method, text, arm), some in groups.items()]
    return rows, found.experiment, tuple(found.remarks)


def build(runs: Path, experiment: str | None = None, reference: str = REFERENCE) -> Board:
    """The board of an experiment, by default the one run last: rows by headline score, controls after the others.

    Raises:
        BenchError: as :func:`load`.
    """
    groups, name, remarks = load(runs, experiment)
    spec = groups[0].records[0].spec
    streams = tuple(sorted({record.spec.stream for group in groups for record in group.records}))
    tuning = read_tuning(runs, read_board(runs, experiment).tuning)
    entries = []
    for group, label in zip(groups, _labels(groups, tuning), strict=True):
        items = read_items(runs, group)
        entries.append((make_row(runs, group, label, items, len(streams), tuning), items))
    headline = "f1" if any("f1" in row.scores for row, _ in entries) else "token_nll"
    sign = -1 if headline == "f1" else 1
    leaders = _leaders(entries, headline)
    rows = [
        replace(
            row,
            leading=row.label in leaders,
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
            sign * (row.value(headline) or 0),
            row.label,
        )
    )
    return Board(
        experiment=name,
        protocol=spec.protocol,
        comparability=groups[0].records[0].comparability_key,
        dataset=spec.dataset,
        model=spec.model,
        streams=streams,
        reference=reference,
        rows=tuple(rows),
        remarks=(*remarks, *_mixtures(groups)),
    )


def _mixtures(groups: Sequence[Group]) -> list[str]:
    """What differs in where the runs of a board were made, and can show in the last digits of their scores."""
    made = [record.provenance for group in groups for record in group.records]
    seen = {
        "threads": {str(one.get("threads")) for one in made},
        **{name: {str(one.get("packages", {}).get(name)) for one in made} for name in ("torch", "transformers")},
    }
    return [
        f"The runs were made with different {name} ({', '.join(sorted(values))}); last digits may differ for that."
        for name, values in seen.items()
        if len(values) > 1
    ]


def _check_comparable(records: Sequence[RunRecord]) -> None:
    first = records[0]
    for other in records:
        if other.comparability_key != first.comparability_key:
            raise BenchError(
                f"{first.id} and {other.id} cannot stand on one board; they differ in "
                f"{', '.join(_differences(first.spec, other.spec)) or 'what their keys were made of'}. "
                f"Run the experiment again."
            )
    hashes: dict[tuple[str, str], RunRecord] = {}
    for record in records:
        same = hashes.setdefault((record.spec.stream, record.spec.arm), record)
        if same.spec.stream_hash != record.spec.stream_hash:
            raise BenchError(
                f"{same.id} and {record.id} saw different documents under the name {record.spec.stream}. "
                f"Run the experiment again."
            )


def _differences(a: CellSpec, b: CellSpec) -> list[str]:
    ours, theirs = ({**spec.model_dump(exclude=FREE), "streams": spec.stream.rpartition("-")[0]} for spec in (a, b))
    return [
        key if key.endswith(("_code", "_hash")) else f"{key} ({ours[key]} and {theirs[key]})"
        for key in ours
        if ours[key] != theirs[key]
    ]


def _labels(groups: Sequence[Group], tuning: Sequence[TuningRecord]) -> list[str]:
    """The method, and what sets its config apart: of the settings that were not tuned, if these tell the rows apart."""
    short = [_label(group, groups, hidden=_varied(tuning, group.method)) for group in groups]
    return [
        label if short.count(label) == 1 else _label(group, groups, hidden=set())
        for group, label in zip(groups, short, strict=True)
    ]


def _varied(tuning: Sequence[TuningRecord], method: str) -> set[str]:
    """The settings over which the method's trials differ."""
    found = set()
    for record in tuning:
        configs = [trial["config"] for trial in record.trials if record.method == method]
        found |= {key for config in configs for key in config if any(c.get(key) != config[key] for c in configs)}
    return found


def _label(group: Group, groups: Sequence[Group], hidden: set[str]) -> str:
    """What most of the method's rows have goes without saying; else what is off does."""
    configs = [_flat(other.config) for other in groups if other.method == group.method]
    settings = []
    for key, value in _flat(group.config).items():
        values = [config[key] for config in configs if key in config]
        common = [other for other in values if 2 * values.count(other) > len(configs)]
        unsaid = common[0] == value if common else value in (None, False, "none")
        if key not in hidden and not unsaid:
            settings.append(f"{key}={'null' if value is None else value}")
    label = f"{group.method} ({', '.join(settings)})" if settings else group.method
    return label if group.arm == "stream" else f"{label} on {group.arm}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings with those of groups under dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


Entries = Sequence[tuple[Row, Items]]
Scores = dict[str, tuple[Estimate, ...]]


def _find(entries: Entries, method: str, arm: str = "stream", config: Mapping[str, Any] | None = None) -> Items | None:
    """The items of the one complete row that is meant; None where there is none, or more than one config of it."""
    found = [
        items
        for row, items in entries
        if (row.method, row.arm, row.status) == (method, arm, "complete") and config in (None, row.config)
    ]
    return found[0] if len(found) == 1 else None


def _difference(row: Row, items: Items, entries: Entries, headline: str, reference: str) -> Scores:
    """The paired difference to the reference. On other arms other documents are scored, so only answers pair up."""
    other = _find(entries, reference)
    pairs_up = row.status == "complete" and (headline == "f1" or row.arm == "stream")
    if other is None or other is items or not pairs_up or headline not in items:
        return {}
    return {f"{headline}_vs_reference": tuple(paired_difference(items[headline], other[headline]))}


def _gain(row: Row, items: Items, entries: Entries) -> Scores:
    """Knowledge gain = (method - placebo) / (gold in prompt - placebo) in F1, where both controls are complete."""
    placebo, gold = _find(entries, row.method, "placebo", row.config), _find(entries, CEILING)
    if row.control or row.status != "complete" or placebo is None or gold is None or "f1" not in items:
        return {}
    method, low, high = ([*stream_means(some["f1"]).values()] for some in (items, placebo, gold))
    gained = [m - p for m, p in zip(method, low, strict=True)]
    possible = [g - p for g, p in zip(high, low, strict=True)]
    return {"knowledge_gain": (ratio(gained, possible),)} if sum(possible) > 0 else {}


def _leaders(entries: Entries, headline: str) -> set[str]:
    """Labels of the best method and of those not significantly worse; controls and rows with gaps are out of it."""
    sign = -1 if headline == "f1" else 1
    running = {
        row.label: (row, items)
        for row, items in entries
        if not row.control and row.status == "complete" and headline in items
    }
    if not running:
        return set()
    best = min(running, key=lambda label: (sign * (running[label][0].value(headline) or 0), label))
    p_values, leaders = {}, {best}
    for label, (_, items) in running.items():
        difference = paired_difference(items[headline], running[best][1][headline]).document
        p_value = difference.p_value()
        if p_value is not None:
            p_values[label] = p_value
        elif difference.mean == 0:
            leaders.add(label)
    return leaders | {label for label, p_value in holm(p_values).items() if p_value >= LEVEL}
