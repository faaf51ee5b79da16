"""Rows that somebody else measured: ``runs/imported/<experiment>/<row>/``, apart from the records of one's own runs.

Each is a folder of records like ``runs`` itself, with the runs of one row, its tuning record and a board. No cell is
taken from there: what is imported never changes what is run. :mod:`bench.records.submission` makes such folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.records.schema import BoardRecord, RunRecord
from bench.records.store import read_board, read_run

FOLDER = "imported"


@dataclass(frozen=True)
class ImportedRow:
    """The records of one row, on a folder of their own."""

    folder: Path
    board: BoardRecord
    """The entries of the row, and no others."""
    records: tuple[RunRecord, ...]

    @property
    def mark(self) -> str:
        """The end of the folder's name: the start of a hash of the file that was imported."""
        return self.folder.name.rpartition("-")[2]


def rows(runs: Path, experiment: str) -> Iterator[ImportedRow]:
    """The imported rows of an experiment's board.

    Raises:
        BenchError: a record is missing, damaged or edited.
    """
    for folder in sorted((runs / FOLDER / experiment).glob("[!.]*/")):
        try:
            board = read_board(folder)
            yield ImportedRow(folder, board, tuple(read_run(folder / run_id) for run_id in board.runs))
        except BenchError as error:
            reason = reason_of(error, folder)
            raise BenchError(f"The imported row {folder} is damaged: {reason} Delete it and import it again.") from None


def reason_of(error: BenchError, folder: Path) -> str:
    """What is wrong with records under a folder, without the folder's name and the remedy for one's own records."""
    text = str(error).replace(f"{folder}/", "")
    for remedy in (" Delete it", " Run the same", " Run an"):
        text = text.partition(remedy)[0]
    return text
