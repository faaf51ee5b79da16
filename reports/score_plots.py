"""Plots of scores: F1 by method, and the scores along the stream."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.schema import RunRecord
from bench.records.store import read_documents
from reports.board import CEILING, Board
from reports.rows import FLOOR, Row, final_answers
from reports.statistics import Estimate, stream_error
from reports.style import BLUE, DASHED, GREY, Drawings, band, error, f1, heading, name_axes, panels, readable, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("f1_by_method", "f1_by_position", "token_nll_by_position", "token_nll_gain_by_position")

BINS = 10
"""Parts into which the positions of a stream are put."""


@dataclass(frozen=True)
class Curve:
    """One row's values in each part of the stream, by stream; None where a part has nothing."""

    label: str
    by_stream: Mapping[str, Sequence[float | None]]
    units: int
    """Positions that the longest stream has."""
    unit: str
    """What a position counts: documents, or the segments that they are cut into."""

    def minus(self, other: Curve) -> Curve:
        """The difference to another curve, stream by stream, over the streams of both."""
        pairs = {
            name: (self.by_stream[name], other.by_stream[name]) for name in self.by_stream.keys() & other.by_stream
        }
        return Curve(
            self.label,
            {
                name: [None if x is None or y is None else x - y for x, y in zip(*pair, strict=True)]
                for name, pair in sorted(pairs.items())
            },
            self.units,
            self.unit,
        )

    def points(self) -> tuple[list[float], list[Estimate]]:
        """Middle of each part (units seen) and the mean over streams with SE_stream, of the parts that have any."""
        size = self.units / len(next(iter(self.by_stream.values())))
        found = []
        for part, values in enumerate(zip(*self.by_stream.values(), strict=True)):
            if present := [value for value in values if value is not None]:
                found.append(((part + 0.5) * size, stream_error(present)))
        return [x for x, _ in found], [estimate for _, estimate in found]


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots that have something to show."""
    curves = _curves(board, runs)
    gain = f"token NLL (nats)\nminus {readable(FLOOR)}"
    draw: Drawings = {
        "f1_by_method": lambda: _by_method(board),
        "f1_by_position": lambda: _panels(board, curves["f1"], "answer F1", bottom=0),
        "token_nll_by_position": lambda: _panels(board, curves["token_nll"], "token NLL (nats)"),
        "token_nll_gain_by_position": lambda: _panels(board, curves["gain"], gain),
    }
    drawable = {
        "f1_by_method": bool(_compared(board)),
        "f1_by_position": bool(curves["f1"]),
        "token_nll_by_position": bool(curves["token_nll"]),
        "token_nll_gain_by_position": len(curves["gain"]) > 1,  # another than the unadapted model itself
    }
    return {name: draw[name] for name in NAMES if drawable[name]}


def _compared(board: Board) -> list[Row]:
    """The rows with F1, without those arms that have plots of their own."""
    return [row for row in board.rows if "f1" in row.scores and row.arm in ("stream", "placebo")]


def _by_method(board: Board) -> Figure:
    """F1 of every row with SE_stream, the closed book as a line; a ceiling far above is a number, not a bar."""
    from matplotlib.figure import Figure

    rows = _compared(board)
    tops = {row.label: _top(board, row) for row in rows}
    others = max((tops[row.label] for row in rows if row.method != CEILING), default=0.0)
    far = {row.label for row in rows if row.method == CEILING and tops[row.label] > 2 * others > 0}
    limit = 1.08 * max((top for label, top in tops.items() if label not in far), default=1.0) or 1.0
    labels = [textwrap.fill(title(row), 30) for row in rows]
    height = 0.2 * max(1 + 0.6 * label.count("\n") for label in labels)
    figure = Figure(figsize=(3.4, 0.45 + height * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        estimate = f1(board, row)
        if row.label in far:
            axes.annotate(
                f"{estimate.mean:.2f}",
                xy=(1, y),
                xytext=(0.87, y),
                xycoords=("axes fraction", "data"),
                va="center",
                ha="right",
                color=GREY,
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.8},
            )
            continue
        colour = GREY if row.control else BLUE
        axes.barh(y, estimate.mean, height=0.62, color="white" if row.note else colour, edgecolor=colour)
        if estimate.se is not None:
            axes.errorbar(estimate.mean, y, xerr=estimate.se, color="black", linewidth=0.8, capsize=1.5)
    floor = next((row for row in rows if row.method == FLOOR and row.arm == "stream"), None)
    if floor is not None:
        axes.axvline(floor.scores["f1"][0].mean, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, limit)
    errors = error(board) if board.error == "SE_stream" else "± SE_doc, one stream"
    figure.supxlabel(f"answer F1 ({errors})", fontsize=8)
    return figure


def _panels(board: Board, curves: Mapping[str, Curve], ylabel: str, bottom: float | None = None) -> Figure:
    """One small panel for each curve, all on the same axes, each with the unadapted model's, if any, dashed."""
    beside = curves.get(FLOOR)
    shown = [curve for curve in curves.values() if curve is not beside] or list(curves.values())
    figure, grid = panels(len(shown))
    for axes, curve in zip(grid, shown, strict=True):
        if beside is not None:
            axes.plot(*_xy(beside), color=GREY, linewidth=0.8, linestyle=DASHED)
        band(axes, *curve.points())
        heading(axes, curve.label)
        axes.set_xlim(0, curve.units)
    if bottom is not None:
        grid[0].set_ylim(bottom=bottom)  # shared by all; after drawing, so that the top still fits the highest
    dashed = "" if beside is None else f"; dashed: {readable(FLOOR)}"
    name_axes(figure, f"{shown[0].unit}'s position in the stream ({error(board)}{dashed})", ylabel)
    return figure


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    x, estimates = curve.points()
    return x, [estimate.mean for estimate in estimates]


