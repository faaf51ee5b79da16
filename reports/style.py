"""Shared parts of all plots: matplotlib settings, panels, bars, bands, axes and labels."""

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
"""Functions that draw the plots of a board, by the name of the plot; only plots that have data."""

Points = Sequence[tuple[float, Estimate]]
"""Positions on the x axis with the estimate at each."""

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


def rows_of_panels(count: int) -> tuple[int, int]:
    """Panels in a row, at most four, and the number of rows; few places remain empty."""
    across = min((4, 3), key=lambda n: (-count % n, -n)) if count > 4 else count
    return across, math.ceil(count / across)


def panels(count: int, sharex: bool = True, height: float = 1.35) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` small panels in rows, with a shared y axis and room for common labels below and left."""
    from matplotlib.figure import Figure

    across, down = rows_of_panels(count)
    figure = Figure(figsize=(min(WIDTH, 1.2 + 2.1 * across), 0.45 + height * down), layout="constrained")
    grid = list(figure.subplots(down, across, sharex=sharex, sharey=True, squeeze=False).flat)
    for index, axes in enumerate(grid):
        if index >= count:
            axes.set_axis_off()
        elif index + across >= count:
            axes.tick_params(labelbottom=True)
    return figure, grid[:count]


def heading(axes: Axes, text: str) -> None:
    """Title of a small panel, wrapped."""
    axes.set_title(textwrap.fill(text, 24), loc="left", pad=2)


def bar(axes: Axes, y: float, estimate: Estimate, colour: str, filled: bool = True) -> None:
    """A horizontal bar with its 95 % interval."""
    axes.barh(y, estimate.mean, height=0.62, color=colour if filled else "white", edgecolor=colour)
    if (half := estimate.half_width()) is not None:
        axes.errorbar(estimate.mean, y, xerr=half, color="black", linewidth=0.8, capsize=1.5)


def wrap_labels(labels: Sequence[str]) -> tuple[list[str], float]:
    """Labels of rows, wrapped, and the height of a row in inches that the longest label needs."""
    wrapped = [textwrap.fill(label, 30) for label in labels]
    return wrapped, 0.2 * max(1 + 0.6 * label.count("\n") for label in wrapped)


def label_rows(grid: Sequence[Axes], places: Sequence[float], labels: Sequence[str], margin: float) -> None:
    """Label the rows at ``places``, from the top, on the y axis that the panels share."""
    grid[0].set_yticks(places, labels)
    grid[0].set_ylim(places[-1] + margin, -margin)
    for axes in grid:
        axes.tick_params(axis="y", length=0)


def line(axes: Axes, points: Points, colour: str, linestyle: Any = "-", label: str = "") -> None:
    """A thin line through the means, for comparison; ``label`` is for a legend."""
    axes.plot(*_coordinates(points), color=colour, linewidth=0.8, linestyle=linestyle, label=label)


def band(axes: Axes, points: Points) -> None:
    """Means with a band of their 95 % intervals."""
    x, means = _coordinates(points)
    axes.plot(x, means, color=BLUE, marker="o", markersize=2)
    lows = [estimate.mean - (estimate.half_width() or 0) for _, estimate in points]
    highs = [estimate.mean + (estimate.half_width() or 0) for _, estimate in points]
    axes.fill_between(x, lows, highs, color=BLUE, alpha=0.25, linewidth=0)


def open_circles(axes: Axes, points: Points, colour: str = BLUE, label: str = "") -> None:
    """Means as open circles on a line, each with its 95 % interval; ``label`` is for a legend."""
    axes.errorbar(
        *_coordinates(points),
        yerr=[estimate.half_width() or 0 for _, estimate in points],
        color=colour,
        marker="o",
        markersize=3,
        markerfacecolor="white",
        elinewidth=0.8,
        label=label,
    )


def _coordinates(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [estimate.mean for _, estimate in points]


def log_ticks(axes: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """A logarithmic x axis with a tick at each of the ascending values, labelled if there is room for the text."""
    axes.set_xscale("log")
    axes.minorticks_off()
    labels: list[str] = []
    last_value, last_text = 0.0, ""
    for value, text in zip(values, texts, strict=True):
        room = math.log(value / last_value) / math.log(values[-1] / values[0]) if last_value else 1
        labels.append(text if room > 0.04 + 0.02 * len(last_text + text) else "")
        last_value, last_text = (value, text) if labels[-1] else (last_value, last_text)
    axes.set_xticks(values, labels)


def from_zero(axes: Axes) -> None:
    """Start the y axis at 0 and leave room for markers at the top. Call it after drawing."""
    axes.set_ylim(0, 1.03 * axes.get_ylim()[1])


def name_axes(figure: Figure, x: str, y: str) -> None:
    """Common axis labels of all panels of a figure."""
    unbroken = x.replace(": ", ":\u00a0")  # "dashed: ..." stays on one line
    figure.supxlabel(textwrap.fill(unbroken, round(15 * figure.get_figwidth())), fontsize=8)
    figure.supylabel(y, fontsize=8)


def title(row: Row) -> str:
    """A row's label, with its note if there is one, in words."""
    return readable(row.title)


def readable(label: str) -> str:
    """A label in words."""
    return label.replace("_", " ")


def score(board: Board, row: Row, name: str = "f1") -> Estimate:
    """A score of a row with the board's error."""
    return row.estimate(name, board.error) or row.scores[name][0]


def answer_f1(board: Board) -> str:
    """Name of the axis of a board's F1."""
    first = board.first_documents
    return "answer F1" if first is None else f"answer F1 on the first {first} documents"


def board_error(board: Board) -> str:
    """Name of the error bars that :func:`score` has."""
    return stream_error_name(len(board.streams)) if board.error == "SE_stream" else "95\u00a0% interval over documents"


def stream_error_name(*counts: int, kind: str = "") -> str:
    """Name of the error bars of means over these numbers of streams; ``kind`` goes before the word "streams"."""
    if max(counts) == 1:
        return f"one {kind}stream: no interval"
    return f"95\u00a0% interval over {' or '.join(str(count) for count in sorted(set(counts)))} {kind}streams"
