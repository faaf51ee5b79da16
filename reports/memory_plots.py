"""Plots of what is kept and found again: F1 by how much was seen, by how long ago it was, and by how much is given."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import RunRecord, TuningRecord
from bench.records.store import read_answers, read_board, read_run, read_tuning
from reports.board import CEILING, Board
from reports.rows import FLOOR, Row
from reports.statistics import Estimate, Item, stream_error, stream_means
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    Drawings,
    band,
    error,
    from_zero,
    heading,
    log_ticks,
    name_axes,
    open_circles,
    panels,
    readable,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("f1_by_bank_size", "retention_by_lag", "f1_by_k")

FIRST = 4
"""Width of the first bin of lags, in documents; each further one ends at twice the lag at which it begins."""


class Asked(NamedTuple):
    """A question as it was asked at one probe."""

    stream: str
    seen: int
    """Documents observed by then."""
    lag: int
    """Those of them that came after the question's own."""
    f1: float
    recall: float | None


Points = Sequence[tuple[float, Estimate]]
"""Means over streams, by place on the x axis."""


@dataclass(frozen=True)
class Line:
    """What a panel shows of one method."""

    label: str
    f1: Points
    recall: Points = ()
    """Where the method names the documents that it gives."""
    chosen: float | None = None
    """The place that tuning chose, where these are its trials on the validation streams."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots that have something to show: the first two where there are several probes."""
    asked = by_row(board, runs)
    sizes = {label: Line(label, *_scores(some, lambda one: one.seen)) for label, some in asked.items()}
    ks = by_k(board, runs)
    draw: dict[str, Callable[[], Figure]] = {}
    if asked:
        draw["f1_by_bank_size"] = lambda: _bank_sizes(board, sizes)
        draw["retention_by_lag"] = lambda: _lags(board, asked)
    if ks:
        draw["f1_by_k"] = lambda: _by_k(ks)
    return draw


def by_row(board: Board, runs: Path) -> dict[str, list[Asked]]:
    """The questions of all probes by the title of the row, of those rows that were probed more than once.

    The ceiling and control arms are left out: what they are given does not depend on what was seen.
    """
    found = {}
    for row in board.rows:
        if row.arm != "stream" or row.method == CEILING or not row.records:
            continue
        if len([probe for probe in row.records[0].spec.probes if probe > 0]) > 1:
            asked = [one for record in row.records for one in _asked(runs, record)]
            if asked:
                found[title(row)] = asked
    return found


def _asked(runs: Path, record: RunRecord) -> Iterable[Asked]:
    documents = record.summary.documents if record.summary else 0
    for event in read_answers(runs, record.id):
        if event.set == "stream":
            seen = math.ceil(event.probe * documents)
            yield Asked(record.spec.stream, seen, seen - 1 - event.position, event.f1, event.recall)


def _scores(asked: Iterable[Asked], place: Callable[[Asked], float]) -> tuple[Points, Points]:
    """Mean F1 and mean recall of the questions at each place: first within streams, then over them."""
    found: dict[str, dict[float, list[Item]]] = {"f1": defaultdict(list), "recall": defaultdict(list)}
    for one in asked:
        for name, value in (("f1", one.f1), ("recall", one.recall)):
            if value is not None:
                found[name][place(one)].append(Item(one.stream, "", "", value))
    f1, recall = (
        [(x, stream_error([*stream_means(items).values()])) for x, items in sorted(by_place.items())]
        for by_place in found.values()
    )
    return f1, recall


def lag_bins(documents: int) -> list[int]:
    """Where the bins of lags begin in a stream of so many documents, and where the last one ends: 0, 4, 8, 16, ..."""
    edges = [0]
    while (following := 2 * edges[-1] or FIRST) < documents:
        edges.append(following)
    return [*edges, documents]


def _lags(board: Board, asked: Mapping[str, Sequence[Asked]]) -> Figure:
    """All probes together; a point stands in the (logarithmic) middle of its bin."""
    edges = lag_bins(max(one.seen for some in asked.values() for one in some))
    middles = [math.sqrt(max(low, 1) * high) for low, high in itertools.pairwise(edges)]

    def place(one: Asked) -> float:
        return middles[sum(one.lag >= edge for edge in edges[1:-1])]

    lines = {label: Line(label, *_scores(some, place)) for label, some in asked.items()}
    name = "documents seen since the question's own, all probes together"
    return _panels(board, lines, name, {max(edge, 1): str(edge) for edge in edges[:-1]})


def _bank_sizes(board: Board, lines: Mapping[str, Line]) -> Figure:
    sizes = sorted({x for line in lines.values() for x, _ in line.f1})
    return _panels(board, lines, "documents seen, all of which are asked about", {size: f"{size:g}" for size in sizes})


