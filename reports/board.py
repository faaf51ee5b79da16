"""The board: the records of one experiment as rows, one for each method, config and arm."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from bench.answering.retune import Retune
from bench.data.arms import irrelevant_percent
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import BenchError, nearest
from bench.records import imported
from bench.records.comparability import differences, listed
from bench.records.schema import (
    BoardEntry,
    BoardRecord,
    RunRecord,
    TuningRecord,
    documents_seen,
    first_probe,
)
from bench.records.store import read_board, read_run, read_tuning
from bench.settings import dotted
from reports.alarms import remarks
from reports.prices import OfDocument, break_even, is_resolved, of_document
from reports.ranks import Standing, compare, holm
from reports.rows import (
    CEILING,
    FIRST,
    FLOOR,
    Entries,
    Group,
    Items,
    Row,
    entry_of,
    find,
    find_arm,
    make_row,
    read_items,
    row_of,
)
from reports.spread import Run, Runs, shares
from reports.statistics import (
    ErrorKind,
    Estimate,
    Item,
    error_kind,
    paired_difference,
    ratio,
    run_means,
    stream_means,
    summarize,
)

REFERENCE = "uniform"
"""The default reference: the method from which paired differences are taken."""

STEPS = ("learning_rate", "steps_per_document")
"""Settings that every gradient method has: labels do not show them if they differ without."""

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
    runs: Path = field(compare=False)
    """Folder of its own records; a row has that of its own (:attr:`reports.rows.Row.runs`)."""
    prompt: PromptFormat = PLAIN
    retune: Retune | None = None
    """What every method does before it answers at a probe."""
    first_documents: int | None = None
    """Number of first documents of a stream, if the questions are on these only."""
    planned: tuple[str, ...] = ()
    """The method of each entry of the experiment, those that are left out included."""
    others: tuple[Board, ...] = ()
    """The boards of the same methods on the experiment's other pairs of dataset and base model."""

    @property
    def error(self) -> ErrorKind:
        """The error to show: SE_stream, or SE_doc if there is a single stream and so no SE_stream."""
        return error_kind(len(self.streams))

    @property
    def floor(self) -> Row | None:
        """The row of the unadapted model on the streams themselves, one's own if there is one; None without one."""
        return row_of(self.rows, FLOOR)

    @property
    def f1_name(self) -> str:
        """What the F1 of this board is called, so that nobody takes it for that of another kind of board."""
        return "F1" if self.first_documents is None else f"F1 (first {self.first_documents})"


def load(runs: Path, experiment: str | None = None) -> tuple[list[Group], BoardRecord]:
    """The records of an experiment (default: the most recent one) grouped into rows, and its board record.

    Raises:
        BenchError: there is no such board, a record is missing or unreadable, or the records are not comparable.
    """
    board = read_board(runs, experiment)
    records = [read_run(runs / run_id) for run_id in board.runs]
    if not records:
        raise BenchError(f"The experiment {board.experiment} has no runs. Give it at least one method.")
    _check_comparable(records)
    own = labelled(grouped(records, runs), board.entries)
    others, remarks = _imported(runs, board.experiment, own)
    return [*own, *others], board.model_copy(update={"remarks": [*board.remarks, *remarks]})


def grouped(records: Iterable[RunRecord], runs: Path) -> list[Group]:
    """The records by method, config and arm, without labels."""
    by_row: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        spec = record.spec
        by_row[spec.method, json.dumps(spec.config, sort_keys=True), spec.arm].append(record)
    return [Group(method, json.loads(config), arm, tuple(rs), runs) for (method, config, arm), rs in by_row.items()]


def labelled(groups: Sequence[Group], entries: Sequence[BoardEntry] = ()) -> list[Group]:
    """The groups with their labels; without the entries of a board no setting counts as set by hand."""
    if not entries:
        ids = [record.id for group in groups for record in group.records]
        entries = [BoardEntry(method="", runs=ids, tuning=None, hand_set=[])]
    labels = _labels(groups, entries)
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


