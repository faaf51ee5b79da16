"""Plots of a figure: ours in panels beside the published ones or, at the paper's size, both on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from reports.reproduction.figure import Figure
from reports.reproduction.series import NO_PLACE, UNITS, Ours, Theirs
from reports.statistics import show_error, show_number
from reports.style import (
    BLUE,
    COLOURS,
    MARKERS,
    ORANGE,
    WIDTH,
    Plot,
    bar,
    board_error,
    heading,
    label_rows,
    log_ticks,
    name_axes,
    open_circles,
    rows_of_panels,
    wrap,
    wrap_labels,
    write_value,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

AXES: Mapping[str, tuple[str, str]] = {
    "documents": ("documents seen", "documents adapted to"),
    "irrelevant": ("irrelevant documents (%)", "irrelevant documents (%)"),
    "context": ("documents held", "context (tokens)"),
}
"""Names of the x axis of our panels and of the published ones."""
APART = 0.014
"""How far the curves of two methods are apart, as a share of the axis."""
IN_A_ROW = 3
"""Most published panels that stand in one row with ours."""


def apart(figure: Figure, score: str, own: Sequence[Ours], published: Sequence[Theirs]) -> Plot:
    """Our boards and the published values, each in a panel with axes of its own."""
    draw = _bars_apart if figure.drawing == "bars" else _curves_apart
    papers = " and ".join(dict.fromkeys(theirs.papers for theirs in published))
    sides = (f"ours, with {_errors(own)}", f"published, {papers}" if papers else "")
    colours = ("blue: ", "orange: ") if figure.drawing == "bars" else ("", "")
    notes = [f"{colour}{side}" for colour, side in zip(colours, sides, strict=True) if side]
    notes.append("each panel has a scale of its own")
    return Plot(lambda: draw(figure, score, own, published, notes), _caption(figure, score), [*notes, *_here(own)])


def _caption(figure: Figure, score: str) -> str:
    return f"{figure.title}: {UNITS[score].name}"


def _errors(own: Sequence[Ours]) -> str:
    """Names of our error bars."""
    return " and ".join(dict.fromkeys(board_error(ours.board) for ours in own))


def _here(own: Sequence[Ours]) -> list[str]:
    """What our boards are of, and which methods they lack."""
    left_out = dict.fromkeys(name for ours in own for name in ours.left_out)
    boards = f"here: {'; '.join(ours.name for ours in own)}"
    return [boards, f"left out here: {'; '.join(left_out)}" if left_out else ""]


def _grid(first: int, others: int, height: float, sharey: bool) -> tuple[Drawn, list[Axes]]:
    """Panels of two kinds: in one row, or each kind in rows of its own if there are many."""
    from matplotlib.figure import Figure as Drawn

    across, down = (first + others, 1) if others <= IN_A_ROW else rows_of_panels(others)
    above = math.ceil(first / across) if others > IN_A_ROW else 0
    drawn = Drawn(figsize=(min(WIDTH, 1.4 + 2.1 * across), 0.55 + height * (above + down)), layout="constrained")
    grid = list(drawn.subplots(above + down, across, sharey=sharey, squeeze=False).flat)
    start = above * across or first
    used = [*grid[:first], *grid[start : start + others]]
    for axes in grid:
        if axes not in used:
            axes.set_axis_off()
    return drawn, used


def _bars_apart(
    figure: Figure, score: str, own: Sequence[Ours], published: Sequence[Theirs], notes: Sequence[str]
) -> Drawn:
    names = _shown(figure, own, published)
    labels, places, height = wrap_labels(names)
    drawn, grid = _grid(len(own), len(published), 0.42 + 0.8 * height, sharey=True)
    for axes, ours in zip(grid, own, strict=False):
        for y, name in zip(places, names, strict=True):
            if name in ours.estimates:
                bar(axes, y, ours.estimates[name][NO_PLACE], BLUE, digits=UNITS[score].digits)
        _name_panel(axes, ours.place)
    for axes, theirs in zip(grid[len(own) :], published, strict=True):
        for y, name in zip(places, names, strict=True):
            if name in theirs.lines:
                value = theirs.lines[name][NO_PLACE]
                axes.barh(y, value.number, height=0.62, color="white", edgecolor=ORANGE)
                write_value(axes, (value.number, y), str(value))
        _name_panel(axes, _heading(theirs, published, score))
    label_rows(grid, places, labels, margin=0.6)
    for axes in grid:
        low, high = axes.get_xlim()
        axes.set_xlim(1.3 * min(low, 0), 1.3 * max(high, 0))  # room for the values
        axes.axvline(0, color="black", linewidth=0.5)
        axes.locator_params(axis="x", nbins=4)
    name_axes(drawn, "", "", [UNITS[score].name, *notes])
    return drawn


def _curves_apart(
    figure: Figure, score: str, own: Sequence[Ours], published: Sequence[Theirs], notes: Sequence[str]
) -> Drawn:
    names = _shown(figure, own, published)
    drawn, grid = _grid(len(own), len(published), 2.1, sharey=False)
    along = AXES[figure.along or ""]
    for axes, ours in zip(grid, own, strict=False):
        for place, name in enumerate(names):
            line = ours.estimates.get(name, {})
            halves = [of.half_width() or 0 for of in line.values()]
            x = _beside(figure, ours.estimates, line, place - (len(names) - 1) / 2)
            _curve(axes, place, name, x, [of.mean for of in line.values()], halves)
        _finish(axes, figure, ours.estimates, along[0])
        _name_panel(axes, ours.place)
    for axes, theirs in zip(grid[len(own) :], published, strict=True):
        for place, name in enumerate(names):
            values = theirs.lines.get(name, {})
            _curve(axes, place, name, values, [value.number for value in values.values()])
        _finish(axes, figure, theirs.lines, along[1])
        _name_panel(axes, _heading(theirs, published, score))
    _legend(drawn, grid, names)
    name_axes(drawn, "", UNITS[score].name, notes)
    return drawn


def _beside(figure: Figure, lines: Mapping[str, Iterable[float]], line: Iterable[float], steps: float) -> list[float]:
    """The places of a line, so many small steps beside those of the others, so that no interval hides another."""
    places = {place for other in lines.values() for place in other}
    low, high = min(places, default=0.0), max(places, default=0.0)
    if figure.log and low > 0:
        return [place * (high / low) ** (APART * steps) for place in line]
    return [place + APART * steps * (high - low) for place in line]


def _curve(
    axes: Axes, place: int, name: str, x: Iterable[float], y: Sequence[float], half: Sequence[float] = ()
) -> None:
    """The curve of a method, in its colour and with its marker; nothing without points."""
    if y:
        axes.errorbar(
            [*x],
            y,
            yerr=half or None,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=3,
            linewidth=1,
            elinewidth=0.5,
            label=name,
        )


def _finish(axes: Axes, figure: Figure, lines: Mapping[str, Iterable[float]], x: str) -> None:
    """Ticks at the places of the lines on a logarithmic axis, and a y axis from 0."""
    places = sorted({place for line in lines.values() for place in line})
    if figure.log and len(places) > 1:
        log_ticks(axes, places, [f"{place / 1024:g}K" if place >= 1024 else f"{place:g}" for place in places])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x, fontsize=7)


def _legend(drawn: Drawn, grid: Sequence[Axes], names: Sequence[str]) -> None:
    found = {name: artist for axes in grid for artist, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [name for name in names if name in found]
    drawn.legend(
        [found[name] for name in shown],
        shown,
        loc="outside upper center",
        ncols=min(6, len(shown)),
        frameon=False,
        fontsize=7,
    )


def _shown(figure: Figure, own: Sequence[Ours], published: Sequence[Theirs]) -> list[str]:
    """The methods that have anything to show, in the order of the file."""
    having = {name for ours in own for name in ours.lines} | {name for theirs in published for name in theirs.lines}
    return [name for name in figure.methods if name in having]


def _name_panel(axes: Axes, text: str) -> None:
    specification = axes.get_subplotspec()
    width = 20 if specification is not None and specification.get_gridspec().ncols > IN_A_ROW else 28
    heading(axes, wrap(text, width))


def _heading(theirs: Theirs, published: Sequence[Theirs], score: str) -> str:
    """Dataset and base, with the paper if that is not the same for all panels, and the unit if it is not ours."""
    unit, _ = UNITS[score].differing(theirs.unit)
    place = theirs.place if len({one.papers for one in published}) == 1 else theirs.name
    return f"{place} ({unit})" if unit else place


def heat(figure: Figure, score: str, own: Sequence[Ours]) -> Plot:
    """A heat map for each of our boards: the score of each method where the file places it, with half its interval."""
    notes = [f"± half the {_errors(own)}"]
    return Plot(
        lambda: _heat_maps(figure, score, own, notes),
        f"{_caption(figure, score)}, by {figure.across}",
        [*notes, *_here(own)],
    )


def _heat_maps(figure: Figure, score: str, own: Sequence[Ours], notes: Sequence[str]) -> Drawn:
    import numpy as np

    placed = {name: method.at for name, method in figure.methods.items() if method.at is not None}
    rows, columns = (list(dict.fromkeys(place[side] for place in placed.values())) for side in (0, 1))
    drawn, grid = _grid(len(own), 0, 0.35 + 0.4 * len(rows), sharey=True)
    drawn.set_figwidth(min(WIDTH, (1.0 + 0.95 * len(columns)) * len(own)))
    unit = UNITS[score]
    for axes, ours in zip(grid, own, strict=True):
        values = np.full((len(rows), len(columns)), np.nan)
        for name, line in ours.estimates.items():
            row, column = rows.index(placed[name][0]), columns.index(placed[name][1])
            estimate = line[NO_PLACE]
            values[row, column] = estimate.mean
            half = estimate.half_width()
            error = "" if half is None else f"\n± {show_error(half, unit.digits)}"
            text = f"{show_number(estimate.mean, unit.digits)}{error}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5)
        axes.imshow(values, cmap="Blues", alpha=0.6, aspect="auto")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        _name_panel(axes, ours.place)
    name_axes(drawn, figure.across, "", [unit.name, *notes])
    return drawn


def together(figure: Figure, score: str, ours: Ours, theirs: Theirs) -> Plot:
    """At the paper's size ours and the published values are on one axis."""
    draw = _curves_together if figure.along else _bars_together
    notes = [f"blue: ours, with {_errors([ours])}", f"crosses: published, {theirs.name}"]
    return Plot(lambda: draw(figure, score, ours, theirs, notes), _caption(figure, score), [*notes, *_here([ours])])


