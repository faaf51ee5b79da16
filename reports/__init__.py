"""Tables and plots: pure functions of the records."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.board import Board
    from reports.style import Drawings


def write_all(
    runs: Path, out: Path, experiment: str | None = None, reference: str | None = None, columns: Sequence[str] = ()
) -> Board:
    """Build the board of an experiment (default: the most recent one) and write all tables and plots under ``out``.

    Those of a variation are in a folder of its name there (:func:`bench.records.boards.folder`). If the experiment has
    several boards, each is in a folder of its own, named after its dataset, its base, or both. What the last report
    wrote there and is outdated is removed. ``reference`` is the row from which paired differences are taken
    (:func:`reports.board.build`); ``columns`` are the names of those of the Markdown and the LaTeX table
    (:func:`reports.columns.columns`).

    Raises:
        BenchError: there is no such board, reference or column, or its records are unreadable or not comparable.
    """
    from bench.records import boards
    from reports import board, plots, written

    built = board.build(runs, experiment, reference)
    root = boards.folder(out, built.experiment)
    paths = _write_tables(built, root, columns)
    for folder, drawings in _drawings(built, root):
        paths += plots.save(drawings, folder)
    written.replace(root, paths)
    return built


def write_page(runs: Path, out: Path, experiments: Sequence[str | None], reference: str | None = None) -> Path:
    """Write the boards of experiments, each on all its pairs of dataset and base, as one HTML page under ``out``.

    ``reference`` is that of :func:`write_all`, for every board.

    Raises:
        BenchError: as :func:`write_all`.
    """
    from reports import board, page

    built = [board.build(runs, experiment, reference) for experiment in experiments]
    return page.write([shown for one in built for shown in (one, *one.others)], out)


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
    from bench.records.check import check_board
    from bench.records.store import is_packed, read_board
    from reports import board, plots, written

    record = read_board(runs, experiment)
    for name in (record.experiment, *record.bases):
        check_board(runs, read_board(runs, name))
        for row in imported.rows(runs, name):
            check_board(row.folder, row.board)
    built = board.build(runs, record.experiment, reference)
    root = boards.folder(out, built.experiment)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        made, drawn = _write_tables(built, place, columns), []
        for folder, drawings in _drawings(built, place):
            made += plots.write_captions(drawings, folder)
            drawn += [folder / name for name in plots.files(drawings)]
        texts, pictures = ([path.relative_to(place) for path in paths] for paths in (made, drawn))
        wrong = [path for path in texts if not _same(place / path, root / path)]
        textual = [folder.relative_to(place) / name for _, folder in _folders(built, place) for name in plots.TEXTUAL]
    wrong += [path for path in pictures if not (root / path).exists()]
    expected = [*texts, *pictures, *(textual if is_packed(runs) else ())]
    wrong += map(Path, written.outdated(root, [path.as_posix() for path in expected]))
    return [str((root / path).relative_to(out)) for path in wrong]


def _write_tables(built: Board, root: Path, columns: Sequence[str]) -> list[Path]:
    """Write everything but the plots and their captions; returns the files."""
    from reports import page, pair_tables, tables, token_weights

    paths = []
    for one, folder in _folders(built, root):
        paths += [*tables.write(one, folder, columns), *token_weights.write(one, folder)]
    return [*paths, *pair_tables.write(built, root), page.write([built, *built.others], root)]


def _drawings(built: Board, root: Path) -> Iterator[tuple[Path, Drawings]]:
    """The plots of each board and those of all boards together, each with their folder."""
    from reports import plots

    for one, folder in _folders(built, root):
        yield folder, plots.drawings(one)
    yield root, plots.across(built)


def _folders(built: Board, root: Path) -> list[tuple[Board, Path]]:
    """The boards of an experiment with their folders: the root, if there is only one."""
    from reports import pairs

    if not built.others:
        return [(built, root)]
    return [(one, root / "-".join(of)) for one, of in zip((built, *built.others), pairs.parts(built), strict=True)]


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()
