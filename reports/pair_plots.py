"""Plot of the ranks of the same methods on several pairs of dataset and base model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from reports.board import Board
from reports.pairs import Line, competing, inversions, lines, names, rank
from reports.style import GREY, ORANGE, Drawings, Plot, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("ranks_by_pair",)

INVERTED = "in a pair that differs significantly on two boards, in opposite order"
"""What the methods of the thick orange lines are."""


def drawings(board: Board) -> Drawings:
    """The plot, if the experiment has several boards, and two methods compete on all of them."""
    if not board.others:
        return {}
    everywhere = [line for line in lines(board) if all(row is not None and row.standing for row in line.rows)]
    if len(everywhere) < 2:
        return {}
    inverted = _inverted(board, everywhere)
    caption = "Rank of every method that competes on all boards, on each pair of dataset and base model"
    notes = ["a line is a method, and 1 is the best rank", *([f"thick, orange: {INVERTED}"] if inverted else [])]
    return {"ranks_by_pair": Plot(lambda: _slopes(board, everywhere, inverted), caption, notes)}


def _inverted(board: Board, everywhere: Sequence[Line]) -> Set[str]:
    """The methods of the pairs that differ significantly on two boards, in opposite order."""
    boards = (board, *board.others)
    return {
        label
        for a, b in itertools.combinations(range(len(boards)), 2)
        for pair in inversions(boards[a], boards[b], competing(everywhere, a, b))
        if pair.significant
        for label in pair[:2]
    }


def _slopes(board: Board, everywhere: Sequence[Line], inverted: Set[str]) -> Figure:
    """A line for each method from its place on one board to that on the next, labelled at both ends."""
    from matplotlib.figure import Figure

    boards = (board, *board.others)
    ranks = {
        line.label: [rank(one, row) or 0 for one, row in zip(boards, line.rows, strict=True) if row is not None]
        for line in everywhere
    }
    orders = [  # equal ranks in the order of all boards together, so that lines of a tie do not cross
        sorted(ranks, key=lambda label: (ranks[label][place], sum(ranks[label]), label)) for place in range(len(boards))
    ]
    labels = {label: wrap(label, 26) for label in ranks}
    longest = max(len(line) for label in labels.values() for line in label.split("\n"))
    row = 0.19 + 0.12 * max(label.count("\n") for label in labels.values())  # inches
    size = (2.4 + 1.2 * len(board.others) + 0.12 * longest, 0.6 + row * len(everywhere))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for label in ranks:
        places = [order.index(label) for order in orders]
        colour, width = (ORANGE, 2.4) if label in inverted else (GREY, 0.9)  # the width tells them apart in print
        axes.plot(range(len(boards)), places, color=colour, linewidth=width, marker="o", markersize=3, clip_on=False)
    axes.set_xlim(0, len(boards) - 1)
    axes.set_ylim(len(everywhere) - 0.5, -0.5)
    axes.set_xticks(range(len(boards)), names(board))
    axes.xaxis.tick_top()
    right = axes.secondary_yaxis("right")
    for side, place, sign, align in ((axes, 0, -1, "right"), (right, len(boards) - 1, 1, "left")):
        order = orders[place]
        side.set_yticks(range(len(everywhere)), [labels[label] for label in order], parse_math=False)
        for y, label in enumerate(order):
            axes.annotate(
                f"{ranks[label][place]}",
                (place, y),
                xytext=(6 * sign, 0),
                textcoords="offset points",
                ha=align,
                va="center_baseline",
                fontsize=7,
            )
        side.tick_params(axis="y", length=0, pad=20)
        for spine in side.spines.values():
            spine.set_visible(False)
    axes.tick_params(axis="x", length=0, pad=6)
    figure.supxlabel(f"rank (thick, orange: {INVERTED})" if inverted else "rank", fontsize=7)
    return figure