def _imported(runs: Path, experiment: str, own: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """The imported rows of a board that fit to its own rows, and remarks on them and on those that do not fit."""
    records = [record for group in own for record in group.records]
    streams = {record.spec.stream for record in records}
    key, groups, remarks = records[0].comparability_key, [], []
    for row in imported.rows(runs, experiment):
        if any(record.comparability_key != key for record in row.records):
            what = listed(differences(row.records[0].spec, records[0].spec))
            remarks.append(f"The imported row {row.folder.name} is left out: it differs from the board in {what}.")
        elif any((runs / run_id).is_dir() for run_id in row.board.runs):
            remarks.append(f"The imported row {row.folder.name} is left out: its cells were run here since.")
        elif unlike([*records, *row.records]):
            remarks.append(f"The imported row {row.folder.name} is left out: the board is on other documents since.")
        else:
            remarks += [f"Overlap in the imported row {row.folder.name}: {found}" for found in row.board.overlaps]
            for group in grouped((record for record in row.records if record.spec.stream in streams), row.folder):
                entry = entry_of(group, row.board.entries)
                label = f"{_label(group, [*own, group], entry.hand_set)} [imported {row.mark}]"
                groups.append(replace(group, label=label, imported=row))
    if groups:
        facts = dict.fromkeys(f"{group.imported.mark}, {_origin(group.records)}" for group in groups if group.imported)
        remarks.append(
            f"Imported rows were measured by others ({'; '.join(facts)}). Their scores of answers follow from "
            f"their predictions and this board's gold answers; the rest, likelihoods too, is as reported."
        )
    return groups, remarks


def _origin(records: Sequence[RunRecord]) -> str:
    """The commit and the machine of runs, as far as they say."""
    of_runs = [record.provenance for record in records]
    commits = {str(of["commit"])[:8] + "-dirty" * bool(of.get("dirty")) for of in of_runs if of.get("commit")}
    machines = {str(machine) for of in of_runs if (machine := of.get("gpu") or of.get("cpu"))}
    return " on ".join([f"commit {' and '.join(sorted(commits)) or 'unknown'}", *sorted(machines)])


def build(runs: Path, experiment: str | None = None, reference: str | None = None, is_required: bool = True) -> Board:
    """The board of an experiment (default: the most recent one): rows by headline score, controls last.

    ``reference`` is the label or the method of the row from which paired differences are taken, by default the first
    complete row of :data:`REFERENCE`, or else of closed_book, if there is one. The default takes its place, with a
    remark, on the boards of other pairs, and on this one unless it ``is_required``.

    Raises:
        BenchError: as :func:`load`, a tuning record is missing or unreadable, or ``reference`` is no complete row.
    """
    groups, record = load(runs, experiment)
    first = groups[0].records[0]
    streams = tuple(sorted({run.spec.stream for group in groups for run in group.records}))
    tuning = read_tuning(runs, record.tuning)
    entries = []
    for group in groups:
        items = read_items(group)
        if group.imported is None:
            row = make_row(group, items, len(streams), record, tuning)
        else:
            theirs = group.imported.board
            row = make_row(group, items, len(streams), theirs, read_tuning(group.runs, theirs.tuning))
        entries.append((row, items))
    headline: Headline = "f1" if any("f1" in row.scores for row, _ in entries) else "token_nll"
    standings = _standings(entries, headline, error_kind(len(streams)))
    reference_row, replaced = _reference([row for row, _ in entries], reference, record.experiment, is_required)
    of_reference = of_document(reference_row.runs, reference_row.records) if reference_row is not None else {}
    rows = [
        replace(
            row,
            standing=standings.get(row.label),
            spread=shares(run_means(items[headline])) if headline in items else {},
            scores={
                **row.scores,
                **_difference(row, items, entries, headline, reference_row),
                **_gain(row, items, entries),
                **_relative(row, items, entries),
            },
            costs={**row.costs, **_break_even(row, reference_row, of_reference)},
        )
        for row, items in entries
    ]
    p_values = _p_values(rows, headline, error_kind(len(streams)))
    rows = [replace(row, p_vs_reference=p_values.get(row.label)) for row in rows]
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
        reference=REFERENCE if reference_row is None else reference_row.label,
        rows=tuple(rows),
        tuning=tuple(tuning),
        remarks=(
            *replaced,
            *overlaps,
            *record.remarks,
            *_noted_remarks(groups),
            *remarks(entries, tuning),
            *_spread_remarks(rows),
            *_hand_set_remarks(rows),
            *_provenance_remarks(groups),
        ),
        runs=runs,
        prompt=first.spec.prompt,
        retune=first.spec.retune,
        first_documents=_first_documents(groups),
        planned=tuple(entry.method for entry in record.entries),
        others=tuple(build(runs, name, reference, is_required=False) for name in record.bases),
    )


Named = TypeVar("Named", Row, Group)


def named(rows: Sequence[Named], name: str, experiment: str) -> Named:
    """The row with this label or, if there is none, the only row of this method on the stream itself.

    Raises:
        BenchError: there is no such row, or there are several; the message names the nearest ones.
    """
    found = [row for row in rows if row.label == name]
    found = found or [row for row in rows if (row.method, row.arm) == (name, "stream")]
    if not found:
        raise BenchError(f"There is no row {name!r} on the board {experiment}.{nearest(name, [r.label for r in rows])}")
    if len(found) > 1:
        labels = ", ".join(repr(row.label) for row in found)
        raise BenchError(f"{name} has {len(found)} rows on the board {experiment}: name one of {labels}.")
    return found[0]


