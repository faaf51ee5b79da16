"""Plot of questions: from how many on a method that adapts takes fewer operations than the documents in the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.board import Board
from reports.rows import Row, row_of
from reports.style import BLUE, DASHED, DOTTED, GREY, Drawings, Plot, legend, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "cost_by_questions"
NAMES = (NAME,)
PROMPT = "full_context"
"""The method that puts all that it has read, as far as it fits, before each question."""


@dataclass(frozen=True)
class Price:
    """Operations of one method on a stream: to observe it, and for each question on it."""

    label: str
    update: float
    question: float

    def total(self, questions: float) -> float:
        """Operations with so many questions."""
        return self.update + questions * self.question

    def break_even(self, prompt: Price) -> float | None:
        """Questions from which on it takes no more operations than ``prompt``; None if it never does."""
        more, saved = self.update - prompt.update, prompt.question - self.question
        if more <= 0 and saved >= 0:
            return 0.0
        return more / saved if saved > 0 and more > 0 else None


def drawings(board: Board) -> Drawings:
    """The plot, if one of the methods has all documents in the prompt."""
    rows = [row for row in board.rows if row.arm == "stream" and "flops_per_question" in row.costs]
    full_context = row_of(rows, PROMPT)
    others = [price for row in rows if row.method != PROMPT and (price := _price(row)).update]
    if full_context is None or not others:
        return {}
    prompt = _price(full_context)
    return {
        NAME: Plot(
            lambda: _draw(prompt, others),
            "Operations of observing a stream and of answering questions on it, by the number of questions",
            [f"dashed: {prompt.label}", "dotted: from so many questions on the method takes fewer operations", ONLINE],
        )
    }


ONLINE = "what is paid before the stream is not included"


def _price(row: Row) -> Price:
    update = row.documents * row.costs.get("flops_per_document", 0.0)
    return Price(row.title, update, row.costs["flops_per_question"])


def _draw(prompt: Price, others: Sequence[Price]) -> Figure:
    """One small panel for each method, from one question to ten times the largest break-even."""
    found = {price.label: price.break_even(prompt) for price in others}
    last = 10.0 ** math.ceil(math.log10(10 * max([10.0, *(value for value in found.values() if value)])))
    figure, grid = panels([_title(price.label, found[price.label]) for price in others])
    places = [10 ** (math.log10(last) * i / 50) for i in range(51)]
    for axes, price in zip(grid, others, strict=True):
        axes.plot(places, [prompt.total(x) for x in places], color=GREY, linewidth=0.8, linestyle=DASHED)
        axes.plot(places, [price.total(x) for x in places], color=BLUE)
        if even := found[price.label]:
            axes.axvline(even, color=GREY, linewidth=0.8, linestyle=DOTTED, zorder=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
    legend(figure, [(prompt.label, GREY, DASHED), ("break-even", GREY, DOTTED)])
    name_axes(figure, "questions on a stream", "operations", [ONLINE])
    return figure


def _title(label: str, even: float | None) -> str:
    return f"{label}: {'never' if even is None else f'from {math.ceil(even):,} questions on'}"
