"""Plot of the form of answers: whether they still end by themselves, and what they are worth, along the stream."""

from __future__ import annotations

from collections.abc import Mapping
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
    Plot,
    Points,
    from_zero,
    heading,
    intervals,
    legend,
    name_axes,
    open_circles,
    rows_of_panels,
    stream_error_name,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("format_drift",)

LABELS = {"ended": "share that ends by itself", "f1": "F1", "em_prefix": "prefix EM"}
COLOURS = {"ended": GREY, "f1": BLUE, "em_prefix": ORANGE}

Curves = Mapping[str, Mapping[str, Points]]
"""Points by score, by the title of the row."""


def drawings(board: Board) -> Drawings:
    """The plot, if there are several probes and the share of answers that end by themselves is not always the same.

    The ceiling and control arms are left out, and so are methods whose answers all end by themselves; closed book
    shows how much of it is due to the questions alone.
    """
    rows = [row for row in board.rows if row.arm == "stream" and row.method != CEILING and probes(row) > 1]
    curves = {row.title: curves_of(row, tuple(LABELS)) for row in rows}
    if len({share for of in curves.values() for share in _shares(of)}) < 2:
        return {}
    drifting = {label: of for label, of in curves.items() if _shares(of) != {1.0}}
    ending = ", ".join(label for label in curves if label not in drifting)
    caption = (
        "Share of answers that the model ends itself and, below it, F1 and prefix EM at each probe by the number of "
        "documents seen. Where the share falls and F1 falls with it while prefix EM does not, a method has lost the "
        "form of answers and not what it knows"
    )
    notes = [
        intervals("bars", stream_error_name(board)),
        f"left out, since all their answers end by themselves: {ending}" if ending else "",
    ]
    count = len(curves) - len(drifting)
    others = f"left out: {count} method{'s' * (count > 1)} whose answers all end by themselves" if ending else ""
    return {"format_drift": Plot(lambda: _drift(board, drifting, others), caption, notes)}


def _shares(of: Mapping[str, Points]) -> set[float]:
    return {round(estimate.mean, 3) for _, estimate in of["ended"]}


def _drift(board: Board, curves: Curves, note: str) -> Figure:
    """For each method a panel with the share of answers that end, above one with their scores, on shared axes."""
    from matplotlib.figure import Figure

    across, down = rows_of_panels(len(curves))
    figure = Figure(figsize=(max(3.4, min(WIDTH, 1.2 + 2.1 * across)), 0.8 + 1.9 * down), layout="constrained")
    heights = {"height_ratios": [0.5, 1] * down}
    grid = figure.subplots(2 * down, across, sharex=True, squeeze=False, gridspec_kw=heights)
    shares, scores = grid[::2].ravel(), grid[1::2].ravel()
    ticks = sorted({x for of in curves.values() for points in of.values() for x, _ in points})
    apart = 0.01 * (ticks[-1] - ticks[0])
    for upper, lower, (label, of) in zip(shares, scores, curves.items(), strict=False):
        for place, (name, points) in enumerate(of.items()):  # side by side, so that no interval hides another
            axes = upper if name == "ended" else lower
            open_circles(axes, [(x + place * apart, estimate) for x, estimate in points], COLOURS[name])
        heading(upper, wrap(label, 24))
        upper.set_ylim(-0.1, 1.1)  # room for markers at 0 and 1
        lower.sharey(scores[0])
        lower.label_outer(remove_inner_ticks=False)
    scores[0].autoscale_view(scalex=False)  # over all panels that share it; drawing does that for the first one only
    from_zero(scores[0])
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
    legend(figure, [(LABELS[name], COLOURS[name], "-") for name in LABELS])
    name_axes(figure, "documents seen", "", [stream_error_name(board), note])
    return figure
