"""Boards with planted scores, for figures whose published order is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reports.board import Board, build
from tests.reports.records_factory import board, record, spec

PUBLISHED_ORDER = ("uniform", "salient_spans", "camels", "mac", "cmt")
"""The methods of the figure ``table`` from the lowest published F1 on, in most of its panels."""
NOISE = (0.0, 0.01, 0.03, 0.02)
"""What is added on each stream."""


def planted(runs: Path, levels: Mapping[str, float], streams: int = 4) -> Board:
    """A board on which methods have these F1, plus a little on each stream, as ``default``."""
    ids = []
    for place, (method, level) in enumerate(levels.items()):
        for k in range(streams):
            shift = NOISE[(k + len(method)) % 4] + 0.001 * place * (0, 1, -1, 0)[k % 4]
            ids.append(record(runs, spec(method, f"test-4-{k}"), [[round(level + shift, 3)]] * 4, [3.0] * 4))
    board(runs, ids, "default")
    return build(runs, "default")


def in_published_order(runs: Path, streams: int = 4) -> Board:
    """A board with the order of the papers."""
    return planted(runs, {name: 0.1 + 0.1 * i for i, name in enumerate(PUBLISHED_ORDER)}, streams)


def in_opposite_order(runs: Path) -> Board:
    """A board with the opposite order."""
    return planted(runs, {name: 0.5 - 0.1 * i for i, name in enumerate(PUBLISHED_ORDER)})
