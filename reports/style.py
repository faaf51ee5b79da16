"""Shared parts of all plots: matplotlib settings, panels, bars, bands, axes, labels and captions."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from reports.board import Board
from reports.rows import CEILING, Row
from reports.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Plot(NamedTuple):
    """How a plot is drawn, and the text that goes with it."""

    draw: Callable[[], Figure]
    caption: str
    """What it shows: a sentence without its full stop."""
    notes: Sequence[str]
    """What intervals, lines and marks mean, in the same form; empty ones are left out."""

    def text(self) -> str:
        """The caption and, below it, the notes, wrapped."""
        caption, *notes = [f"{part[0].upper()}{part[1:]}." for part in (self.caption, *self.notes) if part]
        parts = [caption, " ".join(notes).replace("\u00a0", " ")]
        return "\n\n".join(textwrap.fill(part, 120, break_long_words=False) for part in parts) + "\n"


Drawings = Mapping[str, Plot]
"""The plots of a board that have data, by name."""

Key = tuple[str, str, Any]
"""An entry of a legend: name, colour and line style."""

Points = Sequence[tuple[float, Estimate]]
"""Positions on the x axis with the estimate at each."""

BLUE, ORANGE, GREY, LIGHT = "#0072B2", "#D55E00", "#8C8C8C", "#D2D2D2"  # distinct to colour-blind readers too
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", GREY)
"""Colours of lines on one axis (Okabe and Ito 2008), to be used with :data:`MARKERS`."""
MARKERS = "os^vDP*X"
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


def panels(labels: Sequence[str], sharex: bool = True, height: float = 1.35) -> tuple[Figure, list[Axes]]:
    """A figure of small panels in rows, each with its label, on a shared y axis, with room for labels of the axes."""
    from matplotlib.figure import Figure

    across, down = rows_of_panels(len(labels))
    titles = _titles(labels)
    lines = [max(title.count("\n") for title in titles[i : i + across]) for i in range(0, len(labels), across)]
    size = (min(WIDTH, 1.2 + 2.1 * across), 0.6 + height * down + 0.13 * sum(lines))
    figure = Figure(figsize=size, layout="constrained")
    grid = list(figure.subplots(down, across, sharex=sharex, sharey=True, squeeze=False).flat)
    for index, axes in enumerate(grid):
        if index >= len(labels):
            axes.set_axis_off()
            continue
        heading(axes, titles[index])
        if index + across >= len(labels):
            axes.tick_params(labelbottom=True)
    return figure, grid[: len(labels)]


def _titles(labels: Sequence[str]) -> list[str]:
    """The labels, wrapped, and without what is beyond a fourth line, unless they can only be told apart by that."""
    whole = [wrap(label, 24) for label in labels]
    short = ["\n".join(title.split("\n")[:4]) + " \N{HORIZONTAL ELLIPSIS}" * (title.count("\n") > 3) for title in whole]
    return short if len({*short}) == len(short) else whole


def heading(axes: Axes, text: str) -> None:
    """Title of a small panel."""
    axes.set_title(text, loc="left", pad=2, parse_math=False)


def wrap(label: str, width: int) -> str:
    """A label in lines that break at spaces or, within longer words, after underscores and hyphens."""
    lines = [""]
    for word in label.split(" "):
        parts = [word] if len(word) <= width else re.findall("[^_-]*[_-]|[^_-]+", word)
        for number, part in enumerate(parts):
            joined = f"{lines[-1]}{' ' * (number == 0)}{part}".lstrip()
            lines[-1:] = [joined] if len(joined) <= width or not lines[-1] else [lines[-1], part]
    return "\n".join(lines)


def legend(figure: Figure, keys: Sequence[Key]) -> None:
    """A legend above the panels, on the right side: the name, the colour and the line style of each key."""
    from matplotlib.lines import Line2D

    if not keys:
        return
    handles = [Line2D([], [], color=colour, linestyle=style, label=name) for name, colour, style in keys]
    length = sum(0.6 + 0.06 * len(name) for name, _, _ in keys)  # inches in one line
    columns = math.ceil(len(keys) / math.ceil(length / figure.get_figwidth()))
    figure.legend(handles=handles, loc="outside upper right", ncols=columns, frameon=False, fontsize=7)


def bar(axes: Axes, y: float, estimate: Estimate, colour: str, filled: bool = True, digits: int = 3) -> None:
    """A horizontal bar with its 95 % interval and its value."""
    axes.barh(y, estimate.mean, height=0.62, color=colour if filled else "white", edgecolor=colour)
    half = estimate.half_width()
    if half is not None:
        axes.errorbar(estimate.mean, y, xerr=half, color="black", linewidth=0.8, capsize=1.5)
    write_value(axes, (max(0.0, estimate.mean + (half or 0.0)), y), f"{estimate.mean:.{digits}f}")


def write_value(axes: Axes, place: tuple[float, float], text: str, colour: str = "black") -> None:
    """A number to the right of a bar, an interval or a point."""
    axes.annotate(
        text,
        place,
        xytext=(4, 0),
        textcoords="offset points",
        va="center_baseline",
        color=colour,
        fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )


def wrap_labels(labels: Sequence[str]) -> tuple[list[str], list[float], float]:
    """Labels of rows, wrapped, the places of the rows, each as high as its label needs, and the height in inches."""
    wrapped = [wrap(label, 30) for label in labels]
    places, end = [], 0.0
    for label in wrapped:
        height = 1 + 0.62 * label.count("\n")
        places.append(end + height / 2 - 0.5)
        end += height
    return wrapped, places, 0.2 * end


def label_rows(grid: Sequence[Axes], places: Sequence[float], labels: Sequence[str], margin: float) -> None:
    """Label the rows at ``places``, from the top, on the y axis that the panels share."""
    grid[0].set_yticks(places, labels, parse_math=False)
    grid[0].set_ylim(places[-1] + margin, -margin)
    for axes in grid:
        axes.tick_params(axis="y", length=0)


def line(axes: Axes, points: Points, colour: str, linestyle: Any = "-") -> None:
    """A thin line through the means, for comparison."""
    axes.plot(*_coordinates(points), color=colour, linewidth=0.8, linestyle=linestyle)


def band(axes: Axes, points: Points, colour: str = BLUE) -> None:
    """Means with a band of their 95 % intervals, where they have one."""
    x, means = _coordinates(points)
    known = [estimate.se is not None for _, estimate in points]
    axes.plot(x, means, color=colour, marker="o", markersize=2)
    axes.fill_between(x, *_ends(points), where=known, color=colour, alpha=0.25, linewidth=0)


def no_band(board: Board, curves: Sequence[Points]) -> str:
    """A note if the band of a curve has gaps, since a single one of the board's streams has a value there."""
    gaps = len(board.streams) > 1 and any(estimate.se is None for points in curves for _, estimate in points)
    return "without a band: one stream" if gaps else ""


