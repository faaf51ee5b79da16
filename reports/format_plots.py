"""Plot of the form of answers: whether they still end by themselves, and what they are worth, along the stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reports.board import Board
from reports.probes import curves_of, probes
from reports.rows import CEILING
from reports.style import (
    BLUE,
    GREY,
    ORANGE,
    WIDTH,
    Drawings,
    Points,
    from_zero,
    heading,
    name_axes,
    open_circles,
    rows_of_panels,
    stream_error_name,
    title,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("format_drift",)

LABELS = {"ended": "share that ends by itself", "f1": "F1", "em_prefix": "prefix EM"}
COLOURS = {"ended": GREY, "f1": BLUE, "em_prefix": ORANGE}

Curves = Mapping[str, Mapping[str, Points]]
"""Points by score, by the title of the row."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, if there are several probes and the share of answers that end by themselves is not always the same.

    The ceiling and control arms are left out; closed book shows how much of it is due to the questions alone.
    """
    rows = [row for row in board.rows if row.arm == "stream" and row.method != CEILING and probes(row) > 1]
    curves = {title(row): curves_of(row, runs, tuple(LABELS)) for row in rows}
    shares = {round(estimate.mean, 3) for of in curves.values() for _, estimate in of["ended"]}
    return {"format_drift": lambda: _drift(board, curves)} if len(shares) > 1 else {}


def _drift(board: Board, curves: Curves) -> Figure:
    """For each method a panel with the share of answers that end, above one with their scores, on its own scale."""
    from matplotlib.figure import Figure

    across, down = rows_of_panels(len(curves))
    figure = Figure(figsize=(min(WIDTH, 1.2 + 2.1 * across), 0.6 + 1.9 * down), layout="constrained")
    heights = {"height_ratios": [0.5, 1] * down}
    grid = figure.subplots(2 * down, across, sharex=True, squeeze=False, gridspec_kw=heights)
    shares, scores = grid[::2].ravel(), grid[1::2].ravel()
    ticks = sorted({x for of in curves.values() for points in of.values() for x, _ in points})
    apart = 0.01 * (ticks[-1] - ticks[0])
    for upper, lower, (label, of) in zip(shares, scores, curves.items(), strict=False):
        for place, (name, points) in enumerate(of.items()):  # side by side, so that no interval hides another
            axes = upper if name == "ended" else lower
            open_circles(axes, [(x + place * apart, estimate) for x, estimate in points], COLOURS[name], LABELS[name])
        heading(upper, label)
        upper.set_ylim(-0.1, 1.1)  # room for markers at 0 and 1
        from_zero(lower)
    for index, (upper, lower) in enumerate(zip(shares, scores, strict=True)):
        if index >= len(curves):
            upper.set_axis_off()
            lower.set_axis_off()
        elif index + across >= len(curves):
            lower.tick_params(labelbottom=True)
        if index % across == 0:
            upper.set_ylabel("share")
            lower.set_ylabel("score")
    scores[0].set_xticks(ticks)
    legends = [axes.get_legend_handles_labels() for axes in (shares[0], scores[0])]
    handles, names = ([*share, *score] for share, score in zip(*legends, strict=True))
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    name_axes(figure, f"documents seen ({stream_error_name(len(board.streams))})", "")
    return figure