def _panels(board: Board, lines: Mapping[str, Line], x: str, ticks: Mapping[float, str]) -> Figure:
    """One small panel for each method on the same axes, with the unadapted model's scores, if any, dashed."""
    floor = next((title(row) for row in board.rows if row.method == FLOOR and row.arm == "stream"), None)
    beside = lines.get(floor or "")
    shown = [line for line in lines.values() if line is not beside] or list(lines.values())
    figure, grid = panels(len(shown))
    for axes, line in zip(grid, shown, strict=True):
        if beside is not None:
            axes.plot(*_xy(beside.f1), color=GREY, linewidth=0.8, linestyle=DASHED)
        if line.recall:
            axes.plot(*_xy(line.recall), color=ORANGE, linewidth=0.8)
        band(axes, [x for x, _ in line.f1], [estimate for _, estimate in line.f1])
        heading(axes, line.label)
    log_ticks(grid[0], [*ticks], [*ticks.values()])
    from_zero(grid[0])
    notes = [error(board)]
    notes += [] if beside is None else [f"dashed: {readable(FLOOR)}"]
    notes += ["orange: recall"] if any(line.recall for line in shown) else []
    name_axes(figure, f"{x} ({'; '.join(notes)})", "answer F1")
    return figure


def by_k(board: Board, runs: Path) -> list[Line]:
    """F1 and recall by ``k``: of rows that differ in nothing else or, where there are none, of tuning trials.

    Raises:
        BenchError: a tuning record, or the run of a trial, is missing or unreadable.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.arm == "stream" and "f1" in row.scores and _is_k(row.config.get("k")):
            groups[row.method, _others(row.config)].append(row)
    found = [_line_of_rows(rows) for rows in groups.values() if len(rows) > 1]
    shown = {row.method for rows in groups.values() if len(rows) > 1 for row in rows}
    on_board = [row.method for row in board.rows]
    records = [r for r in read_tuning(runs, read_board(runs, board.experiment).tuning) if r.metric == "f1"]
    for record in sorted(records, key=lambda r: on_board.index(r.method) if r.method in on_board else len(on_board)):
        if record.method not in shown and (line := _line_of_trials(runs, record)):
            found.append(line)
    return found


def _is_k(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _others(config: Mapping[str, object]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "k"}, sort_keys=True)


def _line_of_rows(rows: Sequence[Row]) -> Line:
    by = sorted(rows, key=lambda row: row.config["k"])
    f1, recall = (
        [(row.config["k"], row.scores[name][0]) for row in by if name in row.scores] for name in ("f1", "recall")
    )
    return Line(readable(rows[0].method), f1, recall)


def _line_of_trials(runs: Path, record: TuningRecord) -> Line | None:
    """The trials that differ from the best one in ``k`` only."""
    scored = [trial for trial in record.trials if trial["score"] is not None and _is_k(trial["config"].get("k"))]
    if not scored:
        return None
    best = max(scored, key=lambda trial: trial["score"])
    alike = [trial for trial in scored if _others(trial["config"]) == _others(best["config"])]
    if len({trial["config"]["k"] for trial in alike}) < 2:
        return None
    f1: list[tuple[float, Estimate]] = []
    recall: list[tuple[float, Estimate]] = []
    for trial in sorted(alike, key=lambda trial: trial["config"]["k"]):
        summaries = [summary for name in trial["runs"] if (summary := read_run(runs / name).summary) is not None]
        for points, values in ((f1, [s.f1 for s in summaries]), (recall, [s.recall for s in summaries])):
            if known := [value for value in values if value is not None]:
                points.append((trial["config"]["k"], stream_error(known)))
    return Line(readable(record.method), f1, recall, best["config"]["k"])


def _by_k(lines: Sequence[Line]) -> Figure:
    """One small panel for each method; the ``k`` that was chosen is filled."""
    tuned = all(line.chosen is not None for line in lines)
    figure, grid = panels(len(lines), sharex=False)
    for axes, line in zip(grid, lines, strict=True):
        for some, colour in ((line.recall, ORANGE), (line.f1, BLUE)):
            open_circles(axes, [x for x, _ in some], [estimate for _, estimate in some], colour)
        for x, estimate in line.f1:
            if x == line.chosen:
                axes.plot(x, estimate.mean, "o", color=BLUE, markersize=4, zorder=3)
        log_ticks(axes, [x for x, _ in line.f1], [f"{x:g}" for x, _ in line.f1])
        heading(axes, line.label if line.chosen is None or tuned else f"{line.label}, validation")
    from_zero(grid[0])
    counts = sorted({estimate.n for line in lines for _, estimate in line.f1})
    streams = f"{' or '.join(map(str, counts))} {'validation ' if tuned else ''}stream{'s' * (counts != [1])}"
    notes = [f"± SE_stream over {streams}" if counts != [1] else f"{streams}: no error"]
    notes += ["filled: chosen"] if any(line.chosen for line in lines) else []
    notes += ["orange: recall"] if any(line.recall for line in lines) else []
    name_axes(figure, f"documents given with a question, k ({'; '.join(notes)})", "answer F1")
    return figure


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [estimate.mean for _, estimate in points]
