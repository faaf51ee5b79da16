"""Plot of what the base knows already: closed-book F1 by the month of the document."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reports.board import Board
from reports.rows import FLOOR, Row, final_answers, row_of, run_of
from reports.statistics import Item, mean_over_documents
from reports.style import BLUE, GREY, Drawings, Plot, Points, beyond, legend, line, name_axes, open_circles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("f1_by_month",)

MONTHS = 3
"""Fewest months of documents for which there is a plot."""

LONGEST = 24
"""Most months that are shown one by one; a longer time is shown by quarter, since a month has few questions."""

LABELS = 5
"""Most labels on the axis of months."""

Items = Mapping[int, Sequence[Item]]
"""The scored questions on the documents of each month, in the order of time; months count from the year 0."""


def drawings(board: Board) -> Drawings:
    """The plot, if closed book is on the board and its questions are on documents of several months.

    The board's reference, if it is complete, is a second line.
    """
    complete = [row for row in board.rows if row.arm == "stream" and row.status == "complete"]
    floor = row_of(complete, FLOOR)
    months = {} if floor is None else items_of(floor)
    if floor is None or len(months) < MONTHS:
        return {}
    width = 1 if max(months) - min(months) < LONGEST else 3
    rows = [floor, *(row for row in complete if row.label == board.reference)]
    curves = {row.title: merged(items_of(row), width) for row in rows}
    bare = any(not estimate.half_width() for items in curves.values() for _, estimate in estimates(items))
    unit = "month" if width == 1 else "quarter"
    return {
        "f1_by_month": Plot(
            lambda: _by_month(curves, width, unit),
            f"Closed-book F1 by the {unit} of the question's document, above the number of questions",
            [
                "bars: 95 % interval over documents",
                "no bar: a single document, or equal scores, which say little" if bare else "",
                "a triangle: the bar goes beyond the axis",
                f"thin line: {[*curves][1]}" if len(curves) > 1 else "",
            ],
        )
    }


def items_of(row: Row) -> Items:
    """The F1 of a row's answers at the last probe by the month of the document, for documents that have one."""
    items: dict[int, list[Item]] = defaultdict(list)
    for record in row.records:
        for event in final_answers(row.runs, record):
            if (month := month_of(event.timestamp)) is not None:
                items[month].append(Item.of(run_of(record), event.question_id, event.document_id, event.f1))
    return dict(sorted(items.items()))


def merged(items: Items, months: int) -> Items:
    """The same by so many months, each named by its first one."""
    bins: dict[int, list[Item]] = defaultdict(list)
    for month, scored in items.items():
        bins[month - month % months] += scored
    return bins


def month_of(timestamp: str) -> int | None:
    """The month of an ISO date; None if there is none."""
    year, _, rest = timestamp.partition("-")
    return 12 * int(year) + int(rest[:2]) - 1 if rest else None


def name_of(month: int) -> str:
    """Year and month, such as 2024-07."""
    return f"{month // 12}-{month % 12 + 1:02}"


def estimates(items: Items) -> Points:
    """The mean over each month's questions, with an error over their documents."""
    return [(month, mean_over_documents(scored)) for month, scored in items.items()]


def _by_month(items: Mapping[str, Items], width: int, unit: str) -> Figure:
    """F1 by ``width`` months, above the number of questions in each. The first row is closed book."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.6), layout="constrained")
    scores, sizes = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 0.3]})
    curves = {label: estimates(of) for label, of in items.items()}
    floor, *others = curves
    open_circles(scores, curves[floor])
    for label in others:
        line(scores, curves[label], GREY)
    # the interval of a month with two documents may be wider than all values: such a bar leaves the picture
    highest = max(estimate.mean for points in curves.values() for _, estimate in points)
    top = min(1.03, 1.6 * highest or 1.03)
    scores.set_ylim(-0.03 * top, top)  # room for markers at 0
    wide = [month for month, estimate in curves[floor] if estimate.mean + (estimate.half_width() or 0) > top]
    beyond(scores, wide)
    scores.set_ylabel("answer F1")
    legend(figure, [(floor, BLUE, "-"), *((label, GREY, "-") for label in others)])
    counts = [len({(item.stream, item.unit) for item in scored}) for scored in items[floor].values()]
    sizes.bar(list(items[floor]), counts, width=0.7 * width, color=GREY)
    sizes.set_ylabel("questions")
    ticks = _ticks(min(items[floor]), max(items[floor]))
    sizes.set_xticks(ticks, list(map(name_of, ticks)))
    name_axes(figure, f"{unit} of the document", "", ["95\u00a0% interval over documents"])
    return figure


def _ticks(first: int, last: int) -> Sequence[int]:
    """Months from ``first`` to ``last``, at most :data:`LABELS`: all, or those that begin a quarter, a year or so."""
    steps = itertools.chain((1, 2, 3, 6), itertools.count(12, 12))
    return next(ticks for step in steps if len(ticks := range(-(-first // step) * step, last + 1, step)) <= LABELS)
