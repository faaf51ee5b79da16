"""The two sides of a figure: our scores from the records of a board, and the published values, by method and place."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from bench.data.arms import irrelevant_percent
from bench.errors import BenchError
from bench.help import citations
from bench.help.citations import Paper
from bench.records.schema import RunRecord
from bench.records.store import read_answers, read_documents
from bench.settings import dotted
from reports.arm_plots import Family, arms_of, families
from reports.board import Board
from reports.origins import costs_of, summary_of
from reports.probes import f1_by_documents
from reports.published import Value
from reports.reproduction.figure import Along, Figure, Method
from reports.rows import FLOOR, Row, run_of
from reports.spread import Run, Runs
from reports.statistics import Estimate, Item, mean_over_streams, ratio_by_run, run_items, scaled, stream_means

RELATIVE = "relative_f1"
CHANGE = "f1_change"
FROM_RECORDS: Mapping[str, Callable[[Path, RunRecord], float | None]] = {
    "observe_seconds": lambda _, record: costs_of(record).observe.seconds,
    "observe_peak_bytes": lambda _, record: float(costs_of(record).observe.peak_bytes),
    "answer_flops": lambda runs, record: _per_answer(runs, record),
    "reconstruction_perplexity": lambda _, record: _reconstruction(record),
    "completion_perplexity": lambda runs, record: _completion(runs, record),
}
"""What a figure can show of a run, besides the scores in its summary."""


class Unit(NamedTuple):
    """How a figure shows a score of ours."""

    name: str
    factor: float = 100.0
    """What the score is multiplied with."""
    digits: int = 1
    theirs: str = "percent"
    """How a published value in the same unit names it."""

    def differing(self, published: str) -> tuple[str, str]:
        """The unit of published values and ours, if they differ; else twice ""."""
        own = self.name.rpartition("(")[2].rstrip(")")
        return ("", "") if published.startswith(self.theirs) else (published, own)


UNITS: Mapping[str, Unit] = {
    "f1": Unit("F1 (%)"),
    "em": Unit("EM (%)"),
    "f1_shortest": Unit("F1 (%)"),
    "em_prefix": Unit("EM (%)"),
    RELATIVE: Unit("relative F1 (%)"),
    CHANGE: Unit(f"change of F1 relative to {FLOOR} (%)", digits=0),
    "bits_per_byte": Unit("bits per byte", 1, 3, "bits per byte"),
    "reconstruction_perplexity": Unit("perplexity after reading", 1, 2, "ppl"),
    "completion_perplexity": Unit("perplexity of what follows", 1, 2, "ppl"),
    "observe_seconds": Unit("time of observing a stream (min)", 1 / 60, 2, "min"),
    "observe_peak_bytes": Unit("peak memory in observing (GB)", 1e-9, 2, "GB"),
    "answer_flops": Unit("operations per question (GFLOP)", 1e-9, 3, "GFLOP"),
}
"""The scores that a figure can show, in the unit of the papers."""
NO_PLACE = 0.0
"""The place of what is not along an axis."""

Line = Mapping[float, Sequence[Item]]
"""One of our methods: by place, an item of each run."""


@lru_cache(maxsize=1)
def papers() -> Mapping[str, Paper]:
    """The papers of ``CITATIONS.bib`` by key."""
    return citations.read()


@dataclass(frozen=True)
class Ours:
    """One of our boards, for one score of a figure."""

    board: Board
    lines: Mapping[str, Line]
    """By the name in the figure, in the figure's unit."""
    estimates: Mapping[str, Mapping[float, Estimate]]
    left_out: tuple[str, ...]
    """Methods without a line, each with the reason."""
    experiment: str = ""
    """The board's experiment, if the figure has another board with this dataset and base model."""

    @property
    def name(self) -> str:
        """What was run: dataset, base model, number of streams, and the experiment if it takes that to be unique."""
        count = len(self.board.streams)
        streams = f"{count} stream{'s' * (count > 1)}"
        return ", ".join(filter(None, (self.board.dataset, self.board.model, streams, self.experiment)))

    @property
    def place(self) -> str:
        """The dataset and the base model, beside published ones."""
        experiment = f" ({self.experiment})" if self.experiment else ""
        return f"here: {self.board.dataset}, {self.board.model}{experiment}"


