"""The leaderboard as one HTML file: boards, charts, questions and traces. It needs no network and no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.files import write_bytes
from reports.board import Board
from reports.page import across, boards, document, questions, rows

NAME = "leaderboard.html"


def write(shown: Sequence[Board], out: Path) -> Path:
    """Write the page of these boards to ``out/leaderboard.html``, atomically; the same records give the same bytes.

    Raises:
        BenchError: the events of a run are missing or damaged.
    """
    blocks: dict[str, Any] = {"boards": [boards.facts(board) for board in shown], "across": across.facts(shown)}
    for place, board in enumerate(shown):
        for number, row in enumerate(board.rows):
            blocks[f"row-{place}-{number}"] = rows.facts(board, row)
        blocks |= {f"{name}-{place}": content for name, content in questions.blocks(board).items()}
    path = out / NAME
    write_bytes(path, document.render(_title(shown), blocks).encode())
    return path


def _title(shown: Sequence[Board]) -> str:
    return f"Leaderboard: {', '.join(dict.fromkeys(board.experiment for board in shown))}"
