"""Several boards side by side: how often a method wins on each, and the pairs of methods whose order inverts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reports.board import Board
from reports.pairs import inversions, rank
from reports.rows import Row


class WinRate(NamedTuple):
    """How a method does on the boards on which it competes with others."""

    label: str
    ranks: tuple[int | None, ...]
    """Its rank on each board; None where it does not compete."""
    rate: float
    """The share of its rivals with a lower score, ties as halves; the mean over its boards."""
    significant: float
    """The same, of the rivals that are significantly worse."""


def facts(boards: Sequence[Board]) -> dict[str, Any] | None:
    """Win rates and inversions as plain data; None for a single board. Scores of two boards are never compared."""
    if len(boards) < 2:
        return None
    return {
        "wins": [rate._asdict() for rate in win_rates(boards)],
        "pairs": [_inversions(boards, a, b) for a, b in itertools.combinations(range(len(boards)), 2)],
    }


def win_rates(boards: Sequence[Board]) -> list[WinRate]:
    """The methods that compete with others on any of the boards, by label; the highest rates first."""
    by_board = [_rivals(board) for board in boards]
    ranks = [
        {label: rank(board, row) or 0 for label, row in rows.items()}
        for board, rows in zip(boards, by_board, strict=True)
    ]
    rates = []
    for label in dict.fromkeys(label for rows in by_board for label in rows):
        places = [place for place, rows in enumerate(by_board) if label in rows and len(rows) > 1]
        if places:
            wins = [_share_beaten(label, ranks[place]) for place in places]
            worse = [_worse(by_board[place][label]) / (len(by_board[place]) - 1) for place in places]
            of_label = tuple(of_board.get(label) for of_board in ranks)
            rates.append(WinRate(label, of_label, sum(wins) / len(wins), sum(worse) / len(worse)))
    return sorted(rates, key=lambda rate: (-rate.rate, rate.label))


def _rivals(board: Board) -> dict[str, Row]:
    """The rows that compete, by label."""
    return {row.label: row for row in board.rows if row.standing is not None}


def _share_beaten(label: str, ranks: Mapping[str, int]) -> float:
    others = [other for name, other in ranks.items() if name != label]
    return sum(1.0 if other > ranks[label] else 0.5 if other == ranks[label] else 0.0 for other in others) / len(others)


def _worse(row: Row) -> int:
    """Number of the row's rivals that are significantly worse."""
    return 0 if row.standing is None else len(row.standing.worse)


def _inversions(boards: Sequence[Board], a: int, b: int) -> dict[str, Any]:
    """The methods that compete on two boards, and those pairs of them that have opposite orders."""
    first, other = _rivals(boards[a]), _rivals(boards[b])
    lines = [(label, row, other[label]) for label, row in first.items() if label in other]
    inverted = inversions(boards[a], boards[b], lines)
    return {"boards": [a, b], "methods": len(lines), "inversions": [pair._asdict() for pair in inverted]}
