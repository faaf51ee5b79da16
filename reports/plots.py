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
    change_plots,
    cost_plots,
    format_plots,
    gradient_plots,
    memory_plots,
    month_plots,
    pair_plots,
    query_plots,
    relative_plots,
    restart_plots,
    score_plots,
    token_plots,
    tuning_plots,
)
from reports.board import Board
from reports.style import STYLE, Drawings

PARTS = (
    score_plots,
    restart_plots,
    arm_plots,
    memory_plots,
    relative_plots,
    change_plots,
    format_plots,
    month_plots,
    cost_plots,
    query_plots,
    token_plots,
    gradient_plots,
    tuning_plots,
)
NAMES = tuple(name for part in (*PARTS, pair_plots) for name in part.NAMES)
FORMATS = ("pdf", "svg", "png")
CAPTION = "txt"
"""Ending of the file with the caption and the note of a plot, which lies beside the pictures."""
TEXTUAL = tuple(
    f"{name}.{ending}" for name in (token_plots.DOCUMENT, gradient_plots.DOCUMENT) for ending in (*FORMATS, CAPTION)
)
"""The files of the plots that show the text of a document."""

_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def drawings(board: Board) -> Drawings:
    """The plots of a board that have data, without those of several boards."""
    plots = {name: plot for part in PARTS for name, plot in part.drawings(board).items()}
    return with_facts({name: plots[name] for name in NAMES if name in plots}, [board])


def across(board: Board) -> Drawings:
    """The plots of all boards of an experiment together, of which this is the first one."""
    return with_facts(pair_plots.drawings(board), [board, *board.others])


def with_facts(drawings: Drawings, boards: Sequence[Board]) -> Drawings:
    """The plots, whose notes end with datasets, base models and streams of the boards that they show."""
    streams = [(board.streams[0].rpartition("-")[0], len(board.streams)) for board in boards]
    facts = [
        _fact("dataset", [board.dataset for board in boards]),
        _fact("base model", [board.model for board in boards]),
        ", ".join(dict.fromkeys(f"{count} stream{'s' * (count > 1)} of {name}" for name, count in streams)),
    ]
    return {name: plot._replace(notes=[*plot.notes, *facts]) for name, plot in drawings.items()}


def _fact(kind: str, values: Sequence[str]) -> str:
    distinct = dict.fromkeys(values)
    return f"{kind}{'s' * (len(distinct) > 1)}: {', '.join(distinct)}"


def write(board: Board, out: Path, names: Sequence[str] = NAMES) -> list[Path]:
    """Draw the plots of these names that a board has data for, each with its caption; returns the files written."""
    found = drawings(board)
    return save({name: found[name] for name in names if name in found}, out)


def save(drawings: Drawings, out: Path) -> list[Path]:
    """Draw plots in the project's style, in all formats, with their captions; returns the files written."""
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
    return [*written, *write_captions(drawings, out)]


def write_captions(drawings: Drawings, out: Path) -> list[Path]:
    """Write the captions alone; returns the files written."""
    paths = [out / f"{name}.{CAPTION}" for name in drawings]
    for path, plot in zip(paths, drawings.values(), strict=True):
        write_bytes(path, plot.text().encode())
    return paths


def files(drawings: Drawings) -> list[str]:
    """Names of the pictures of some plots."""
    return [f"{name}.{ending}" for name in drawings for ending in FORMATS]
