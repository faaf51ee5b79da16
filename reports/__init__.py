"""Tables and plots: pure functions of the records."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.board import Board


def write_all(runs: Path, out: Path, experiment: str | None = None) -> Board:
    """Build the board of an experiment (default: the most recent one) and write all tables and plots under ``out``.

    The boards on further base models are written under ``out/<base>``, and the comparison of the bases under ``out``.

    Raises:
        BenchError: there is no such board, or its records are unreadable or not comparable.
    """
    from reports import bases, board, plots, tables, token_weights

    built = board.build(runs, experiment)
    for one, folder in _folders(built, out):
        tables.write(one, folder)
        token_weights.write(one, runs, folder)
        plots.write(one, runs, folder)
    bases.write(built, out)
    return built


def stale(runs: Path, out: Path, experiment: str | None = None) -> list[str]:
    """Files under ``out``, relative to it, that are missing or do not match the records.

    Tables are compared byte by byte. Plots are only checked for presence: their bytes depend on matplotlib's version.
    Before that, all scores are computed again from the predictions, the answers and the events in the records. The
    plots that published records have no texts for may be there, from the records of the runs.

    Raises:
        BenchError: as :func:`write_all`, or a score is another one than the record says.
    """
    from bench.records.store import is_packed, read_board
    from bench.records.summary import check_board
    from reports import bases, board, plots, tables, token_weights

    record = read_board(runs, experiment)
    for name in (record.experiment, *record.bases):
        check_board(runs, read_board(runs, name))
    built = board.build(runs, record.experiment)
    textual = plots.TEXTUAL if is_packed(runs) else ()
    outdated = []
    for one, folder in _folders(built, out):
        with tempfile.TemporaryDirectory() as temporary:
            written = [*tables.write(one, Path(temporary)), *token_weights.write(one, runs, Path(temporary))]
            written += bases.write(one, Path(temporary))
            wrong = [path.name for path in written if not _same(path, folder / path.name)]
        names = {path.name for path in written}
        optional = (*token_weights.FILES, *bases.FILES)
        wrong += [name for name in optional if name not in names and (folder / name).exists()]
        plot_names = plots.file_names(one, runs)
        expected = {name: name in plot_names for name in plots.FILES if name in plot_names or name not in textual}
        wrong += [name for name, drawn in expected.items() if drawn != (folder / name).exists()]
        outdated += [str((folder / name).relative_to(out)) for name in wrong]
    return outdated


def _folders(board: Board, out: Path) -> list[tuple[Board, Path]]:
    """The board and those on further base models, each with its folder."""
    return [(board, out), *((other, out / other.model) for other in board.bases)]


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()
