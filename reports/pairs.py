"""The same methods on several pairs of dataset and base model: their ranks on each, and the order that inverts.

A pair has a board of its own, and scores of two boards are never put in one order. What is compared is the ranks.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bench.errors import BenchError
from bench.records.schema import NOT_COMPARED
from reports.agreement import DECIMALS, Agreement, Scores, agreement
from reports.board import Board
from reports.rows import Row, run_of
from reports.statistics import run_items, stream_means

OF_DATA = {"dataset", "anchor_hash", "qa_train_hash", "segment"}
"""Fields of a spec that follow from the dataset."""


class Line(NamedTuple):
    """One entry of the experiment on one arm, with its row on each board."""

    label: str
    rows: tuple[Row | None, ...]
    """None on a board from which the method is left out."""

    @property
    def control(self) -> bool:
        """True if it is a control, which does not compete."""
        return any(row.control for row in self.rows if row is not None)


Both = Sequence[tuple[str, Row, Row]]
"""The label of each method that competes on two boards, and its rows."""


class Inversion(NamedTuple):
    """Two methods of which one has the better score on the first board, and the other one on another board."""

    better_on_first: str
    better_on_other: str
    significant: bool
    """True if the two differ significantly on both boards, by each board's tests of all pairs."""


@dataclass(frozen=True)
class Comparison:
    """The ranking on the first board and that on another one, over the methods that compete on both."""

    first: Board
    other: Board
    names: tuple[str, str]
    lines: Both

    @cached_property
    def agreement(self) -> Agreement | None:
        """The rank correlation; None if one of the rankings has no order."""
        if not self.lines:
            return None
        a = [_by_stream(self.first, row) for _, row, _ in self.lines]
        b = [_by_stream(self.other, row) for _, _, row in self.lines]
        return agreement(np.array(a), np.array(b), same_streams=self.first.dataset == self.other.dataset)

    @cached_property
    def inversions(self) -> list[Inversion]:
        """The inverted pairs of methods."""
        return inversions(self.first, self.other, self.lines)

    def sentences(self) -> list[str]:
        """The rank correlation, and the number of inverted pairs, in words."""
        names, methods = " and ".join(f"({name})" if ", " in name else name for name in self.names), len(self.lines)
        if self.agreement is None:
            reason = "fewer than two methods compete on both, or all of them are tied on one"
            return [f"There is no rank correlation between {names}: {reason}."]
        significant = [
            f"{pair.better_on_first} and {pair.better_on_other}" for pair in self.inversions if pair.significant
        ]
        return [
            f"Kendall's tau-b between the ranks of {methods} methods on {names} is {self.agreement}.",
            f"Pairs of methods in the opposite order: {len(self.inversions)} of {methods * (methods - 1) // 2}; "
            f"significantly different on both: {', '.join(significant) or 'none'}.",
        ]


def parts(board: Board) -> list[tuple[str, ...]]:
    """What tells the boards of an experiment apart, for each of them: its dataset, its base, or both."""
    named = [(one.dataset, one.model) for one in (board, *board.others)]
    several = [len(set(of)) > 1 for of in zip(*named, strict=True)]
    return [tuple(itertools.compress(pair, several)) for pair in named]


def names(board: Board) -> list[str]:
    """The names of the pairs, as readers see them."""
    return [", ".join(pair) for pair in parts(board)]


def lines(board: Board) -> list[Line]:
    """A line for each entry of the experiment and each of its arms, in the order of the first board, controls last.

    Raises:
        BenchError: the boards differ in more than dataset and base model, as after a run that was killed.
    """
    for other in board.others:
        if not (_have_one_plan(board, other) and _are_comparable(board, other)):
            raise BenchError(
                f"The boards {board.experiment} and {other.experiment} cannot be compared: they differ in methods, "
                f"streams or settings. Run the experiment again: it runs only what is missing."
            )
    by_entry = [{(entry, row.arm): row for row in one.rows for entry in row.entries} for one in (board, *board.others)]
    found: dict[tuple[str, ...], Line] = {}
    for key in dict.fromkeys(itertools.chain.from_iterable(by_entry)):
        rows = tuple(of.get(key) for of in by_entry)
        labels = tuple("" if row is None else row.label for row in rows)
        found.setdefault(labels, Line(next(filter(None, labels)), rows))
    shared = [label for label, count in Counter(itertools.chain.from_iterable(map(set, found))).items() if count > 1]
    named = [  # entries that are one row on a board are told apart by their labels on another one
        line._replace(label=next((label for label in labels if label and label not in shared), " / ".join(labels)))
        for labels, line in found.items()
    ]
    return sorted(named, key=lambda line: line.control)