def _bars_together(figure: Figure, score: str, ours: Ours, theirs: Theirs, notes: Sequence[str]) -> Drawn:
    """A row for each method."""
    from matplotlib.figure import Figure as Drawn

    names = _shown(figure, [ours], [theirs])
    labels, places, height = wrap_labels(names)
    drawn = Drawn(figsize=(4.2, 0.75 + height), layout="constrained")
    axes = drawn.add_subplot()
    for y, name in zip(places, names, strict=True):
        if name in ours.estimates:
            bar(axes, y, ours.estimates[name][NO_PLACE], BLUE, digits=UNITS[score].digits)
        if name in theirs.lines:
            axes.plot(theirs.lines[name][NO_PLACE].number, y, color=ORANGE, marker="x", zorder=3)
    label_rows([axes], places, labels, margin=0.5)
    axes.set_xlim(left=0)
    name_axes(drawn, "", "", [UNITS[score].name, *notes])
    return drawn


def _curves_together(figure: Figure, score: str, ours: Ours, theirs: Theirs, notes: Sequence[str]) -> Drawn:
    """A panel for each method."""
    names = _shown(figure, [ours], [theirs])
    drawn, grid = _grid(0, len(names), 1.5, sharey=True)
    for axes, name in zip(grid, names, strict=True):
        if points := [*ours.estimates.get(name, {}).items()]:
            open_circles(axes, points)
        values = theirs.lines.get(name, {})
        numbers = [value.number for value in values.values()]
        axes.plot([*values], numbers, color=ORANGE, marker="x", linestyle="", zorder=3)
        heading(axes, name)
        _finish(axes, figure, {**ours.estimates, **theirs.lines}, "")
    name_axes(drawn, AXES[figure.along or ""][0], UNITS[score].name, notes)
    return drawn
