"""What all plots share: how they look, and how they name things."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.board import Board
from reports.rows import Row
from reports.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Drawings = Mapping[str, Callable[[], "Figure"]]
"""What the records allow to be drawn, by the name of the plot."""

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"  # distinct to colour-blind readers too
DASHED, DOTTED = (0, (4, 3)), (0, (1, 2))
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # text that a publisher can embed and a reader can search
    "svg.hashsalt": "online-adaptation-bench",
}
WIDTH = 6.9
"""Inches across a page."""


def panels(count: int, sharex: bool = True, height: float = 1.35) -> tuple[Figure, list[Axes]]:
    """A figure of so many small panels on one y axis, in rows, with room below and at the left for common labels."""
    from matplotlib.figure import Figure

    across = min((4, 3), key=lambda n: (-count % n, -n)) if count > 4 else count
    down = math.ceil(count / across)
    figure = Figure(figsize=(min(WIDTH, 1.2 + 2.1 * across), 0.45 + height * down), layout="constrained")
    grid = list(figure.subplots(down, across, sharex=sharex, sharey=True, squeeze=False).flat)
    for index, axes in enumerate(grid):
        if index >= count:
            axes.set_axis_off()
        elif index + across >= count:
            axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def heading(axes: Axes, text: str) -> None:
    """What a small panel shows."""
    axes.set_title(textwrap.fill(text, 26), loc="left", pad=2)


def band(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str = BLUE) -> None:
    """Means with a band of one standard error around them."""
    axes.plot(x, [estimate.mean for estimate in estimates], color=colour, marker="o", markersize=2)
    lows = [estimate.mean - (estimate.se or 0) for estimate in estimates]
    highs = [estimate.mean + (estimate.se or 0) for estimate in estimates]
    axes.fill_between(x, lows, highs, color=colour, alpha=0.25, linewidth=0)


def open_circles(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str = BLUE) -> None:
    """Means as open circles on a line, each with one standard error."""
    axes.errorbar(
        x,
        [estimate.mean for estimate in estimates],
        yerr=[estimate.se or 0 for estimate in estimates],
        color=colour,
        marker="o",
        markersize=3,
        markerfacecolor="white",
        elinewidth=0.8,
    )


def log_ticks(axes: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """A logarithmic x axis with a tick at each of these ascending values, and its text where that leaves room."""
    axes.set_xscale("log")
    axes.minorticks_off()
    shown: list[str] = []
    last, before = 0.0, ""
    for value, text in zip(values, texts, strict=True):
        room = math.log(value / last) / math.log(values[-1] / values[0]) if last else 1
        shown.append(text if room > 0.04 + 0.02 * len(before + text) else "")
        last, before = (value, text) if shown[-1] else (last, before)
    axes.set_xticks(values, shown)


def from_zero(axes: Axes) -> None:
    """Let the y axis, when all is drawn, begin at 0 and leave room for markers at the top."""
    axes.set_ylim(0, 1.03 * axes.get_ylim()[1])


def name_axes(figure: Figure, x: str, y: str) -> None:
    """Labels for all of a figure's panels."""
    told = x.replace(": ", ":\u00a0")  # "dashed: ..." stays on one line
    figure.supxlabel(textwrap.fill(told, round(15 * figure.get_figwidth())), fontsize=8)
    figure.supylabel(y, fontsize=8)


def title(row: Row) -> str:
    """A row's label, with what is missing of it."""
    return readable(f"{row.label} [{row.note}]" if row.note else row.label)


def readable(label: str) -> str:
    """A label in words."""
    return label.replace("_", " ")


def f1(board: Board, row: Row) -> Estimate:
    """A row's F1 with the board's error."""
    return row.estimate("f1", board.error) or row.scores["f1"][0]


def error(board: Board) -> str:
    """What the error of a mean over the board's streams is."""
    count = len(board.streams)
    return f"± SE_stream over {count} streams" if count > 1 else "one stream: no error"
