"""The plot of costs: state and time of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.board import Board
from reports.rows import Row
from reports.style import BLUE, GREY, WIDTH, Drawings, label_rows, readable, wrap_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("cost_by_method",)

LABELS = {
    "state_bytes": "state (bytes)",
    "seconds_per_document": "observing (s per document)",
    "seconds_per_question": "answering (s per question)",
}


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, if a method on the board has a cost above 0."""
    rows = [row for row in board.rows if row.arm == "stream" and row.costs]
    return {NAMES[0]: lambda: _draw(rows)} if any(row.costs.get(name) for row in rows for name in LABELS) else {}


def _draw(rows: Sequence[Row]) -> Figure:
    """One panel for each cost with a dot for each method, on logarithmic axes; a cost of 0 is a "0" at the edge."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    names = [name for name in LABELS if any(row.costs.get(name) for row in rows)]
    labels, height = wrap_labels([readable(row.label) for row in rows])
    figure = Figure(figsize=(WIDTH, 0.5 + height * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        axes.set_xscale("log")
        axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        for y, row in enumerate(rows):
            value, colour = row.costs.get(name), GREY if row.control else BLUE
            if value:
                axes.plot(value, y, "o", color=colour, markersize=4, clip_on=False)
            elif value == 0:
                axes.annotate(
                    "0",
                    xy=(0.03, y),
                    xycoords=("axes fraction", "data"),
                    va="center_baseline",
                    color=colour,
                    fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
        values = [value for row in rows if (value := row.costs.get(name))]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        axes.set_xlim(10.0**low, 10.0 ** max(high, low + 1))
        axes.xaxis.set_minor_formatter(NullFormatter())  # within one decade matplotlib would label every tick
        axes.set_xlabel(LABELS[name])
    label_rows(grid, range(len(rows)), labels, margin=0.5)
    return figure
