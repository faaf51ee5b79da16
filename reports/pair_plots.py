"""Plot of the ranks of the same methods on several pairs of dataset and base model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reports.board import Board
from reports.pairs import Line, competing, inversions, lines, names, rank
from reports.style import GREY, ORANGE, Drawings, Plot

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
    caption = "Rank of every method that competes on all boards, on each pair of dataset and base model"
    notes = ["a line is a method, and 1 is the best rank", f"thick, orange: {INVERTED}"]
    return {"ranks_by_pair": Plot(lambda: _slopes(board, everywhere), caption, notes)}


def _slopes(board: Board, everywhere: Sequence[Line]) -> Figure:
    """A line for each method from its place on one board to that on the next, labelled at both ends."""
    from matplotlib.figure import Figure

    boards = (board, *board.others)
    inverted = {
        label
        for a, b in itertools.combinations(range(len(boards)), 2)
        for pair in inversions(boards[a], boards[b], competing(everywhere, a, b))
        if pair.significant
        for label in pair[:2]
    }
    ranks = {
        line.label: [rank(one, row) or 0 for one, row in zip(boards, line.rows, strict=True) if row is not None]
        for line in everywhere
    }
    orders = [  # equal ranks in the order of all boards together, so that lines of a tie do not cross
        sorted(ranks, key=lambda label: (ranks[label][place], sum(ranks[label]), label)) for place in range(len(boards))
    ]
    figure = Figure(figsize=(4.6 + 1.2 * len(board.others), 0.6 + 0.19 * len(everywhere)), layout="constrained")
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
    axes.set_yticks(range(len(everywhere)), [f"{label}  {ranks[label][0]}" for label in orders[0]])
    right.set_yticks(range(len(everywhere)), [f"{ranks[label][-1]}  {label}" for label in orders[-1]])
    for side in (axes, right):
        side.tick_params(length=0, pad=6)
        for spine in side.spines.values():
            spine.set_visible(False)
    figure.supxlabel(f"rank (thick, orange: {INVERTED})", fontsize=7)
    return figure
