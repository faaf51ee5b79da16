"""Plots of relative F1: by the documents seen since the first probe, and by the share of irrelevant documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.arms import irrelevant_percent
from reports.arm_plots import families
from reports.board import Board
from reports.memory_plots import ProbeAnswer, by_row
from reports.rows import CEILING, FLOOR, Row
from reports.statistics import Item, ratio, run_means
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    OTHERS,
    Drawings,
    Plot,
    Points,
    band,
    compare,
    intervals,
    legend,
    name_axes,
    panels,
    stream_error_name,
    write_value,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("relative_f1_by_documents", "relative_f1_by_irrelevant")


@dataclass(frozen=True)
class Curve:
    """Relative F1 of one method; the first point is the base, 1."""

    label: str
    points: Points
    """Empty for a method without a base that is above closed book, or with failed runs."""
    base: float
    """F1 of the base."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots of methods that have a relative F1."""
    retention = by_documents(board, runs) if board.first_documents is not None else []
    robustness = by_irrelevant(board)
    plots: dict[str, Plot] = {}
    if any(curve.points for curve in retention):
        first = f"the first {board.first_documents} documents"
        plots[NAMES[0]] = Plot(
            lambda: _panels(board, retention, "documents seen", f"F1 relative to that after\n{first}"),
            f"F1 on the questions of {first} at each probe, relative to that at the first probe",
            _notes(board, retention),
        )
    if any(curve.points for curve in robustness):
        plots[NAMES[1]] = Plot(
            lambda: _panels(
                board,
                robustness,
                "irrelevant documents, % of the stream's",
                "F1 relative to that without\nirrelevant ones",
            ),
            "F1 by the number of irrelevant documents in the stream, relative to that without any",
            _notes(board, robustness),
        )
    return plots


def _notes(board: Board, curves: Sequence[Curve]) -> list[str]:
    return [
        intervals("bands", stream_error_name(len(board.streams))),
        "blue number: the last point",
        "grey number: the method's own 100 %",
        f"dashed: F1 of {FLOOR} on this scale" if _floor(board) is not None else "",
        "light lines: the other panels",
        _left_out(board, curves),
    ]


def _left_out(board: Board, curves: Sequence[Curve]) -> str:
    """The methods without a base above closed book or, without it, above 0."""
    names = ", ".join(curve.label for curve in curves if not curve.points)
    least = "0" if _floor(board) is None else FLOOR
    return f"left out, since their base is not above {least}: {names}" if names else ""


def _floor(board: Board) -> float | None:
    """F1 of closed book."""
    return None if board.floor is None else board.floor.value("f1")


def by_documents(board: Board, runs: Path) -> list[Curve]:
    """F1 on the same questions at each probe, relative to the first."""
    answers = by_row(board, runs)
    curves = []
    for row in _learning(board.rows):
        if row.title in answers and "f1" in row.scores:
            points = _relative(answers[row.title]) if "relative_f1" in row.scores else ()
            curves.append(Curve(row.title, points, row.value("f1_first_probe") or 0.0))
    return curves


def _relative(answers: Iterable[ProbeAnswer]) -> Points:
    steps: dict[int, list[Item]] = defaultdict(list)
    for answer in answers:
        steps[answer.seen].append(Item.of(answer.run, "", "", answer.f1))
    base = run_means(steps[min(steps)])
    return [(seen, ratio(run_means(steps[seen]), base)) for seen in sorted(steps)]


def by_irrelevant(board: Board) -> list[Curve]:
    """F1 by the percentage of irrelevant documents, relative to that without any."""
    curves = []
    for family in families(board):
        stream = family.rows.get("stream")
        arms = sorted((percent, row) for arm, row in family.rows.items() if (percent := irrelevant_percent(arm)))
        if stream is None or not arms or not _learning([stream]):
            continue
        points: Points = ()
        if all("relative_f1" in row.scores for _, row in arms):
            rest = [(percent, row.scores["relative_f1"][0]) for percent, row in arms]
            points = [(0, replace(rest[0][1], mean=1.0, se=0.0)), *rest]
        curves.append(Curve(stream.title, points, stream.value("f1") or 0.0))
    return curves


def _learning(rows: Iterable[Row]) -> list[Row]:
    """The rows of methods whose answers depend on the documents of the stream."""
    return [row for row in rows if row.arm == "stream" and row.method not in (FLOOR, CEILING)]


def _panels(board: Board, curves: Sequence[Curve], x: str, y: str) -> Figure:
    """One small panel for each method with a base; the number is its last point, the dashed line closed book's F1."""
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    drawn = [curve for curve in curves if curve.points]
    floor = _floor(board)
    figure, grid = panels([curve.label for curve in drawn])
    for axes, curve in zip(grid, drawn, strict=True):
        axes.axhline(1, color=GREY, linewidth=0.4, zorder=0)
        if floor is not None:
            axes.axhline(floor / curve.base, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
        band(axes, curve.points)
        place, last = curve.points[-1]
        write_value(axes, (place, last.mean), f"{last.mean:.0%}", BLUE)
        axes.text(0.03, 0.08, f"100% is F1 {curve.base:.2f}", transform=axes.transAxes, color=GREY, fontsize=6.5)
    compare(grid, [curve.points for curve in drawn])
    grid[0].set_xticks([place for place, _ in drawn[0].points])
    ends = [estimate.mean + (estimate.half_width() or 0) for curve in drawn for _, estimate in curve.points]
    grid[0].set_ylim(0, 1.05 * max(ends))
    grid[0].yaxis.set_major_locator(MultipleLocator(0.5))
    grid[0].yaxis.set_major_formatter(PercentFormatter(1))
    keys = [] if floor is None else [(FLOOR, GREY, DASHED)]
    legend(figure, [*keys, *([OTHERS] if len(drawn) > 1 else [])])
    name_axes(figure, x, y, [stream_error_name(len(board.streams)), _left_out(board, curves)])
    return figure