def draw_others(grid: Sequence[Axes], curves: Sequence[Points]) -> None:
    """Draw in each panel the means of all other panels as thin light lines (:data:`OTHERS`)."""
    for index, axes in enumerate(grid):
        for points in (*curves[:index], *curves[index + 1 :]):
            axes.plot(*_coordinates(points), color=LIGHT, linewidth=0.6, zorder=0)


OTHERS: Key = ("the other panels", LIGHT, "-")
"""Key of the lines of :func:`draw_others`."""

FAR = 2
"""How far an axis goes on its bad side, in distances from the best mean to the worst one of the median curve."""


def clip(grid: Sequence[Axes], curves: Sequence[Points], lower_is_better: bool) -> str:
    """End the shared y axis so that a few bad values, or wide intervals, do not flatten the curves.

    The axis ends on its bad side :data:`FAR` times as far from the best mean as the median curve reaches. A mean beyond
    it is a triangle at the edge. Returns a note on what is cut; "" if nothing is.
    """
    sign = 1 if lower_is_better else -1
    means = [[sign * mean for mean in _coordinates(points)[1]] for points in curves]
    best, worst = min(map(min, means)), max(map(max, means))
    reach = FAR * (statistics.median(map(max, means)) - best)
    ends = [sign * end for points in curves for side in _ends(points) for end in side]
    if reach <= 0 or (max(ends) <= best + reach and min(ends) >= best - reach / 2):
        return ""
    low, high = max(min(ends), best - reach / 2), min(max(ends), best + reach)
    low -= 0.05 * (high - low)
    grid[0].set_ylim(*sorted((sign * low, sign * high)))
    for axes, points in zip(grid, curves, strict=True):
        places = [x for x, estimate in points if sign * estimate.mean > high]
        beyond(axes, places, top=lower_is_better)
    if worst > high:
        return f"triangles: beyond the axis, {'up' if lower_is_better else 'down'} to {sign * worst:.2g}"
    return "the axis cuts the widest intervals"


