"""What methods cost: memory and time, side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.board import Board
from reports.rows import Row
from reports.style import BLUE, GREY, WIDTH, Drawings, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("cost_by_method",)

SHOWN = {
    "state_bytes": "state (bytes)",
    "seconds_per_document": "observing (s per document)",
    "seconds_per_question": "answering (s per question)",
}


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, where the board has costs."""
    rows = [row for row in board.rows if row.arm == "stream" and row.costs]
    costly = any(row.costs.get(name) for row in rows for name in SHOWN)
    return {NAMES[0]: lambda: _draw(rows)} if costly else {}


def _draw(rows: Sequence[Row]) -> Figure:
    """A panel for each cost and a dot for each method, on logarithmic axes; what costs nothing is a 0 at their edge."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    shown = {name: label for name, label in SHOWN.items() if any(row.costs.get(name) for row in rows)}
    labels = [textwrap.fill(readable(row.label), 30) for row in rows]
    height = 0.2 * max(1 + 0.6 * label.count("\n") for label in labels)
    figure = Figure(figsize=(WIDTH, 0.5 + height * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, label) in zip(grid, shown.items(), strict=False):
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
        axes.xaxis.set_minor_formatter(NullFormatter())  # within one decade matplotlib would name every tick
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(rows)), labels)
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure
