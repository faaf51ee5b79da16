"""Plot of answers that change: F1 on changed and unchanged facts, and stale answers, along the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.schema import CHANGE_SCORES, documents_seen
from bench.records.store import read_answers
from reports.board import Board
from reports.rows import CEILING, FLOOR, Row, about_changes, run_of
from reports.statistics import Estimate, Item, mean_over_streams
from reports.style import (
    BLUE,
    GREY,
    ORANGE,
    Drawings,
    Points,
    heading,
    name_axes,
    open_circles,
    panels,
    stream_error_name,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("evolving",)

COLOURS = {"f1_current": BLUE, "stale": ORANGE, "f1_unchanged": GREY}
LABELS = {
    "f1_current": "changed facts: F1",
    "stale": "changed facts: share of stale answers",
    "f1_unchanged": "unchanged facts: F1",
}


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, if the board is about facts that change and has several probes.

    Closed book, gold in prompt and control arms are left out: what they answer does not depend on the documents seen.
    """
    if not about_changes(board.rows):
        return {}
    rows = [row for row in board.rows if row.arm == "stream" and row.method not in (FLOOR, CEILING)]
    curves = {title(row): curves_of(row, runs) for row in rows if _probes(row) > 1}
    return {"evolving": lambda: _evolving(board, curves)} if curves else {}


def _probes(row: Row) -> int:
    return sum(probe > 0 for probe in row.records[0].spec.probes) if row.records else 0


def curves_of(row: Row, runs: Path) -> Mapping[str, Points]:
    """The means of :data:`CHANGE_SCORES` over streams by the number of documents seen.

    A score has no point where one of the row's streams has no question for it.
    """
    items: dict[tuple[str, int], list[Item]] = defaultdict(list)
    for record in row.records:
        documents = record.summary.documents if record.summary else 0
        for event in read_answers(runs, record.id):
            for name in CHANGE_SCORES:
                value = getattr(event, name)
                if event.set == "stream" and value is not None:
                    items[name, documents_seen(event.probe, documents)].append(Item.of(run_of(record), "", "", value))
    points: dict[str, list[tuple[float, Estimate]]] = {name: [] for name in CHANGE_SCORES}
    for (name, seen), values in sorted(items.items()):
        if (estimate := mean_over_streams(values)).n == row.streams:
            points[name].append((seen, estimate))
    return points


def _evolving(board: Board, curves: Mapping[str, Mapping[str, Points]]) -> Figure:
    """One small panel for each method, on shared axes."""
    figure, grid = panels(len(curves))
    ticks = sorted({x for of in curves.values() for points in of.values() for x, _ in points})
    apart = 0.015 * (ticks[-1] - ticks[0])
    for axes, (label, of) in zip(grid, curves.items(), strict=True):
        for place, name in enumerate(CHANGE_SCORES):  # side by side, so that no interval hides another
            points = [(x + (place - 1) * apart, estimate) for x, estimate in of[name]]
            open_circles(axes, points, COLOURS[name], LABELS[name])
        heading(axes, label)
    grid[0].set_xticks(ticks)
    grid[0].set_ylim(-0.03, 1.03)  # room for markers at 0 and 1
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    name_axes(figure, f"documents seen ({stream_error_name(len(board.streams))})", "F1, or share of answers")
    return figure
