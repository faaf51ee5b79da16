"""Plots of a board for a paper: PDF, SVG and PNG, and the caption as text, with the same bytes for the same records."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.files import write_bytes
from reports import (
    arm_plots,
    base_plots,
    change_plots,
    cost_plots,
    format_plots,
    memory_plots,
    month_plots,
    relative_plots,
    score_plots,
    token_plots,
    tuning_plots,
)
from reports.board import Board
from reports.style import STYLE, Drawings, Plot

PARTS = (
    score_plots,
    base_plots,
    arm_plots,
    memory_plots,
    relative_plots,
    change_plots,
    format_plots,
    month_plots,
    cost_plots,
    token_plots,
    tuning_plots,
)
NAMES = tuple(name for part in PARTS for name in part.NAMES)
FORMATS = ("pdf", "svg", "png")
CAPTION = "txt"
"""Ending of the file with the caption and the note of a plot, which lies beside the pictures."""
TEXTUAL = tuple(f"{token_plots.DOCUMENT}.{ending}" for ending in (*FORMATS, CAPTION))
"""The files of the plot that shows the text of a document."""

_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def write(board: Board, runs: Path, out: Path) -> list[Path]:
    """Draw all plots that have data, each with its caption; returns the files written."""
    return save(_drawings(board, runs), out, *_facts(board))


def write_captions(board: Board, runs: Path, out: Path) -> list[Path]:
    """Write the captions alone."""
    return [_write_caption(name, plot, out, _facts(board)) for name, plot in _drawings(board, runs).items()]


def save(drawings: Drawings, out: Path, *facts: str) -> list[Path]:
    """Draw plots in the project's style, in all formats, with their captions, which end with the facts.

    Returns the files written.
    """
    import matplotlib

    written = []
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # independent of the user's configuration
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a document can contain any character
        for name, plot in drawings.items():
            figure = plot.draw()
            for ending in FORMATS:
                path = out / f"{name}.{ending}"
                picture = io.BytesIO()
                figure.savefig(picture, format=ending, dpi=300, metadata=_NO_DATE[ending])
                figure.set_layout_engine("none")  # one layout for all formats halves the time
                write_bytes(path, picture.getvalue())
                written.append(path)
            written.append(_write_caption(name, plot, out, facts))
    return written


def file_names(board: Board, runs: Path) -> set[str]:
    """Names of the pictures that :func:`write` writes."""
    return {f"{name}.{ending}" for name in _drawings(board, runs) for ending in FORMATS}


def _write_caption(name: str, plot: Plot, out: Path, facts: Sequence[str]) -> Path:
    path = out / f"{name}.{CAPTION}"
    write_bytes(path, plot.text(*facts).encode())
    return path


def _facts(board: Board) -> list[str]:
    """What all plots of a board have in common."""
    name, count = board.streams[0].rpartition("-")[0], len(board.streams)
    return [f"dataset: {board.dataset}", f"base model: {board.model}", f"{count} stream{'s' * (count > 1)} of {name}"]


def _drawings(board: Board, runs: Path) -> Drawings:
    plots = {name: plot for part in PARTS for name, plot in part.drawings(board, runs).items()}
    return {name: plots[name] for name in NAMES if name in plots}
