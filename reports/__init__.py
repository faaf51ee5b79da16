"""Tables and plots: pure functions of the records."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.board import Board


def write_all(
    runs: Path, out: Path, experiment: str | None = None, reference: str | None = None, columns: Sequence[str] = ()
) -> Board:
    """Build the board of an experiment (default: the most recent one) and write all tables and plots under ``out``.

    Those of a variation are in a folder of its name there (:func:`bench.records.boards.folder`). The boards on further
    base models are in folders named after these. What the last report wrote there and is outdated is removed.
    ``reference`` is the row from which paired differences are taken (:func:`reports.board.build`); ``columns`` are the
    names of those of the Markdown and the LaTeX table (:func:`reports.columns.columns`).

    Raises:
        BenchError: there is no such board, reference or column, or its records are unreadable or not comparable.
    """
    from bench.records import boards
    from reports import bases, board, page, plots, tables, token_weights, written

    built = board.build(runs, experiment, reference)
    root = boards.folder(out, built.experiment)
    paths = []
    for one, folder in _folders(built, root):
        paths += tables.write(one, folder, columns)
        paths += token_weights.write(one, runs, folder)
        paths += plots.write(one, runs, folder)
    paths.append(page.write([built, *built.bases], runs, root))
    written.replace(root, [*paths, *bases.write(built, root)])
    return built


def write_page(runs: Path, out: Path, experiments: Sequence[str | None], reference: str | None = None) -> Path:
    """Write the boards of experiments, with those on further base models, as one HTML page under ``out``.

    ``reference`` is that of :func:`write_all`, for every board.

    Raises:
        BenchError: as :func:`write_all`.
    """
    from reports import board, page

    built = [board.build(runs, experiment, reference) for experiment in experiments]
    return page.write([shown for one in built for shown in (one, *one.bases)], runs, out)


def stale(
    runs: Path, out: Path, experiment: str | None = None, reference: str | None = None, columns: Sequence[str] = ()
) -> list[str]:
    """Files under ``out``, relative to it, that are missing or do not match the records, or are of an earlier report.

    Tables and captions are compared byte by byte. Plots are only checked for presence: their bytes depend on
    matplotlib's version.
    Before that, all scores are computed again from the predictions, the answers and the events in the records. The
    plots that published records have no texts for may be there, from the records of the runs.

    Raises:
        BenchError: as :func:`write_all`, or a score is another one than the record says.
    """
    from bench.records import boards, imported
    from bench.records.store import is_packed
    from bench.records.summary import check_board
    from reports import bases, board, page, plots, tables, token_weights, written

    record = boards.read(runs, experiment)
    for name in (record.experiment, *record.bases):
        check_board(runs, boards.read(runs, name))
        for row in imported.rows(runs, name):
            check_board(row.folder, row.board)
    built = board.build(runs, record.experiment, reference)
    root = boards.folder(out, built.experiment)
    wrong: list[Path] = []
    expected: list[Path] = []
    for one, folder in _folders(built, root):
        with tempfile.TemporaryDirectory() as temporary:
            texts = [*tables.write(one, Path(temporary), columns), *token_weights.write(one, runs, Path(temporary))]
            texts += plots.write_captions(one, runs, Path(temporary))
            texts += bases.write(one, Path(temporary))
            if one is built:
                texts.append(page.write([one, *one.bases], runs, Path(temporary)))
            wrong += [folder / path.name for path in texts if not _same(path, folder / path.name)]
        drawn = [folder / name for name in sorted(plots.file_names(one, runs))]
        wrong += [path for path in drawn if not path.exists()]
        textual = plots.TEXTUAL if is_packed(runs) else ()
        expected += [*drawn, *(folder / name for name in (*(path.name for path in texts), *textual))]
    wrong += [root / name for name in written.outdated(root, [path.relative_to(root).as_posix() for path in expected])]
    return [str(path.relative_to(out)) for path in wrong]


def _folders(board: Board, out: Path) -> list[tuple[Board, Path]]:
    """The board and those on further base models, each with its folder."""
    return [(board, out), *((other, out / other.model) for other in board.bases)]


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()
