"""Plots of memory: F1 by documents seen, by lag since a question's document, and by documents per question (``k``)."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import RunRecord, TuningRecord, documents_seen
from bench.records.store import read_answers, read_run
from reports.board import CEILING, Board
from reports.rows import FLOOR, Row
from reports.statistics import Estimate, Item, mean_over_streams, stream_error
from reports.style import (
    DASHED,
    GREY,
    ORANGE,
    Drawings,
    Points,
    band,
    from_zero,
    heading,
    line,
    log_ticks,
    name_axes,
    open_circles,
    panels,
    readable,
    stream_error_name,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("f1_by_bank_size", "retention_by_lag", "f1_by_k")

FIRST_BIN = 4
"""Width of the first bin of lags, in documents. Each later bin ends at twice the lag at which it begins."""


class ProbeAnswer(NamedTuple):
    """The scores of a question at one probe."""

    stream: str
    seen: int
    """Documents observed before the probe."""
    lag: int
    """Documents observed after the question's own."""
    f1: float
    recall: float | None


@dataclass(frozen=True)
class Curves:
    """The curves of one method."""

    label: str
    f1: Points
    recall: Points = ()
    """Empty if the method names no documents."""
    chosen: float | None = None
    """The value that tuning chose, if the points are trials on the validation streams."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots that have data; the first two need several probes."""
    answers = by_row(board, runs)
    by_size = {
        label: Curves(label, *mean_scores(row_answers, lambda answer: answer.seen))
        for label, row_answers in answers.items()
    }
    by_k = curves_by_k(board, runs)
    draw: dict[str, Callable[[], Figure]] = {}
    if answers:
        draw["f1_by_bank_size"] = lambda: _bank_sizes(board, by_size)
        draw["retention_by_lag"] = lambda: _lags(board, answers)
    if by_k:
        draw["f1_by_k"] = lambda: _by_k(by_k)
    return draw


def by_row(board: Board, runs: Path) -> dict[str, list[ProbeAnswer]]:
    """The answers at all probes by the title of the row, for rows with several probes.

    The ceiling and control arms are left out: their input does not depend on the documents seen.
    """
    answers = {}
    for row in board.rows:
        if row.arm != "stream" or row.method == CEILING or not row.records:
            continue
        probes = [probe for probe in row.records[0].spec.probes if probe > 0]
        row_answers = [answer for record in row.records for answer in _answers(runs, record)] if len(probes) > 1 else []
        if row_answers:
            answers[title(row)] = row_answers
    return answers


def _answers(runs: Path, record: RunRecord) -> Iterable[ProbeAnswer]:
    documents = record.summary.documents if record.summary else 0
    for event in read_answers(runs, record.id):
        if event.set == "stream":
            seen = documents_seen(event.probe, documents)
            yield ProbeAnswer(record.spec.stream, seen, seen - 1 - event.position, event.f1, event.recall)


def mean_scores(answers: Iterable[ProbeAnswer], x: Callable[[ProbeAnswer], float]) -> tuple[Points, Points]:
    """Mean F1 and mean recall of the answers at each ``x``: first within streams, then over streams."""
    f1: dict[float, list[Item]] = defaultdict(list)
    recall: dict[float, list[Item]] = defaultdict(list)
    for answer in answers:
        f1[x(answer)].append(Item(answer.stream, "", "", answer.f1))
        if answer.recall is not None:
            recall[x(answer)].append(Item(answer.stream, "", "", answer.recall))
    return _points(f1), _points(recall)


def _points(items: Mapping[float, Sequence[Item]]) -> Points:
    return [(x, mean_over_streams(items[x])) for x in sorted(items)]


def lag_bins(documents: int) -> list[int]:
    """Edges of the bins of lags in a stream of ``documents`` documents: 0, 4, 8, 16, ..., ``documents``."""
    edges = [0]
    while (following := 2 * edges[-1] or FIRST_BIN) < documents:
        edges.append(following)
    return [*edges, documents]


def _lags(board: Board, answers: Mapping[str, Sequence[ProbeAnswer]]) -> Figure:
    """F1 by lag over all probes; a point is at the geometric middle of its bin."""
    edges = lag_bins(max(answer.seen for row_answers in answers.values() for answer in row_answers))
    middles = [math.sqrt(max(low, 1) * high) for low, high in itertools.pairwise(edges)]

    def middle(answer: ProbeAnswer) -> float:
        return middles[sum(answer.lag >= edge for edge in edges[1:-1])]

    curves = {label: Curves(label, *mean_scores(row_answers, middle)) for label, row_answers in answers.items()}
    name = "documents seen after the question's own, all probes pooled"
    return _panels(board, curves, name, {max(edge, 1): str(edge) for edge in edges[:-1]})