def _reference(
    rows: Sequence[Row], name: str | None, experiment: str, is_required: bool
) -> tuple[Row | None, list[str]]:
    """The row from which paired differences are taken, and a remark if it is not that of the name."""
    complete = [row for row in rows if (row.arm, row.status) == ("stream", "complete")]
    default = next((row for of in (REFERENCE, "closed_book") for row in complete if row.method == of), None)
    if name is None:
        return default, []
    try:
        row = named(rows, name, experiment)
        if row.status != "complete":
            raise BenchError(f"{row.title} is not complete on the board {experiment}: name another --reference.")
    except BenchError:
        if is_required:
            raise
        taken = "not shown" if default is None else f"from {default.label}"
        return default, [f"Differences are {taken}, since {name} has no complete row."]
    return row, []


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
            unanswered.append(f"{group.label} ({count} of {sum(summary.questions for summary in summaries)})")
        noted += [remark for record in group.records for remark in record.notes.get("remarks", ())]
    if unanswered:
        noted.append(
            f"Questions that did not fit into the model's window are scored as empty answers, and are not in answer "
            f"NLL: {', '.join(unanswered)}."
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
    protocols = {record.spec.protocol: record.id for record in records}
    if len(protocols) > 1:
        (old, run), *_, (new, _) = sorted(protocols.items())
        raise BenchError(
            f"{run} was run under protocol {old}, whose scores cannot be compared with those of protocol {new}. "
            f"Run the experiment again: it runs only what is missing."
        )
    first = records[0]
    for other in records:
        if other.comparability_key != first.comparability_key:
            raise BenchError(
                f"{first.id} and {other.id} cannot be on one board; they differ in "
                f"{listed(differences(first.spec, other.spec))}. "
                f"Run the experiment again."
            )
    if two := unlike(records):
        raise BenchError(
            f"{two[0].id} and {two[1].id} saw different documents under the name {two[0].spec.stream}. "
            f"Run the experiment again."
        )


def unlike(records: Iterable[RunRecord]) -> tuple[RunRecord, RunRecord] | None:
    """Two records in one place (``CellSpec.place``) with other documents, questions or answers; None if all agree."""
    first: dict[tuple[str, str, int], RunRecord] = {}
    for record in records:
        earlier = first.setdefault(record.spec.place, record)
        if earlier.spec.stream_hash != record.spec.stream_hash:
            return earlier, record
    return None


def _labels(groups: Sequence[Group], plans: Sequence[BoardEntry]) -> list[str]:
    """The method with the settings that distinguish its rows: hand-set ones, and others only if they are needed."""
    every = [list(dotted(group.config)) for group in groups]
    hand_set = [entry_of(group, plans).hand_set for group in groups]
    fixed = [
        [name for name in names if name in of_row or name not in STEPS]
        for names, of_row in zip(every, hand_set, strict=True)
    ]
    labels = [_label(group, groups, names) for group, names in zip(groups, every, strict=True)]
    for settings in (fixed, hand_set, [[name for name in names if name not in STEPS] for names in hand_set]):
        shorter = [_label(group, groups, names) for group, names in zip(groups, settings, strict=True)]
        labels = [new if shorter.count(new) == 1 else old for new, old in zip(shorter, labels, strict=True)]
    return labels


def _label(group: Group, groups: Sequence[Group], shown: Sequence[str]) -> str:
    """The label of a row with some of its settings.

    It omits values that most rows of the method share or, if there is none, values that are off.
    """
    configs = [dotted(other.config) for other in groups if other.method == group.method]
    settings = []
    for key, value in dotted(group.config).items():
        values = [config[key] for config in configs if key in config]
        common = [other for other in values if 2 * values.count(other) > len(configs)]
        omitted = common[0] == value if common else value is False or value == "none"
        if key in shown and not omitted:
            settings.append(f"{key}={'null' if value is None else value}")
    label = f"{group.method} ({', '.join(settings)})" if settings else group.method
    return label if group.arm == "stream" else f"{label} on {group.arm}"


Scores = dict[str, tuple[Estimate, ...]]


def _difference(row: Row, items: Items, entries: Entries, headline: Headline, reference: Row | None) -> Scores:
    """The paired difference from the reference. Other arms score other documents, so only their answers are paired."""
    other = next((of for candidate, of in entries if candidate is reference), None)
    paired = row.status == "complete" and (headline == "f1" or row.arm == "stream")
    if other is None or other is items or not paired or headline not in items:
        return {}
    return {f"{headline}_vs_reference": tuple(paired_difference(items[headline], other[headline]))}


def _p_values(rows: Sequence[Row], headline: Headline, kind: ErrorKind) -> dict[str, float]:
    """The adjusted p-value of the difference of each row that competes from the reference."""
    of_rows = [(row.label, row.estimate(f"{headline}_vs_reference", kind)) for row in rows if row.standing is not None]
    p_values = {label: estimate.p_value() for label, estimate in of_rows if estimate is not None}
    return holm({label: p_value for label, p_value in p_values.items() if p_value is not None})


def _gain(row: Row, items: Items, entries: Entries) -> Scores:
    """Knowledge gain = (method - placebo) / (gold in prompt - placebo) in F1, if both controls are complete.

    The denominator must be significantly above 0 (over documents).
    """
    placebo, gold = find_arm(entries, row, "placebo"), find(entries, CEILING)
    if row.control or row.status != "complete" or placebo is None or gold is None or "f1" not in items:
        return {}
    (method_f1, placebo_f1), gold_f1 = _same_runs(items["f1"], placebo["f1"]), stream_means(gold["f1"])
    gains = {run: f1 - placebo_f1[run] for run, f1 in method_f1.items()}
    ranges = {run: gold_f1[run.stream] - f1 for run, f1 in placebo_f1.items()}
    return {"knowledge_gain": (ratio(gains, ranges),)} if _is_above(gold["f1"], placebo["f1"]) else {}


def _same_runs(a: Sequence[Item], b: Sequence[Item]) -> tuple[Runs, Runs]:
    """The means of the runs of two arms or, if one has fewer seeds, of their streams."""
    runs = run_means(a), run_means(b)
    if runs[0].keys() == runs[1].keys():
        return runs
    left, right = ({Run(stream): mean for stream, mean in stream_means(items).items()} for items in (a, b))
    return left, right


def _relative(row: Row, items: Items, entries: Entries) -> Scores:
    """F1 as a share of the method's own: at the first probe, on the same questions, or without irrelevant documents.

    A base must be significantly above closed book (without closed book, above 0), over documents: a method that has
    learned nothing keeps all of it.
    """
    inserted = irrelevant_percent(row.arm) > 0
    own = find_arm(entries, row, "stream") if inserted else items
    base, floor = ((of or {}).get("f1" if inserted else FIRST, ()) for of in (own, find(entries, FLOOR)))
    if row.status != "complete" or "f1" not in items or not base:
        return {}
    return {"relative_f1": (ratio(*_same_runs(items["f1"], base)),)} if _is_above(base, floor) else {}


def _is_above(items: Sequence[Item], floor: Sequence[Item]) -> bool:
    """True if the mean is significantly above that of the floor, over documents, or above 0 without one."""
    interval = (paired_difference(items, floor) if floor else summarize(items)).document.interval()
    return interval is not None and interval[0] > 0


def _first_documents(groups: Sequence[Group]) -> int | None:
    """Number of the first documents whose questions are asked at every probe; None if all questions are asked."""
    records = [record for group in groups for record in group.records if record.spec.questions == "first"]
    sizes = [record.summary.documents for record in records if record.summary]
    return documents_seen(first_probe(records[0].spec.probes), max(sizes, default=0)) if records else None


def _standings(entries: Entries, headline: Headline, kind: ErrorKind) -> dict[str, Standing]:
    """The standing of each row that competes, by label. Controls and incomplete rows do not."""
    scored = {
        row.label: items[headline]
        for row, items in entries
        if not row.control and row.status == "complete" and headline in items
    }
    return compare(scored, kind, sign=1 if headline == "f1" else -1)


def _break_even(row: Row, reference: Row | None, of_reference: OfDocument) -> dict[str, float]:
    """The number of documents from which on, or up to which, the row is cheaper than the reference, if there is one.

    ``break_even_unclear`` stands for it if it is not clear which of the two costs more for a document.
    """
    if reference is None or row.label == reference.label:
        return {}
    is_clear = is_resolved(of_document(row.runs, row.records), of_reference)
    return break_even(row.costs, reference.costs) if is_clear else {"break_even_unclear": 1.0}


def _spread_remarks(rows: Sequence[Row]) -> list[str]:
    """The shares of streams, seeds and orders in the spread of each row that has several seeds or orders."""
    texts = [
        f"{row.label}: {', '.join(f'{name} {share:.0%}' for name, share in row.spread.items())}"
        for row in rows
        if row.spread
    ]
    return [f"Shares in the variance of a run's score: {'; '.join(texts)}."] if texts else []


def _hand_set_remarks(rows: Sequence[Row]) -> list[str]:
    """The settings that the experiment sets by hand, by row."""
    texts = [f"{row.label}: {_grouped(row.hand_set)}" for row in rows if row.hand_set and row.arm == "stream"]
    return [f"Hand-set: {'; '.join(texts)}."] if texts else []


def _grouped(names: Sequence[str]) -> str:
    """Names of settings; the settings of a group are counted: "k, training (17 settings)"."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[name.partition(".")[0]].append(name)
    return ", ".join(f"{group} ({len(of)} settings)" if len(of) > 1 else of[0] for group, of in groups.items())
