"""Plots of a board for a paper: PDF, SVG and PNG, with the same bytes for the same records."""

from __future__ import annotations

import io
import warnings
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
from reports.style import STYLE, Drawings

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
FILES = tuple(f"{name}.{ending}" for name in NAMES for ending in FORMATS)
TEXTUAL = tuple(f"{token_plots.DOCUMENT}.{ending}" for ending in FORMATS)
"""The files of the plot that shows the text of a document."""

_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def write(board: Board, runs: Path, out: Path) -> list[Path]:
    """Draw all plots that have data; returns the files written."""
    drawings = _drawings(board, runs)
    return save({name: drawings[name] for name in NAMES if name in drawings}, out)


def save(drawings: Drawings, out: Path) -> list[Path]:
    """Draw plots in the project's style, in all formats; returns the files written."""
    import matplotlib

    written = []
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # independent of the user's configuration
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a document can contain any character
        for name, draw in drawings.items():
            figure = draw()
            for ending in FORMATS:
                path = out / f"{name}.{ending}"
                picture = io.BytesIO()
                figure.savefig(picture, format=ending, dpi=300, metadata=_NO_DATE[ending])
                figure.set_layout_engine("none")  # one layout for all formats halves the time
                write_bytes(path, picture.getvalue())
                written.append(path)
    return written


def file_names(board: Board, runs: Path) -> set[str]:
    """Names of the files that :func:`write` writes."""
    return {f"{name}.{ending}" for name in _drawings(board, runs) for ending in FORMATS}


def _drawings(board: Board, runs: Path) -> Drawings:
    return {name: draw for part in PARTS for name, draw in part.drawings(board, runs).items()}