def _bank_sizes(board: Board, curves: Mapping[str, Curves]) -> Figure:
    sizes = sorted({x for method in curves.values() for x, _ in method.f1})
    name = "documents seen, with questions on all of them"
    return _panels(board, curves, name, {size: f"{size:g}" for size in sizes})


def _panels(board: Board, curves: Mapping[str, Curves], x: str, ticks: Mapping[float, str]) -> Figure:
    """One small panel for each method on shared axes; F1 of the unadapted model, if any, is dashed in each."""
    floor_title = next((title(row) for row in board.rows if row.method == FLOOR and row.arm == "stream"), "")
    floor = curves.get(floor_title)
    methods = [method for method in curves.values() if method is not floor] or list(curves.values())
    figure, grid = panels(len(methods))
    for axes, method in zip(grid, methods, strict=True):
        if floor is not None:
            line(axes, floor.f1, GREY, DASHED)
        if method.recall:
            line(axes, method.recall, ORANGE)
        band(axes, method.f1)
        heading(axes, method.label)
    log_ticks(grid[0], [*ticks], [*ticks.values()])
    from_zero(grid[0])
    notes = [stream_error_name(len(board.streams))]
    notes += [] if floor is None else [f"dashed: {readable(FLOOR)}"]
    notes += ["orange: recall"] if any(method.recall for method in methods) else []
    name_axes(figure, f"{x} ({'; '.join(notes)})", "answer F1")
    return figure


def curves_by_k(board: Board, runs: Path) -> list[Curves]:
    """F1 and recall by ``k``: of a method's rows that differ only in ``k`` or, if there are none, its tuning trials.

    Raises:
        BenchError: the run of a trial is missing or unreadable.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.arm == "stream" and "f1" in row.scores and _is_k(row.config.get("k")):
            groups[row.method, _without_k(row.config)].append(row)
    series = [rows for rows in groups.values() if len(rows) > 1]
    curves = [_row_curves(rows) for rows in series]
    methods_with_rows = {rows[0].method for rows in series}
    order = [row.method for row in board.rows]
    records = [record for record in board.tuning if record.metric == "f1" and record.method not in methods_with_rows]
    for record in sorted(records, key=lambda r: order.index(r.method) if r.method in order else len(order)):
        if trial_curves := _trial_curves(runs, record):
            curves.append(trial_curves)
    return curves


def _is_k(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _without_k(config: Mapping[str, object]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "k"}, sort_keys=True)


def _row_curves(rows: Sequence[Row]) -> Curves:
    ordered = sorted(rows, key=lambda row: row.config["k"])
    f1, recall = (
        [(row.config["k"], row.scores[name][0]) for row in ordered if name in row.scores] for name in ("f1", "recall")
    )
    return Curves(readable(rows[0].method), f1, recall)


def _trial_curves(runs: Path, record: TuningRecord) -> Curves | None:
    """Curves over the trials that differ from the best one only in ``k``."""
    scored = [
        (score, trial)
        for trial in record.trials
        if (score := trial["score"]) is not None and _is_k(trial["config"].get("k"))
    ]
    if not scored:
        return None
    _, best = max(scored, key=lambda pair: pair[0])
    trials = [trial for _, trial in scored if _without_k(trial["config"]) == _without_k(best["config"])]
    if len({trial["config"]["k"] for trial in trials}) < 2:
        return None
    f1: list[tuple[float, Estimate]] = []
    recall: list[tuple[float, Estimate]] = []
    for trial in sorted(trials, key=lambda trial: trial["config"]["k"]):
        summaries = [summary for run_id in trial["runs"] if (summary := read_run(runs / run_id).summary) is not None]
        for points, scores in ((f1, [s.f1 for s in summaries]), (recall, [s.recall for s in summaries])):
            if present := [score for score in scores if score is not None]:
                points.append((trial["config"]["k"], stream_error(present)))
    return Curves(readable(record.method), f1, recall, best["config"]["k"])


def _by_k(methods: Sequence[Curves]) -> Figure:
    """One small panel for each method; the circle at the chosen ``k`` is filled."""
    tuned = all(method.chosen is not None for method in methods)
    figure, grid = panels(len(methods), sharex=False)
    for axes, method in zip(grid, methods, strict=True):
        open_circles(axes, method.recall, ORANGE)
        open_circles(axes, method.f1, chosen=method.chosen)
        log_ticks(axes, [x for x, _ in method.f1], [f"{x:g}" for x, _ in method.f1])
        heading(axes, method.label if method.chosen is None or tuned else f"{method.label}, validation")
    from_zero(grid[0])
    counts = [estimate.n for method in methods for _, estimate in method.f1]
    notes = [stream_error_name(*counts, kind="validation " if tuned else "")]
    notes += ["filled: chosen"] if any(method.chosen for method in methods) else []
    notes += ["orange: recall"] if any(method.recall for method in methods) else []
    name_axes(figure, f"documents given with each question, k ({'; '.join(notes)})", "answer F1")
    return figure
