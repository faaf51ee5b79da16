"""Tables and plots: pure functions of the records."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.board import Board


def write_all(runs: Path, out: Path, experiment: str | None = None) -> Board:
    """Build the board of an experiment (default: the most recent one) and write all tables and plots under ``out``.

    Raises:
        BenchError: there is no such board, or its records are unreadable or not comparable.
    """
    from reports import board, plots, tables, token_weights

    built = board.build(runs, experiment)
    tables.write(built, out)
    token_weights.write(built, runs, out)
    plots.write(built, runs, out)
    return built


def stale(runs: Path, out: Path, experiment: str | None = None) -> list[str]:
    """Names of the files under ``out`` that are missing or do not match the records.

    Tables are compared byte by byte. Plots are only checked for presence: their bytes depend on matplotlib's version.
    Before that, all scores are computed again from the predictions, the answers and the events in the records.

    Raises:
        BenchError: as :func:`write_all`, or a score is another one than the record says.
    """
    from bench.records.store import read_board
    from bench.records.summary import check_board
    from reports import board, plots, tables, token_weights

    check_board(runs, read_board(runs, experiment))
    built = board.build(runs, experiment)
    with tempfile.TemporaryDirectory() as folder:
        written = [*tables.write(built, Path(folder)), *token_weights.write(built, runs, Path(folder))]
        outdated = [path.name for path in written if not _same(path, out / path.name)]
    names = {path.name for path in written}
    outdated += [name for name in token_weights.FILES if name not in names and (out / name).exists()]
    plot_names = plots.file_names(built, runs)
    return outdated + [name for name in plots.FILES if (name in plot_names) != (out / name).exists()]


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()
