"""Plots of control arms: F1 of a method and of its arms on the same questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.data.arms import documents_per_reset, irrelevant_percent
from reports.board import Board
from reports.rows import CEILING, FLOOR, Row, is_arm_of, row_of
from reports.style import (
    BLUE,
    DASHED,
    DOTTED,
    GREY,
    OTHERS,
    Drawings,
    Key,
    Plot,
    Points,
    answer_f1,
    band,
    bar,
    board_error,
    draw_others,
    from_zero,
    intervals,
    label_rows,
    legend,
    log_ticks,
    name_axes,
    no_band,
    panels,
    score,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("controls", "f1_by_context")

ARMS = {
    "gold_only": "the document of the question alone",
    "stream": "all documents",
    "shuffled": "another document alone",
    "empty": "no document",
    "placebo": "other documents without the answers",
}
"""The arms in the plot ``controls``, from the top, with what the method observes before a question."""


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

    def shorter_groups(self) -> list[str]:
        """A note on each number of documents that does not divide the stream: the last group holds fewer."""
        sizes = [size for size, _ in self.contexts() if self.documents % size]
        return [f"{size} documents: the last {self.documents % size} of a stream alone, too" for size in sizes]


class Control(NamedTuple):
    """The line of a control in each panel."""

    name: str
    word: str
    """What its style is called."""
    style: Any
    f1: float

    @property
    def key(self) -> Key:
        """Its key in the legend."""
        return self.name, GREY, self.style

    @property
    def note(self) -> str:
        """Its key in words."""
        return f"{self.word}: {self.name}"


def drawings(board: Board) -> Drawings:
    """The plots of the methods that have control arms."""
    methods = families(board)
    with_controls = [family for family in methods if family.rows.keys() & {"gold_only", "shuffled", "empty"}]
    with_resets = [family for family in methods if any(arm.startswith("every_") for arm in family.rows)]
    plots: dict[str, Plot] = {}
    if with_controls:
        plots["controls"] = Plot(
            lambda: _controls(board, with_controls),
            "Answer F1 of a method and of its control arms on the same questions",
            [
                f"arms: {', '.join(f'{arm} ({ARMS[arm]})' for arm in _drawn(with_controls))}",
                intervals("bars", board_error(board)),
                *(control.note for control in _lines(board, (FLOOR,))),
            ],
        )
    if with_resets:
        plots["f1_by_context"] = Plot(
            lambda: _contexts(board, with_resets),
            "Answer F1 on the same questions by the number of documents held when they are asked",
            [
                intervals("bands", board_error(board)),
                no_band(board, [_points(board, family) for family in with_resets]),
                *dict.fromkeys(text for family in with_resets for text in family.shorter_groups()),
                *(control.note for control in _lines(board, (FLOOR, CEILING))),
                "light lines: the other panels" if len(with_resets) > 1 else "",
            ],
        )
    return plots


def families(board: Board) -> list[Family]:
    """The rows with F1, grouped by method and config, in the board's order of the methods themselves."""
    rows: dict[tuple[str, ...], dict[str, Row]] = {}
    documents = 0
    for row in sorted(board.rows, key=lambda row: row.arm != "stream"):
        if not irrelevant_percent(row.arm):
            documents = max(documents, row.documents)
        if "f1" in row.scores:
            without_arm = (row.method, json.dumps(row.config, sort_keys=True), row.imported)
            rows.setdefault(without_arm, {})[row.arm] = row
    return [Family(_label(by_arm), by_arm, documents) for by_arm in rows.values()]


def arms_of(board: Board, row: Row) -> list[Row]:
    """The rows of a row's method with the same settings on all arms."""
    return [other for other in board.rows if is_arm_of(other, row)]


def _label(by_arm: Mapping[str, Row]) -> str:
    if "stream" in by_arm:
        return by_arm["stream"].title
    arm, row = next(iter(by_arm.items()))
    return row.label.removesuffix(f" on {arm}")


def _drawn(methods: Sequence[Family]) -> list[str]:
    """The arms that have a bar."""
    return [arm for arm in ARMS if any(arm in family.rows for family in methods)]


def _controls(board: Board, methods: Sequence[Family]) -> Figure:
    """One small panel for each method with a bar for each of its arms."""
    arms = _drawn(methods)
    figure, grid = panels([family.label for family in methods], height=0.35 + 0.16 * len(arms))
    for axes, family in zip(grid, methods, strict=True):
        for y, arm in enumerate(arms):
            if row := family.rows.get(arm):
                bar(axes, y, score(board, row), BLUE if arm == "stream" else GREY, filled=not row.note)
    label_rows(grid, range(len(arms)), arms, margin=0.6)
    grid[0].set_xlim(0, 1.25 * grid[0].get_xlim()[1])  # room for the values
    controls = _lines(board, (FLOOR,))
    for axes in grid:
        for control in controls:
            axes.axvline(control.f1, color=GREY, linewidth=0.8, linestyle=control.style, zorder=0)
    legend(figure, [control.key for control in controls])
    name_axes(figure, answer_f1(board), "", [board_error(board)])
    return figure


def _points(board: Board, family: Family) -> Points:
    """F1 by the number of documents held."""
    return [(documents, score(board, row)) for documents, row in family.contexts()]


def _contexts(board: Board, methods: Sequence[Family]) -> Figure:
    """One small panel for each method: F1 on the same questions by the number of documents held."""
    figure, grid = panels([family.label for family in methods])
    curves = [_points(board, family) for family in methods]
    for axes, points in zip(grid, curves, strict=True):
        band(axes, points)
    draw_others(grid, curves)
    ticks = sorted({documents for family in methods for documents, _ in family.contexts()})
    log_ticks(grid[0], ticks, [f"{tick:g}" for tick in ticks])
    controls = _lines(board, (FLOOR, CEILING))
    for axes in grid:
        for control in controls:
            axes.axhline(control.f1, color=GREY, linewidth=0.8, linestyle=control.style, zorder=0)
    from_zero(grid[0])
    legend(figure, [*(control.key for control in controls), *([OTHERS] if len(methods) > 1 else [])])
    name_axes(figure, "documents held at question time", answer_f1(board), [board_error(board)])
    return figure


def _lines(board: Board, controls: Sequence[str]) -> list[Control]:
    """The lines of these controls, as far as the board has them."""
    scored = [row for row in board.rows if "f1" in row.scores]
    styles = (("dashed", DASHED), ("dotted", DOTTED))
    return [
        Control(name, word, style, score(board, row).mean)
        for name, (word, style) in zip(controls, styles, strict=False)
        if (row := row_of(scored, name)) is not None
    ]
