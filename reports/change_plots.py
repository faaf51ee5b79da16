"""Plot of answers that change: F1 on changed and unchanged facts, and stale answers, along the stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.schema import CHANGE_SCORES
from reports.board import Board
from reports.probes import curves_of, probes
from reports.rows import CEILING, FLOOR, about_changes
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
    curves = {title(row): curves_of(row, runs, CHANGE_SCORES) for row in rows if probes(row) > 1}
    return {"evolving": lambda: _evolving(board, curves)} if curves else {}


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
