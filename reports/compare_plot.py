"""Plot of a comparison: the paired differences with their intervals, one below the other."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reports import plots
from reports.compare import Comparison, Pair, bootstrap, t_test
from reports.compare_tables import UNITS, name_of, units_of
from reports.statistics import ErrorKind
from reports.style import BLUE, DASHED, GREY, ORANGE, Plot, label_rows, legend, name_axes, wrap_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "compare"

Interval = tuple[float, float] | None


class Line(NamedTuple):
    """One line of the plot."""

    label: str
    mean: float
    interval: Interval
    resampled: Interval = None
    """Interval by the bootstrap."""
    colour: str = BLUE


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Draw the comparison as ``compare.pdf``, ``.svg`` and ``.png`` under ``out``, with its caption in ``.txt``."""
    name = name_of(comparison.pairs[0].score)
    caption = f"Paired differences in {name}, {comparison.a} minus {comparison.b}"
    notes = [*_notes(comparison), "dashed: no difference"]
    return plots.save({NAME: Plot(lambda: draw(comparison), caption, notes)}, out)


def draw(comparison: Comparison) -> Figure:
    """The figure: for two rows the difference on each stream and on each board, for two boards that of each row."""
    from matplotlib.figure import Figure

    lines = list(_of_rows(comparison) if comparison.of_rows else _of_boards(comparison))
    labels, places, height = wrap_labels([line.label for line in lines])
    figure = Figure(figsize=(4.6, 1.1 + height), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
    for y, line in zip(places, lines, strict=True):
        _bar(axes, line.mean, y, line.interval, line.colour, "o")
        if line.resampled is not None:
            _bar(axes, line.mean, y + 0.28, line.resampled, ORANGE)
            if line is not lines[-1]:
                axes.axhline(y + 0.62, color=GREY, linewidth=0.4, zorder=0)
    label_rows([axes], places, labels, margin=places[0] + 0.8)
    first = comparison.pairs[0]
    a, b = comparison.a, comparison.b
    low, high = (b, a) if first.sign > 0 else (a, b)
    for place, side, text in (
        (0.0, "left", f"\N{LEFTWARDS ARROW} {low} is better"),
        (1.0, "right", f"{high} is better \N{RIGHTWARDS ARROW}"),
    ):
        half = textwrap.fill(text, 32)
        axes.text(place, 1.01, half, transform=axes.transAxes, ha=side, va="bottom", fontsize=7, color=GREY)
    legend(figure, [("no difference", GREY, DASHED)])
    name_axes(figure, f"{name_of(first.score)}, {a} minus {b}", "", _notes(comparison))
    return figure


def _notes(comparison: Comparison) -> list[str]:
    notes = [f"blue: 95\u00a0% t interval over {units_of(comparison)}"]
    if comparison.of_rows:
        notes.append(f"orange: bootstrap over {UNITS['SE_doc']}")
        notes += ["grey: within a stream"] * any(len(pair.streams) > 1 for pair in comparison.pairs)
    return notes


def _bar(axes: Axes, mean: float, y: float, interval: Interval, colour: str, marker: str = "") -> None:
    """An interval, with a marker at the mean: filled for what sums up other lines."""
    reach = None if interval is None else [[max(0.0, mean - interval[0])], [max(0.0, interval[1] - mean)]]
    face = colour if colour == BLUE else "white"
    axes.errorbar(
        mean, y, xerr=reach, color=colour, marker=marker, markersize=4, markerfacecolor=face, linewidth=1, capsize=1.5
    )


def _of_rows(comparison: Comparison) -> Iterator[Line]:
    for pair in comparison.pairs:
        if len(pair.streams) > 1:
            for stream, estimate in pair.by_stream().items():
                yield Line(stream, estimate.mean, estimate.interval(), colour=GREY)
        yield _mean(pair.title, [pair])
    if comparison.pooled:
        yield _mean("mean over the boards", list(comparison.pairs))


def _mean(label: str, of: list[Pair]) -> Line:
    kind: ErrorKind = "SE_stream" if all(pair.error == "SE_stream" for pair in of) else "SE_doc"
    t = t_test(of, kind)
    return Line(label, t.mean, t.interval, bootstrap(of, "SE_doc").interval)


def _of_boards(comparison: Comparison) -> Iterator[Line]:
    for pair in comparison.pairs:
        yield Line(pair.title, pair.estimate.mean, pair.estimate.interval())
