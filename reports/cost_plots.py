"""The plots of costs: F1, or bits per byte, by the total cost of a stream, and state and time of each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reports.board import Board
from reports.columns import break_even, in_bytes, number
from reports.dot_labels import Dot, label_dots
from reports.origins import costs_of
from reports.rows import FLOOR, Row
from reports.statistics import Estimate
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    WIDTH,
    Drawings,
    Plot,
    answer_f1,
    board_error,
    intervals,
    label_rows,
    legend,
    off_scale,
    score,
    wrap_labels,
    write_value,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("f1_by_cost", "bits_per_byte_by_cost", "cost_by_method")

TOTALS = {"total_flops": "floating-point operations", "total_seconds": "seconds"}

BREAK_EVEN, UNTIL = "break_even_documents", "break_even_until"
LABELS = {
    "state_bytes": "state (bytes)",
    "offline_seconds": "offline (s)",
    "seconds_per_document": "observing\n(s per document)",
    "seconds_per_question": "answering\n(s per question)",
    BREAK_EVEN: "break-even\n(documents)",
}

BEYOND = "triangle: beyond the axis"

MOST_FAR = 2
"""Most labels of a panel that are joined to their dots by lines: with more, dots have numbers."""

NOTES = {
    "f1": "filled: on the Pareto front, better than every cheaper method that competes",
    "bits_per_byte": "filled: on the Pareto front, lower than every cheaper method that competes",
}
BESIDE = "controls, in grey, and rows that are not complete do not compete"


@dataclass(frozen=True)
class Point:
    """A method's total cost on one stream, and its score: F1 or, where no questions are asked, bits per byte."""

    label: str
    cost: float
    score: Estimate
    control: bool
    competes: bool
    """True if it has ranks on its board, or is the unadapted model where text is scored: these can be on the front."""
    beyond: bool = False
    """True if the score is beyond the axis."""


def drawings(board: Board) -> Drawings:
    """The plots, if a method on the board has a score or a cost above 0."""
    rows = [row for row in board.rows if row.arm == "stream" and row.costs]
    plots = {}
    if any(points(board, total) for total in TOTALS):
        plots[f"{_scored(board)}_by_cost"] = scores([board])
    if _drawn(rows):
        paid_back = (
            f"break-even: documents beyond which, or until which (a triangle), its total seconds are at most those of "
            f"{board.reference}"
        )
        plots["cost_by_method"] = Plot(
            lambda: _draw_costs(board, rows),
            "Costs of every method: bytes that it changes or adds, offline seconds, seconds to observe a document, "
            "and seconds to answer a question",
            [paid_back * (BREAK_EVEN in _drawn(rows)), "axes are logarithmic", "grey: controls"],
        )
    return plots


def scores(boards: Sequence[Board]) -> Plot:
    """The scores of all methods on some boards by their total cost."""
    return Plot(
        lambda: _draw_scores(boards),
        f"{_axis(boards[0])} by the total cost of one stream, {_included(boards[0])} included",
        [
            intervals("bars", _errors(boards)),
            NOTES[_scored(boards[0])],
            BESIDE,
            "dashed: the Pareto front" + " of all boards together" * (len(boards) > 1),
            BEYOND,
        ],
    )


def _axis(board: Board) -> str:
    """Name of the axis of the score."""
    return answer_f1(board) if _scored(board) == "f1" else "bits per byte (lower is better)"


def _errors(boards: Sequence[Board]) -> str:
    """Names of the error bars."""
    return "; ".join(dict.fromkeys(map(board_error, boards)))


def _included(board: Board) -> str:
    return "offline costs" if _scored(board) == "f1" else "scoring and offline costs"


def _scored(board: Board) -> str:
    """Name of the score of the points: the headline or, on boards of text alone, what no tokenizer changes."""
    return "f1" if board.headline == "f1" else "bits_per_byte"


def points(board: Board, total: str) -> list[Point]:
    """The methods with a score and this total, in the board's order, unless all costs are 0."""
    name = _scored(board)
    rows = [row for row in board.rows if row.arm == "stream" and name in row.scores and total in row.costs]
    far = off_scale(board, rows) if name == "f1" else _broken(board, rows)
    found = [
        Point(
            label=row.title,
            cost=total_cost(board, row, total),
            score=score(board, row, name),
            control=row.control and not _is_static(board, row),
            competes=may_lead(board, row),
            beyond=row.label in far,
        )
        for row in rows
    ]
    return found if any(point.cost for point in found) else []


