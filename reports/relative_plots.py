"""Plots of relative F1: by the documents seen since the first probe, and by the share of irrelevant documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.data.arms import irrelevant_percent
from reports.arm_plots import arms_of
from reports.board import Board
from reports.probes import f1_by_documents, probes
from reports.rows import CEILING, FLOOR, Row
from reports.statistics import ratio
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    OTHERS,
    Drawings,
    Plot,
    Points,
    band,
    draw_others,
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
    failed: tuple[str, ...]
    """Titles of the rows of the curve that are not complete."""


def drawings(board: Board) -> Drawings:
    """The plots of methods that have a relative F1."""
    retention = by_documents(board) if board.first_documents is not None else []
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
        intervals("bands", stream_error_name(board)),
        "blue number: the last point",
        "grey number: the method's own 100 %",
        f"dashed: F1 of {FLOOR} on this scale" if _floor(board) is not None else "",
        "light lines: the other panels" if sum(bool(curve.points) for curve in curves) > 1 else "",
        *_left_out(board, curves),
    ]


def _left_out(board: Board, curves: Sequence[Curve]) -> list[str]:
    """The rows that are not complete, and the methods not above closed book (or, without it, 0) at the start."""
    rest = [curve for curve in curves if not curve.points]
    failed = ", ".join(title for curve in rest for title in curve.failed)
    low = ", ".join(curve.label for curve in rest if not curve.failed)
    least = "0" if _floor(board) is None else FLOOR
    return [
        f"left out, since not complete: {failed}" if failed else "",
        f"left out, not significantly above {least} to begin with: {low}" if low else "",
    ]


def _floor(board: Board) -> float | None:
    """F1 of closed book, if it is complete."""
    floor = board.floor
    return None if floor is None or floor.note else floor.value("f1")


def by_documents(board: Board) -> list[Curve]:
    """F1 on the same questions at each probe, relative to the first."""
    curves = []
    for row in _learning(board.rows):
        if row.note or probes(row) > 1:
            steps = f1_by_documents(row) if "relative_f1" in row.scores else {}
            points = [(seen, ratio(f1, steps[min(steps)])) for seen, f1 in steps.items()]
            curves.append(Curve(row.title, points, row.value("f1_first_probe") or 0.0, _failed([row])))
    return curves


def by_irrelevant(board: Board) -> list[Curve]:
    """F1 by the percentage of irrelevant documents, relative to that without any."""
    curves = []
    for row in _learning(board.rows):
        arms = {percent: arm for arm in arms_of(board, row) if (percent := irrelevant_percent(arm.arm))}
        if not arms:
            continue
        points: Points = ()
        if all("relative_f1" in arm.scores for arm in arms.values()):
            rest = [(percent, arms[percent].scores["relative_f1"][0]) for percent in sorted(arms)]
            points = [(0, replace(rest[0][1], mean=1.0, se=0.0)), *rest]
        curves.append(Curve(row.title, points, row.value("f1") or 0.0, _failed([row, *arms.values()])))
    return curves


def _failed(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(row.title for row in rows if row.note)


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
        axes.text(
            0.03,
            0.08,
            f"100% is F1 {curve.base:.2f}",
            transform=axes.transAxes,
            color=GREY,
            fontsize=6.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    draw_others(grid, [curve.points for curve in drawn])
    grid[0].set_xticks([place for place, _ in drawn[0].points])
    ends = [estimate.mean + (estimate.half_width() or 0) for curve in drawn for _, estimate in curve.points]
    grid[0].set_ylim(0, 1.05 * max(ends))
    grid[0].yaxis.set_major_locator(MultipleLocator(0.5))
    grid[0].yaxis.set_major_formatter(PercentFormatter(1))
    keys = [] if floor is None else [(FLOOR, GREY, DASHED)]
    legend(figure, [*keys, *([OTHERS] if len(drawn) > 1 else [])])
    name_axes(figure, x, y, [stream_error_name(board), *_left_out(board, curves)])
    return figure
