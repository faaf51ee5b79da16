"""Plots of control arms: a method beside itself, on the same questions, with other documents before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.arms import apart
from reports.board import CEILING, Board
from reports.rows import FLOOR, Row
from reports.style import (
    BLUE,
    DASHED,
    DOTTED,
    GREY,
    Drawings,
    band,
    error,
    f1,
    from_zero,
    heading,
    log_ticks,
    name_axes,
    panels,
    readable,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("controls", "f1_by_context")

SHOWN = ("gold_only", "stream", "shuffled", "empty", "placebo")
"""The arms that stand side by side, from the top."""


@dataclass(frozen=True)
class Family:
    """The rows of one method with one config, by arm."""

    label: str
    rows: Mapping[str, Row]
    documents: int
    """In a stream."""

    def contexts(self) -> list[tuple[int, Row]]:
        """The rows by how many documents are held when a question is asked: one for each number."""
        arms = [arm for arm in self.rows if arm in ("gold_only", "stream") or arm.startswith("every_")]
        held = {min(apart(arm) or self.documents, self.documents): self.rows[arm] for arm in arms}
        return sorted(held.items(), key=lambda pair: pair[0])


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots of those methods that have such arms."""
    found = families(board)
    controlled = [family for family in found if family.rows.keys() & {"gold_only", "shuffled", "empty"}]
    lengths = [family for family in found if any(arm.startswith("every_") for arm in family.rows)]
    draw: Drawings = {
        "controls": lambda: _controls(board, controlled),
        "f1_by_context": lambda: _contexts(board, lengths),
    }
    drawable = {"controls": bool(controlled), "f1_by_context": bool(lengths)}
    return {name: draw[name] for name in NAMES if drawable[name]}


def families(board: Board) -> list[Family]:
    """The rows with F1 of each method and config, as the board orders them, the methods themselves first."""
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    documents = 0
    for row in sorted(board.rows, key=lambda row: row.arm != "stream"):
        documents = max([documents, *(record.summary.documents for record in row.records if record.summary)])
        if "f1" in row.scores:
            rows.setdefault((row.method, json.dumps(row.config, sort_keys=True)), {})[row.arm] = row
    return [Family(_label(by_arm), by_arm, documents) for by_arm in rows.values()]


def _label(by_arm: Mapping[str, Row]) -> str:
    if "stream" in by_arm:
        return title(by_arm["stream"])
    arm, row = next(iter(by_arm.items()))
    return readable(row.label.removesuffix(f" on {arm}"))


def _controls(board: Board, found: Sequence[Family]) -> Figure:
    """One small panel for each method with a bar for each of its arms."""
    arms = [arm for arm in SHOWN if any(arm in family.rows for family in found)]
    figure, grid = panels(len(found), height=0.35 + 0.16 * len(arms))
    for axes, family in zip(grid, found, strict=True):
        for y, arm in enumerate(arms):
            if arm in family.rows:
                _bar(board, axes, y, family.rows[arm])
        heading(axes, family.label)
    grid[0].set_yticks(range(len(arms)), [readable(arm) for arm in arms])
    grid[0].set_ylim(len(arms) - 0.4, -0.6)
    grid[0].set_xlim(left=0)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
    notes = _lines(board, grid, (FLOOR,), upright=True)
    name_axes(figure, f"answer F1 ({'; '.join([_error(board), *notes])})", "")
    return figure


def _bar(board: Board, axes: Axes, y: int, row: Row) -> None:
    estimate, colour = f1(board, row), BLUE if row.arm == "stream" else GREY
    axes.barh(y, estimate.mean, height=0.62, color="white" if row.note else colour, edgecolor=colour)
    if estimate.se is not None:
        axes.errorbar(estimate.mean, y, xerr=estimate.se, color="black", linewidth=0.8, capsize=1.5)


def _contexts(board: Board, found: Sequence[Family]) -> Figure:
    """One small panel for each method: the same questions with ever more documents held."""
    figure, grid = panels(len(found))
    for axes, family in zip(grid, found, strict=True):
        points = family.contexts()
        band(axes, [held for held, _ in points], [f1(board, row) for _, row in points])
        heading(axes, family.label)
    ticks = sorted({held for family in found for held, _ in family.contexts()})
    log_ticks(grid[0], ticks, [f"{tick:g}" for tick in ticks])
    notes = _lines(board, grid, (FLOOR, CEILING))
    from_zero(grid[0])
    name_axes(figure, f"documents held when asked ({'; '.join([_error(board), *notes])})", "answer F1")
    return figure


def _lines(board: Board, grid: Sequence[Axes], methods: Sequence[str], upright: bool = False) -> list[str]:
    """Draw the F1 of these controls as lines, where the board has them; what the lines are."""
    notes = []
    known = {row.method: row for row in board.rows if row.arm == "stream" and "f1" in row.scores}
    for method, style, word in zip(methods, (DASHED, DOTTED), ("dashed", "dotted"), strict=False):
        if (row := known.get(method)) is None:
            continue
        for axes in grid:
            (axes.axvline if upright else axes.axhline)(
                f1(board, row).mean, color=GREY, linewidth=0.8, linestyle=style, zorder=0
            )
        notes.append(f"{word}: {readable(method)}")
    return notes


def _error(board: Board) -> str:
    return error(board) if board.error == "SE_stream" else "± SE_doc, one stream"
