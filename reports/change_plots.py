"""Plot of answers that change: F1 on changed and unchanged facts, and stale answers, along the stream."""

from __future__ import annotations

from collections.abc import Mapping
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
    Plot,
    Points,
    intervals,
    legend,
    name_axes,
    open_circles,
    panels,
    stream_error_name,
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


def drawings(board: Board) -> Drawings:
    """The plot, if the board is about facts that change and has several probes.

    Closed book, gold in prompt and control arms are left out: what they answer does not depend on the documents seen.
    """
    if not about_changes(board.rows):
        return {}
    rows = [row for row in board.rows if row.arm == "stream" and row.method not in (FLOOR, CEILING)]
    curves = {row.title: curves_of(row, CHANGE_SCORES) for row in rows if probes(row) > 1}
    if not curves:
        return {}
    caption = (
        "Facts that change along the stream, at each probe by the number of documents seen: F1 on facts that have "
        "changed by then, the share of these answers that were true earlier (stale), and F1 on facts that have not"
    )
    notes = [intervals("bars", stream_error_name(board))]
    return {"evolving": Plot(lambda: _evolving(board, curves), caption, notes)}


def _evolving(board: Board, curves: Mapping[str, Mapping[str, Points]]) -> Figure:
    """One small panel for each method, on shared axes."""
    figure, grid = panels([*curves])
    ticks = sorted({x for of in curves.values() for points in of.values() for x, _ in points})
    apart = 0.015 * (ticks[-1] - ticks[0])
    for axes, of in zip(grid, curves.values(), strict=True):
        for place, name in enumerate(CHANGE_SCORES):  # side by side, so that no interval hides another
            points = [(x + (place - 1) * apart, estimate) for x, estimate in of[name]]
            open_circles(axes, points, COLOURS[name])
    grid[0].set_xticks(ticks)
    grid[0].set_ylim(-0.03, 1.03)  # room for markers at 0 and 1
    legend(figure, [(LABELS[name], COLOURS[name], "-") for name in CHANGE_SCORES])
    name_axes(figure, "documents seen", "F1, or share of answers", [stream_error_name(board)])
    return figure