@dataclass(frozen=True)
class Theirs:
    """The published values on one dataset and base model, for one score of a figure."""

    dataset: str
    base: str
    lines: Mapping[str, Mapping[float, Value]]

    @property
    def papers(self) -> str:
        """The papers, in a few words."""
        keys = dict.fromkeys(value.paper for line in self.lines.values() for value in line.values())
        return " and ".join(papers()[key].label for key in keys)

    @property
    def place(self) -> str:
        """The dataset and the base model."""
        return ", ".join(part for part in (self.dataset, self.base) if part)

    @property
    def name(self) -> str:
        """The papers, the dataset and the base model."""
        return f"{self.papers}: {self.place}"

    @property
    def unit(self) -> str:
        """The unit of the values."""
        return next(value.unit for line in self.lines.values() for value in line.values())


def ours(figure: Figure, score: str, board: Board) -> Ours:
    """The figure's methods on a board: a score of each run, at each place."""
    read = _reader(figure.along, board)
    lines: dict[str, Line] = {}
    estimates: dict[str, Mapping[float, Estimate]] = {}
    left_out = []
    for name, row in rows_of(board, figure.methods).items():
        line = {} if row is None else _line(score, read(row, score), UNITS[score].factor)
        if row is None or row.status != "complete":
            left_out.append(f"{name} ({'not run at this scale' if row is None else row.note})")
        elif score == RELATIVE and not any(RELATIVE in arm.scores for arm in arms_of(board, row)):
            failed = ", ".join(f"{arm.arm}: {arm.note}" for arm in arms_of(board, row) if arm.note)
            low = f"its F1 at the start is not above {FLOOR.replace('_', ' ')}"
            left_out.append(f"{name} ({failed or low})")
        elif not line:
            bare = score == CHANGE and board.floor is None
            left_out.append(f"{name} ({f'without {FLOOR}' if bare else 'without a score'})")
        else:
            lines[name] = line
            estimates[name] = {x: _estimate(board, row, score, items, figure.along) for x, items in line.items()}
    places = {x for line in lines.values() for x in line}
    for name, line in lines.items():
        if lacking := sorted(places - line.keys()):
            left_out.append(f"{name} at {', '.join(f'{x:g}' for x in lacking)} (not complete)")
    return Ours(board, lines, estimates, tuple(left_out))


def rows_of(board: Board, methods: Mapping[str, Method]) -> dict[str, Row | None]:
    """The row of each of our methods in the figure, on its arm; None if it was not run.

    Of several rows with its settings it is the experiment's first one that no earlier method of the figure has.
    """
    found: dict[str, Row | None] = {}
    for name, method in methods.items():
        if method.method is not None:
            wanted = dotted(method.config).items()
            rows = [row for row in board.rows if (row.method, row.arm) == (method.method, method.arm)]
            fitting = [row for row in rows if row not in found.values() and wanted <= dotted(row.config).items()]
            found[name] = min(fitting, key=lambda row: (not row.entries, row.entries), default=None)
    return found


def theirs(figure: Figure, score: str) -> list[Theirs]:
    """The published values of one score, by dataset and base model, in the order of the file.

    Raises:
        BenchError: two values have the same place, or a column does not end in one.
    """
    names = {published: name for name, method in figure.methods.items() for published in method.published}
    other = {(source.paper, source.table): source.datasets for source in figure.published}
    column = figure.scores[score]
    groups: dict[tuple[str, str], dict[str, dict[float, Value]]] = defaultdict(lambda: defaultdict(dict))
    for value in filter(lambda value: figure.score(value.column) == score, figure.values()):
        dataset = other[value.paper, value.table_or_figure].get(value.dataset, value.dataset)
        line = groups[dataset, value.base][names[value.row]]
        try:
            place = _place(value.column.removeprefix(column)) if figure.along else NO_PLACE
        except ValueError:
            raise BenchError(
                f"{figure.name}: scores.{score}: the column {value.column!r} has no place after {column!r}: give its "
                "beginning, up to the number."
            ) from None
        if place in line:
            raise BenchError(
                f"{figure.name}: {names[value.row]}: two published values are on {dataset} in one place, "
                f"{value.name} of {value.paper} and {line[place].name} of {line[place].paper}: leave one out."
            )
        line[place] = value
    return [Theirs(dataset, base, lines) for (dataset, base), lines in groups.items()]


