"""Boards by name. That of an experiment has its name; a variation of the experiment is ``<experiment>+<suffix>``.

A variation thus never takes the place of the experiment's own board, nor of its tables and plots.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.records.store import board_paths

MARK = "+"
NAME = re.compile(r"[\w-]+")
"""What an experiment and what follows the mark can be called: names of files and folders are made of it."""
NAME_RULE = "a name has letters, digits, _ and - only"


def variation(experiment: str, suffix: str) -> str:
    """Name of the board of a variation."""
    return f"{experiment}{MARK}{suffix}"


def folder(out: Path, name: str) -> Path:
    """The folder of a board's tables and plots: ``out`` or, for a variation, the folder of its name in there."""
    return out / name if MARK in name else out


def names(runs: Path) -> list[str]:
    """The names of all boards under ``runs``, the newest last.

    Raises:
        BenchError: published records are damaged.
    """
    return [path.stem for path in board_paths(runs)]