def beyond(axes: Axes, places: Sequence[float], top: bool = True) -> None:
    """Triangles at the top or bottom of the panel, for what is beyond the y axis there."""
    edge = [0.96 if top else 0.04] * len(places)
    axes.plot(places, edge, "^" if top else "v", color=BLUE, markersize=4, transform=axes.get_xaxis_transform())


def open_circles(axes: Axes, points: Points, colour: str = BLUE) -> None:
    """Means as open circles on a line, each with its 95 % interval."""
    axes.errorbar(
        *_coordinates(points),
        yerr=[estimate.half_width() or 0 for _, estimate in points],
        color=colour,
        marker="o",
        markersize=3,
        markerfacecolor="white",
        elinewidth=0.8,
    )


def _ends(points: Points) -> tuple[list[float], list[float]]:
    """Lower and upper ends of the intervals."""
    halves = [(estimate.mean, estimate.half_width() or 0.0) for _, estimate in points]
    return [mean - half for mean, half in halves], [mean + half for mean, half in halves]


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
        labels.append(text if room > 0.03 + 0.018 * len(last_text + text) else "")
        last_value, last_text = (value, text) if labels[-1] else (last_value, last_text)
    axes.set_xticks(values, labels)


def from_zero(axes: Axes) -> None:
    """Let the y axis of a score go from 0 to at most 1, with room for markers at the top. Call it after drawing."""
    axes.set_ylim(0, 1.03 * min(1.0, axes.get_ylim()[1]))


def name_axes(figure: Figure, x: str, y: str, notes: Sequence[str] = ()) -> None:
    """Common axis labels of all panels of a figure, with notes below the x axis: in brackets if that has a label."""
    text = "; ".join(note.replace(": ", ":\u00a0") for note in notes if note)  # "triangles: ..." stays on one line
    labelled = f"{x} ({text})" if x and text else x or text
    figure.supxlabel(textwrap.fill(labelled, round(15 * figure.get_figwidth())), fontsize=8, parse_math=False)
    figure.supylabel(y, fontsize=8, parse_math=False)


def score(board: Board, row: Row, name: str = "f1") -> Estimate:
    """A score of a row with the board's error."""
    return row.estimate(name, board.error) or row.scores[name][0]


def top_of(board: Board, row: Row) -> float:
    """The upper end of the interval of a row's F1."""
    estimate = score(board, row)
    return estimate.mean + (estimate.half_width() or 0.0)


def off_scale(board: Board, rows: Sequence[Row]) -> set[str]:
    """The label of a ceiling so far above all other rows that an axis of F1 is for these: more than twice as high."""
    highest = max((top_of(board, row) for row in rows if row.method != CEILING), default=0.0)
    return {row.label for row in rows if row.method == CEILING and top_of(board, row) > 2 * highest > 0}


Curve = TypeVar("Curve")


def split_floor(board: Board, curves: Mapping[str, Curve]) -> tuple[list[Curve], Curve | None]:
    """The curves, by the label of the row, that have panels of their own, and the one that is dashed in each of them.

    The latter is that of the unadapted model; it has a panel if it is the only one.
    """
    floor = curves.get(board.floor.label) if board.floor else None
    others = [curve for curve in curves.values() if curve is not floor]
    return (others, floor) if others else (list(curves.values()), None)


def answer_f1(board: Board) -> str:
    """Name of the axis of a board's F1."""
    first = board.first_documents
    return "answer F1" if first is None else f"answer F1 on the first {first} documents"


def board_error(board: Board) -> str:
    """Name of the error bars that :func:`score` has."""
    return stream_error_name(board) if board.error == "SE_stream" else "95\u00a0% interval over documents"


def intervals(marks: str, error: str) -> str:
    """A note on the marks that show an error with this name."""
    return error if error.endswith(NO_INTERVAL) else f"{marks}: {error}"


NO_INTERVAL = "no interval"


def stream_error_name(board: Board) -> str:
    """Name of the error bars of means over the streams."""
    count = len(board.streams)
    return f"one stream: {NO_INTERVAL}" if count == 1 else f"95\u00a0% interval over {count} streams"
