"""Plots of a board, for a paper's page: PDF, SVG and PNG, the same bytes for the same records."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from bench.files import write_bytes
from reports import arm_plots, cost_plots, memory_plots, score_plots, token_plots, tuning_plots
from reports.board import Board
from reports.style import STYLE, Drawings

PARTS = (score_plots, arm_plots, memory_plots, cost_plots, token_plots, tuning_plots)
NAMES = tuple(name for part in PARTS for name in part.NAMES)
FORMATS = ("pdf", "svg", "png")
FILES = tuple(f"{name}.{ending}" for name in NAMES for ending in FORMATS)

_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def write(board: Board, runs: Path, out: Path) -> list[Path]:
    """Draw what the records allow, remove plots that they no longer allow; returns the files written."""
    import matplotlib

    written = []
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # whatever the user's own configuration is
    drawings = _drawings(board, runs)
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a document may hold any character
        for name in NAMES:
            figure = drawings[name]() if name in drawings else None
            for ending in FORMATS:
                path = out / f"{name}.{ending}"
                if figure is not None:
                    picture = io.BytesIO()
                    figure.savefig(picture, format=ending, dpi=300, metadata=_NO_DATE[ending])
                    figure.set_layout_engine("none")  # laid out once for all formats: that is half of the time
                    write_bytes(path, picture.getvalue())
                    written.append(path)
                else:
                    path.unlink(missing_ok=True)
    return written


def due(board: Board, runs: Path) -> set[str]:
    """Names of the files that :func:`write` would write."""
    return {f"{name}.{ending}" for name in _drawings(board, runs) for ending in FORMATS}


def _drawings(board: Board, runs: Path) -> Drawings:
    return {name: draw for part in PARTS for name, draw in part.drawings(board, runs).items()}
