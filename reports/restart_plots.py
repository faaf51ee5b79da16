"""Plot of restarts: how the gain of a method in predicting text grows after its weights are reset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from bench.data.arms import documents_per_reset
from bench.records.store import read_documents
from reports.arm_plots import arms_of
from reports.board import Board
from reports.rows import FLOOR, Row, run_of
from reports.score_plots import BINS, CUT, Curve, Value, binned
from reports.style import (
    DASHED,
    GREY,
    OTHERS,
    Drawings,
    Plot,
    band,
    clip,
    draw_others,
    intervals,
    legend,
    line,
    name_axes,
    no_band,
    panels,
    stream_error_name,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "gain_after_restart"
NAMES = (NAME,)
WITHOUT = "without restarts, at the same documents"


@dataclass(frozen=True)
class Restarts:
    """A method that is reset every so many documents: its gain by documents since then, and its gain without resets."""

    gain: Curve
    without: Curve | None
    """None if the method has no result on the streams themselves."""


def drawings(board: Board) -> Drawings:
    """The plot, if a method was reset along the stream, and documents are scored."""
    found = list(restarts(board))
    if not found:
        return {}
    return {
        NAME: Plot(
            lambda: _draw(board, found),
            f"Token NLL of {FLOOR} minus that of the method by documents since its last reset; higher is better",
            [
                intervals("bands", stream_error_name(board)),
                no_band(board, [one.gain.points() for one in found]),
                f"dashed: {WITHOUT}" if any(one.without for one in found) else "",
                "light lines: the other panels" if len(found) > 1 else "",
                CUT,
            ],
        )
    }


def restarts(board: Board) -> Iterator[Restarts]:
    """Each row on an arm ``every_N``, in the board's order; none if documents are not scored or without the floor."""
    floor = board.floor
    for row in board.rows:
        every = documents_per_reset(row.arm) if row.arm.startswith("every_") else None
        if every is None or floor is None or row.method == FLOOR:
            continue
        bare = _since_reset(floor, every)
        same = (other for other in arms_of(board, row) if other.arm == "stream")
        gain, *without = (_since_reset(one, every).below(bare) for one in (row, *same))
        if any(gain.parts):
            yield Restarts(gain, next((curve for curve in without if any(curve.parts)), None))


def _since_reset(row: Row, every: int) -> Curve:
    """Token NLL by the number of documents since the last multiple of ``every`` of them."""
    values = [
        Value(run_of(record), Fraction(event.position % every, every), event.nll, event.tokens)
        for record in row.records
        for event in read_documents(row.runs, record.id)
        if event.nll is not None
    ]
    return Curve(row.title, binned(values, min(BINS, every)), every)


def _draw(board: Board, found: Sequence[Restarts]) -> Figure:
    """One small panel for each method and length between resets."""
    figure, grid = panels([one.gain.label for one in found], sharex=False)
    points = [one.gain.points() for one in found]
    for axes, one, of in zip(grid, found, points, strict=True):
        if one.without is not None:
            line(axes, one.without.points(), GREY, DASHED)
        band(axes, of)
        axes.set_xlim(0, one.gain.documents)
    draw_others(grid, points)
    clipped = clip(grid, points, lower_is_better=False)
    keys = [(WITHOUT, GREY, DASHED)] if any(one.without for one in found) else []
    legend(figure, [*keys, *([OTHERS] if len(found) > 1 else [])])
    notes = [stream_error_name(board), clipped]
    name_axes(figure, "documents since the last reset", f"NLL gain over {FLOOR}\n(nats), higher is better", notes)
    return figure
