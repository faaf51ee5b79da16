"""Plots of memory: F1 by documents seen, by lag since a question's document, and by documents per question (``k``)."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.board import Board
from reports.probes import ProbeAnswer, curves_of, probes
from reports.rows import CEILING, FLOOR, Row
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    OTHERS,
    Drawings,
    Key,
    Plot,
    Points,
    answer_f1,
    band,
    draw_others,
    from_zero,
    intervals,
    legend,
    line,
    log_ticks,
    name_axes,
    no_band,
    panels,
    split_floor,
    stream_error_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("f1_by_bank_size", "retention_by_lag", "f1_by_k")

RECALL = "share of questions that were given their own document"

FIRST_BIN = 4
"""Width of the first bin of lags, in documents. Each later bin ends at twice the lag at which it begins."""


@dataclass(frozen=True)
class Curves:
    """The curves of one method."""

    label: str
    f1: Points
    recall: Points = ()
    """Empty if the method names no documents."""


def drawings(board: Board) -> Drawings:
    """The plots that have data; the first two need several probes."""
    rows = [row for row in board.rows if row.arm == "stream" and row.method != CEILING and "f1" in row.scores]
    probed = [row for row in rows if probes(row) > 1]
    by_size = {row.label: Curves(row.title, **curves_of(row, ("f1", "recall"))) for row in probed}
    by_k = curves_by_k(board)
    plots: dict[str, Plot] = {}
    if probed and board.first_documents is None:
        shown, floor = split_floor(board, by_size)
        notes = _notes(board, shown, floor is not None)
        plots["f1_by_bank_size"] = Plot(
            lambda: _bank_sizes(board, by_size),
            "Answer F1 at each probe by the number of documents seen, with questions on all of them",
            notes,
        )
        plots["retention_by_lag"] = Plot(
            lambda: _lags(board, probed),
            "Answer F1 by lag, the number of documents seen after the question's own, over all probes, in bins from "
            "0, 4, 8, 16, ...",
            notes,
        )
    if by_k:
        plots["f1_by_k"] = Plot(
            lambda: _by_k(board, by_k),
            "Answer F1 by k, the number of documents given with each question",
            _notes(board, by_k, False),
        )
    return plots


def _notes(board: Board, curves: Sequence[Curves], floor: bool) -> list[str]:
    return [
        intervals("bands", stream_error_name(board)),
        no_band(board, [method.f1 for method in curves]),
        f"dashed: {FLOOR}" if floor else "",
        f"orange: recall, the {RECALL}" if any(method.recall for method in curves) else "",
        "light lines: F1 in the other panels" if len(curves) > 1 else "",
    ]


def lag_bins(documents: int) -> list[int]:
    """Edges of the bins of lags in a stream of ``documents`` documents: 0, 4, 8, 16, ..., ``documents``."""
    edges = [0]
    while (following := 2 * edges[-1] or FIRST_BIN) < documents:
        edges.append(following)
    return [*edges, documents]


def _lags(board: Board, rows: Sequence[Row]) -> Figure:
    """F1 by lag over all probes; a point is at the geometric middle of its bin."""
    edges = lag_bins(max(row.documents for row in rows))
    middles = [math.sqrt(max(low, 1) * high) for low, high in itertools.pairwise(edges)]

    def middle(answer: ProbeAnswer) -> float:
        return middles[sum(answer.lag >= edge for edge in edges[1:-1])]

    curves = {row.label: Curves(row.title, **curves_of(row, ("f1", "recall"), middle)) for row in rows}
    name = "documents seen after the question's own, all probes pooled"
    return _panels(board, curves, name, {max(edge, 1): str(edge) for edge in edges[:-1]})


def _bank_sizes(board: Board, curves: Mapping[str, Curves]) -> Figure:
    sizes = sorted({x for method in curves.values() for x, _ in method.f1})
    name = "documents seen, with questions on all of them"
    return _panels(board, curves, name, {size: f"{size:g}" for size in sizes})


def _panels(board: Board, curves: Mapping[str, Curves], x: str, ticks: Mapping[float, str]) -> Figure:
    """One small panel for each method on shared axes; F1 of the unadapted model, if any, is dashed in each."""
    methods, floor = split_floor(board, curves)
    figure, grid = panels([method.label for method in methods])
    if floor is not None:
        for axes in grid:
            line(axes, floor.f1, GREY, DASHED)
    _scores(figure, grid, methods, [] if floor is None else [(FLOOR, GREY, DASHED)])
    log_ticks(grid[0], [*ticks], [*ticks.values()])
    name_axes(figure, x, _axis(methods, "answer F1"), [stream_error_name(board)])
    return figure


def _scores(figure: Figure, grid: Sequence[Axes], methods: Sequence[Curves], keys: Sequence[Key]) -> None:
    """Draw the F1 and the recall of a method in each panel, with a legend that has further keys."""
    for axes, method in zip(grid, methods, strict=True):
        if method.recall:
            band(axes, method.recall, ORANGE)
        band(axes, method.f1)
    draw_others(grid, [method.f1 for method in methods])
    from_zero(grid[0])
    both = [("F1", BLUE, "-"), ("recall", ORANGE, "-")] if any(method.recall for method in methods) else []
    legend(figure, [*both, *keys, *([OTHERS] if len(methods) > 1 else [])])


def _axis(methods: Sequence[Curves], f1: str) -> str:
    """Label of the y axis: recall is no F1."""
    return f"{f1}, or recall" if any(method.recall for method in methods) else f1


def curves_by_k(board: Board) -> list[Curves]:
    """F1 and recall by ``k``, of each method's rows that differ only in ``k``."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in board.rows:
        if row.arm == "stream" and "f1" in row.scores and _is_k(row.config.get("k")):
            groups[_without_k(row)].append(row)
    return [_row_curves(rows) for rows in groups.values() if len(rows) > 1]


def _is_k(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _without_k(row: Row) -> tuple[str, ...]:
    """What rows have in common that differ only in ``k``."""
    rest = {key: value for key, value in row.config.items() if key != "k"}
    return row.method, row.arm, json.dumps(rest, sort_keys=True), row.imported


def _row_curves(rows: Sequence[Row]) -> Curves:
    ordered = sorted(rows, key=lambda row: row.config["k"])
    f1, recall = (
        [(row.config["k"], row.scores[name][0]) for row in ordered if name in row.scores] for name in ("f1", "recall")
    )
    return Curves(" ".join(filter(None, (rows[0].method, rows[0].imported))), f1, recall)


def _by_k(board: Board, methods: Sequence[Curves]) -> Figure:
    """One small panel for each method, on shared axes."""
    figure, grid = panels([method.label for method in methods])
    _scores(figure, grid, methods, [])
    ticks = sorted({x for method in methods for x, _ in method.f1})
    log_ticks(grid[0], ticks, [f"{x:g}" for x in ticks])
    notes = [stream_error_name(board)]
    name_axes(figure, "documents given with each question, k", _axis(methods, answer_f1(board)), notes)
    return figure