def total_cost(board: Board, row: Row, total: str) -> float:
    """The total of a row; where text alone is scored, with the scoring, which is the forward pass of every method."""
    cost = row.costs[total]
    if board.headline != "f1":
        scoring = [getattr(costs_of(record).score, total.removeprefix("total_")) for record in row.records]
        cost += sum(scoring) / max(1, len(scoring))
    return cost


def may_lead(board: Board, row: Row) -> bool:
    """True for what can be on the Pareto front."""
    return row.standing is not None or _is_static(board, row)


def _is_static(board: Board, row: Row) -> bool:
    """True for the unadapted model where text alone is scored: there it is no control, but what others must beat."""
    return board.headline != "f1" and row.method == FLOOR and row.status == "complete"


def _broken(board: Board, rows: Sequence[Row]) -> set[str]:
    """Labels of rows with more than twice the lowest bits per byte: an axis that reaches them flattens the others."""
    means = {row.label: score(board, row, "bits_per_byte").mean for row in rows}
    lowest = min(means.values(), default=0.0)
    return {label for label, mean in means.items() if mean > 2 * lowest}


def _all_points(boards: Sequence[Board], total: str) -> list[Point]:
    named = len(boards) > 1
    return [
        replace(point, label=f"{board.model}: {point.label}") if named else point
        for board in boards
        for point in points(board, total)
    ]


def pareto_front(methods: Sequence[Point], lower_is_better: bool = False) -> list[Point]:
    """The methods that compete and than which no other such one is at most as dear and at least as good, by cost."""
    sign = -1 if lower_is_better else 1
    front: list[Point] = []
    for point in sorted(methods, key=lambda point: (point.cost, -sign * point.score.mean)):
        if point.competes and (not front or sign * point.score.mean > sign * front[-1].score.mean):
            front.append(point)
    return front


def _draw_scores(boards: Sequence[Board], numbered: bool = False) -> Figure:
    """A panel for each total; the methods of the Pareto front are filled and joined by a dashed line.

    With several boards, as on several base models, labels begin with the base, and the front is that of all. Where many
    labels are far from their dots, dots have numbers, with a key below.
    """
    from matplotlib.figure import Figure

    panels = {total: found for total in TOTALS if (found := _all_points(boards, total))}
    lower_is_better = _scored(boards[0]) == "bits_per_byte"
    numbers = {
        label: number for number, label in enumerate(dict.fromkeys(p.label for of in panels.values() for p in of), 1)
    }
    columns = 2 if max(map(len, numbers)) > 38 else 3
    key = 0.14 * math.ceil(len(numbers) / columns) + 0.1 if numbered else 0.0
    height = 2.7 * len(panels) + 0.5 + key  # inches
    figure = Figure(figsize=(WIDTH, height))  # no layout engine: labels are placed on the final axes
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - 0.25 / height, bottom=(0.65 + key) / height, hspace=0.28)
    far = 0
    for axes, (total, methods) in zip(grid, panels.items(), strict=True):
        shown = [replace(point, label=str(numbers[point.label])) for point in methods] if numbered else methods
        far = max(far, _panel(axes, shown, lower_is_better))
        axes.set_xlabel(TOTALS[total], labelpad=1)
        axes.set_ylabel(_axis(boards[0]))
    if far > MOST_FAR and not numbered:
        return _draw_scores(boards, numbered=True)
    for label, of_label in numbers.items() if numbered else ():
        row, column = divmod(of_label - 1, columns)
        place = 0.085 + 0.9 * column / columns, (key - 0.14 * (row + 1)) / height
        figure.text(*place, f"{of_label}  {label}", fontsize=6.5, parse_math=False)
    beyond = f"; {BEYOND}" if any(point.beyond for of in panels.values() for point in of) else ""
    figure.text(
        0.5,
        (0.09 + key) / height,
        f"total cost of one stream, {_included(boards[0])} included (bars: {_errors(boards)}{beyond})",
        ha="center",
        fontsize=8,
    )
    legend(figure, [("Pareto front", BLUE, DASHED)])
    return figure