def _place(text: str) -> float:
    """The number in the rest of a column's name: "400", "20%", "16K"."""
    number = text.strip().rstrip("%")
    return 1024 * float(number[:-1]) if number.endswith("K") else float(number)


Values = Mapping[float, Runs]
"""A score of each run, by place."""


def _reader(along: Along | None, board: Board) -> Callable[[Row, str], Values]:
    """How the values of a row along this axis are found."""
    if along is None:
        return lambda row, score: {NO_PLACE: _change(board, row) if score == CHANGE else _by_run(row, score)}
    if along == "documents":
        return lambda row, score: f1_by_documents(row)
    of = families(board)

    def places(family: Family) -> list[tuple[float, Row]]:
        if along == "context":
            return [(float(documents), row) for documents, row in family.contexts()]
        return [(float(irrelevant_percent(arm)), row) for arm, row in family.rows.items() if _is_mixed(arm)]

    def read(row: Row, score: str) -> Values:
        family = next((one for one in of if row in one.rows.values()), None)
        found = sorted(places(family), key=lambda pair: pair[0]) if family else []
        whole = ((x, other) for x, other in found if other.status == "complete")
        return {x: _by_run(other, "f1" if score == RELATIVE else score) for x, other in whole}

    return read


def _is_mixed(arm: str) -> bool:
    return arm == "stream" or irrelevant_percent(arm) > 0


def _by_run(row: Row, score: str) -> Runs:
    """A score, or a cost, of each run of a row."""
    values = {run_of(record): _value(row.runs, record, score) for record in row.records}
    return {run: value for run, value in sorted(values.items()) if value is not None}


def _change(board: Board, row: Row) -> Runs:
    """F1 over that of the unadapted model, minus 1, on each stream; {} without that model, or if its F1 is 0."""
    own, bare = (_by_stream(_by_run(one, "f1")) if one else {} for one in (row, board.floor))
    if own.keys() != bare.keys() or not sum(bare.values()):
        return {}
    return {run: value - 1 for run, value in ratio_by_run(own, bare).items()}


def _per_answer(runs: Path, record: RunRecord) -> float | None:
    """Operations per answer, at all probes and with those on the anchors; None without any."""
    answers = len(read_answers(runs, record.id))
    return costs_of(record).answer.flops / answers if answers else None


def _reconstruction(record: RunRecord) -> float | None:
    """Perplexity of the texts right after they were observed; None if they were not read again."""
    nll = summary_of(record).token_nll_after
    return None if nll is None else math.exp(nll)


def _completion(runs: Path, record: RunRecord) -> float | None:
    """Perplexity of all segments but the first of each document, before they are observed; None if there are none."""
    later = [event for event in read_documents(runs, record.id) if event.segment and event.tokens]
    if not later or any(event.nll is None for event in later):
        return None
    return math.exp(sum(event.nll or 0.0 for event in later) / sum(event.tokens for event in later))


def _value(runs: Path, record: RunRecord, score: str) -> float | None:
    if score in FROM_RECORDS:
        return FROM_RECORDS[score](runs, record)
    value: float | None = getattr(record.summary, score)
    return value


def _line(score: str, values: Values, factor: float) -> Line:
    """The items at each place, of the same runs everywhere: if some have fewer seeds, of their streams."""
    known = {x: by_run for x, by_run in sorted(values.items()) if by_run}
    if any(by_run.keys() != next(iter(known.values())).keys() for by_run in known.values()):
        known = {x: _by_stream(by_run) for x, by_run in known.items()}
    if score == RELATIVE and known:
        base = known[min(known)]
        if not sum(base.values()):
            return {}
        known = {x: ratio_by_run(by_run, base) for x, by_run in known.items()}
    return {x: run_items({run: factor * value for run, value in by_run.items()}) for x, by_run in known.items()}


def _by_stream(by_run: Runs) -> Runs:
    return {Run(stream): mean for stream, mean in stream_means(run_items(by_run)).items()}


def _estimate(board: Board, row: Row, score: str, items: Sequence[Item], along: Along | None) -> Estimate:
    """The mean with the board's error where the row has it, else with that over streams."""
    own = row.estimate(score, board.error) if along is None else None
    return scaled(own, UNITS[score].factor) if own else mean_over_streams(items)
