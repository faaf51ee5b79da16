"""Plots of control arms: F1 of a method and of its arms on the same questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.data.arms import documents_per_reset, irrelevant_percent
from reports.board import Board
from reports.rows import CEILING, FLOOR, Row
from reports.style import (
    BLUE,
    DASHED,
    DOTTED,
    GREY,
    Drawings,
    answer_f1,
    band,
    bar,
    board_error,
    from_zero,
    heading,
    label_rows,
    log_ticks,
    name_axes,
    panels,
    readable,
    score,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("controls", "f1_by_context")

ARMS = ("gold_only", "stream", "shuffled", "empty", "placebo")
"""The arms in the plot ``controls``, from the top."""


@dataclass(frozen=True)
class Family:
    """The rows of one method with one config, by arm."""

    label: str
    rows: Mapping[str, Row]
    documents: int
    """Number of documents in a stream."""

    def contexts(self) -> list[tuple[int, Row]]:
        """The rows by the number of documents held at question time, one row for each number."""
        arms = [arm for arm in self.rows if arm in ("gold_only", "stream") or arm.startswith("every_")]
        by_size = {min(documents_per_reset(arm) or self.documents, self.documents): self.rows[arm] for arm in arms}
        return sorted(by_size.items(), key=lambda pair: pair[0])


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots of the methods that have control arms."""
    methods = families(board)
    with_controls = [family for family in methods if family.rows.keys() & {"gold_only", "shuffled", "empty"}]
    with_resets = [family for family in methods if any(arm.startswith("every_") for arm in family.rows)]
    draw: dict[str, Callable[[], Figure]] = {}
    if with_controls:
        draw["controls"] = lambda: _controls(board, with_controls)
    if with_resets:
        draw["f1_by_context"] = lambda: _contexts(board, with_resets)
    return draw


def families(board: Board) -> list[Family]:
    """The rows with F1, grouped by method and config, in the board's order of the methods themselves."""
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    documents = 0
    for row in sorted(board.rows, key=lambda row: row.arm != "stream"):
        if not irrelevant_percent(row.arm):
            documents = max([documents, *(record.summary.documents for record in row.records if record.summary)])
        if "f1" in row.scores:
            rows.setdefault((row.method, json.dumps(row.config, sort_keys=True)), {})[row.arm] = row
    return [Family(_label(by_arm), by_arm, documents) for by_arm in rows.values()]


def _label(by_arm: Mapping[str, Row]) -> str:
    if "stream" in by_arm:
        return title(by_arm["stream"])
    arm, row = next(iter(by_arm.items()))
    return readable(row.label.removesuffix(f" on {arm}"))


def _controls(board: Board, methods: Sequence[Family]) -> Figure:
    """One small panel for each method with a bar for each of its arms."""
    arms = [arm for arm in ARMS if any(arm in family.rows for family in methods)]
    figure, grid = panels(len(methods), height=0.35 + 0.16 * len(arms))
    for axes, family in zip(grid, methods, strict=True):
        for y, arm in enumerate(arms):
            if row := family.rows.get(arm):
                bar(axes, y, score(board, row), BLUE if arm == "stream" else GREY, filled=not row.note)
        heading(axes, family.label)
    label_rows(grid, range(len(arms)), [readable(arm) for arm in arms], margin=0.6)
    grid[0].set_xlim(left=0)
    notes = [board_error(board), *_draw_controls(board, grid, (FLOOR,), vertical=True)]
    name_axes(figure, f"{answer_f1(board)} ({'; '.join(notes)})", "")
    return figure


def _contexts(board: Board, methods: Sequence[Family]) -> Figure:
    """One small panel for each method: F1 on the same questions by the number of documents held."""
    figure, grid = panels(len(methods))
    for axes, family in zip(grid, methods, strict=True):
        band(axes, [(documents, score(board, row)) for documents, row in family.contexts()])
        heading(axes, family.label)
    ticks = sorted({documents for family in methods for documents, _ in family.contexts()})
    log_ticks(grid[0], ticks, [f"{tick:g}" for tick in ticks])
    notes = [board_error(board), *_draw_controls(board, grid, (FLOOR, CEILING))]
    from_zero(grid[0])
    name_axes(figure, f"documents held at question time ({'; '.join(notes)})", answer_f1(board))
    return figure


def _draw_controls(board: Board, grid: Sequence[Axes], methods: Sequence[str], vertical: bool = False) -> list[str]:
    """Draw the F1 of these controls as lines, if the board has them; returns a legend entry for each line."""
    legend = []
    rows = {row.method: row for row in board.rows if row.arm == "stream" and "f1" in row.scores}
    for method, style, word in zip(methods, (DASHED, DOTTED), ("dashed", "dotted"), strict=False):
        if (row := rows.get(method)) is None:
            continue
        for axes in grid:
            (axes.axvline if vertical else axes.axhline)(
                score(board, row).mean, color=GREY, linewidth=0.8, linestyle=style, zorder=0
            )
        legend.append(f"{word}: {readable(method)}")
    return legend