Curves = Mapping[str, Mapping[str, Curve]]
"""Curves by what they show and by label."""


def _curves(board: Board, runs: Path) -> Curves:
    """Curves of the board's rows. The ceiling and control arms have none: nothing there depends on position."""
    curves: dict[str, dict[str, Curve]] = {"f1": {}, "token_nll": {}, "gain": {}}
    for row in board.rows:
        if row.arm != "stream" or row.method == CEILING or not row.streams:
            continue
        documents = max((record.summary.documents for record in row.records if record.summary), default=0)
        answers = [(record.spec.stream, *found) for record in row.records for found in _answers(runs, record)]
        tokens = [(record.spec.stream, *found) for record in row.records for found in _tokens(runs, record)]
        cut = row.records[0].spec.segment_tokens is not None
        scored = max((position + 1 for _, position, *_ in tokens), default=0) if cut else documents
        for score, found, units, unit in (
            ("f1", answers, documents, "document"),
            ("token_nll", tokens, scored, "segment" if cut else "document"),
        ):
            if found:
                curves[score][row.label] = Curve(title(row), _binned(found, units), units, unit)
    if floor := curves["token_nll"].get(FLOOR):
        gains = {label: curve.minus(floor) for label, curve in curves["token_nll"].items()}
        curves["gain"] = {label: curve for label, curve in gains.items() if curve.by_stream}
    return curves


def _answers(runs: Path, record: RunRecord) -> Iterable[tuple[int, float, float]]:
    """Position, score and weight of each answer."""
    return ((event.position, event.f1, 1.0) for event in final_answers(runs, record))


def _tokens(runs: Path, record: RunRecord) -> Iterable[tuple[int, float, float]]:
    """Position, summed NLL and tokens of each document or segment that was scored."""
    events = [event for event in read_documents(runs, record.id) if event.nll is not None]
    cut = record.spec.segment_tokens is not None
    return ((i if cut else event.position, event.nll or 0.0, event.tokens) for i, event in enumerate(events))


def _binned(found: Iterable[tuple[str, int, float, float]], units: int) -> dict[str, list[float | None]]:
    """Ratio of the values' sum to the weights' sum in each part of each stream; several seeds fall together."""
    parts = min(BINS, units)
    sums: dict[str, list[list[float]]] = defaultdict(lambda: [[0.0, 0.0] for _ in range(parts)])
    for stream, position, value, weight in found:
        part = sums[stream][position * parts // units]
        part[0] += value
        part[1] += weight
    return {name: [v / w if w else None for v, w in row] for name, row in sorted(sums.items())}


def _top(board: Board, row: Row) -> float:
    estimate = f1(board, row)
    return estimate.mean + (estimate.se or 0)