def comparisons(board: Board) -> list[Comparison]:
    """The comparison of the first board with each of the others."""
    first, *others = names(board)
    found = lines(board)
    return [
        Comparison(board, other, (first, name), competing(found, 0, place))
        for place, (other, name) in enumerate(zip(board.others, others, strict=True), 1)
    ]


def inversions(first: Board, other: Board, both: Both) -> list[Inversion]:
    """The pairs of methods that have opposite orders, those that differ significantly on both boards first."""
    pairs = []
    for (label_a, first_a, other_a), (label_b, first_b, other_b) in itertools.permutations(both, 2):
        if _is_better(first, first_a, first_b) and _is_better(other, other_b, other_a):
            significant = _beats(first_a, first_b) and _beats(other_b, other_a)
            pairs.append(Inversion(label_a, label_b, significant))
    return sorted(pairs, key=lambda pair: not pair.significant)


def competing(found: Sequence[Line], first: int, other: int) -> Both:
    """The methods that compete on two boards, by the places of these in each line."""
    both = [(line.label, line.rows[first], line.rows[other]) for line in found]
    return [(label, a, b) for label, a, b in both if a and a.standing is not None and b and b.standing is not None]


def rank(board: Board, row: Row) -> int | None:
    """The rank of a row by its score among those that compete: 1 is the best, and equal scores share the lower number.

    None if the row does not compete.
    """
    rivals = [other for other in board.rows if other.standing is not None]
    return None if row.standing is None else 1 + sum(_is_better(board, other, row) for other in rivals)


def _have_one_plan(a: Board, b: Board) -> bool:
    """True if the boards have the same entries on the same arms, but for entries that are left out of one."""
    arms: list[dict[int, set[str]]] = []
    for board in (a, b):
        arms.append(defaultdict(set))
        for row in board.rows:
            for entry in row.entries:
                arms[-1][entry].add(row.arm)
    on_a, on_b = arms
    return a.planned == b.planned and all(on_a[entry] == on_b[entry] for entry in on_a.keys() & on_b.keys())


def _are_comparable(a: Board, b: Board) -> bool:
    """True if the runs of the boards would be comparable but for the base and what follows from the dataset."""
    same_data = a.dataset == b.dataset
    ignored = {*NOT_COMPARED, "model", "model_hash", *(() if same_data else OF_DATA)}
    settings = [run.spec.model_dump(exclude=ignored) for of in (a, b) for row in of.rows for run in row.records[:1]]
    return all(one == settings[0] for one in settings) and (a.streams == b.streams or not same_data)


def _score(board: Board, row: Row) -> float:
    """The headline score, the higher the better."""
    value = row.scores[board.headline][0].mean
    return value if board.headline == "f1" else -value


def _is_better(board: Board, a: Row, b: Row) -> bool:
    return round(_score(board, a) - _score(board, b), DECIMALS) > 0


def _beats(a: Row, b: Row) -> bool:
    """True if ``a`` is significantly better than ``b`` of the same board."""
    return a.standing is not None and b.label in a.standing.worse


def _by_stream(board: Board, row: Row) -> Scores:
    """The headline score of a row on each stream, the higher the better."""
    means = stream_means(run_items({run_of(record): getattr(record.summary, board.headline) for record in row.records}))
    return np.array([means[stream] for stream in board.streams]) * (1 if board.headline == "f1" else -1)