def _panel(axes: Axes, methods: Sequence[Point], lower_is_better: bool = False) -> int:
    """Draw the methods; returns the number of labels that are far from their dots."""
    lowest, highest = min(point.cost for point in methods if point.cost), max(point.cost for point in methods)
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    zero = 10.0 ** (first - 1)  # the place of a cost of 0 on the logarithmic axis
    places = [point.cost or zero for point in methods]
    axes.set_xscale("log")
    if min(places) == zero:
        decades = range(first, last + 1)
        axes.minorticks_off()
        axes.set_xticks([zero, *(10.0**power for power in decades)], ["0", *(f"$10^{{{power}}}$" for power in decades)])
    spread = math.log10(highest / min(places))
    axes.set_xlim(min(places) / 10 ** (0.06 * spread + 0.1), highest * 10 ** (0.12 * spread + 0.1))
    shown = [point for point in methods if not point.beyond]
    ends = [point.score.mean + side * (point.score.half_width() or 0) for point in shown for side in (-1, 1)]
    if lower_is_better:
        margin = 0.15 * (max(ends) - min(ends)) or 0.1
        axes.set_ylim(min(ends) - margin, max(ends) + margin)
    else:
        axes.set_ylim(min(0.0, *ends), 1.08 * max(ends) or 1)
    front = pareto_front(methods, lower_is_better)
    steps = [(point.cost or zero, point.score.mean) for point in front]
    if steps:
        worst = axes.get_ylim()[1 if lower_is_better else 0]
        steps = [(steps[0][0], worst), *steps, (axes.get_xlim()[1], steps[-1][1])]
        axes.step(*zip(*steps, strict=True), where="post", color=BLUE, linewidth=0.7, linestyle=DASHED, zorder=1)
    dots = [
        Dot(
            label=f"{point.label}  {point.score.mean:.2f}" if point.beyond else point.label,
            x=x,
            y=axes.get_ylim()[1] if point.beyond else point.score.mean,
            half=0 if point.beyond else point.score.half_width() or 0,
            colour=GREY if point.control else "black",
        )
        for point, x in zip(methods, places, strict=True)
    ]
    for point, dot in zip(methods, dots, strict=True):
        colour = GREY if point.control else BLUE
        axes.errorbar(
            dot.x,
            dot.y,
            yerr=dot.half,
            fmt="^" if point.beyond else "o",
            color=colour,
            markersize=4,
            markerfacecolor=colour if point in front or point.control else "white",
            elinewidth=0.6,
            clip_on=False,
        )
    return label_dots(axes, dots, steps)


def _draw_costs(board: Board, rows: Sequence[Row]) -> Figure:
    """One panel for each cost with a dot and its value for each method, on logarithmic axes.

    A cost of 0 is a "0" at the edge. So is "never" for a method that is not cheaper than the reference with any number
    of documents, and "?" if that is not clear; every other complete method is compared with it. One that is cheaper
    with few documents only has a triangle at the last of them.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    names = _drawn(rows)
    compared = f"{board.headline}_vs_reference"
    labels, places, height = wrap_labels([row.title for row in rows])
    figure = Figure(figsize=(WIDTH, 0.6 + height), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        axes.set_xscale("log")
        axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        for y, row in zip(places, rows, strict=True):
            value, colour = _value(row, name), GREY if row.control else BLUE
            if value:
                marker = "<" if name == BREAK_EVEN and UNTIL in row.costs else "o"
                axes.plot(value, y, marker, color=colour, markersize=4, clip_on=False)
                write_value(axes, (value, y), _text(row, name))
            elif value == 0 or (name == BREAK_EVEN and compared in row.scores):
                axes.annotate(
                    "0" if value is not None else break_even(row) or "never",
                    xy=(0.03, y),
                    xycoords=("axes fraction", "data"),
                    va="center_baseline",
                    color=colour,
                    fontsize=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
                )
        values = [value for row in rows if (value := _value(row, name))]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        high = max(high, low + 1)
        axes.set_xlim(10.0**low / 2, 10.0 ** (high + 0.45 * (high - low)))  # with room for the values
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())  # within one decade matplotlib would label every tick
        axes.set_xlabel(LABELS[name])
    label_rows(grid, places, labels, margin=places[0] + 0.5)
    return figure


def _drawn(rows: Sequence[Row]) -> list[str]:
    """The costs that are above 0 in a row."""
    return [name for name in LABELS if any(_value(row, name) for row in rows)]


def _value(row: Row, name: str) -> float | None:
    """The place of a cost; that of a break-even is the number of documents from which on, or until which, it holds."""
    return row.costs.get(UNTIL, row.costs.get(name)) if name == BREAK_EVEN else row.costs.get(name)


def _text(row: Row, name: str) -> str:
    """A cost as in the tables."""
    if name == BREAK_EVEN:
        return break_even(row) or ""
    return (in_bytes if name == "state_bytes" else number)(row.costs[name])
