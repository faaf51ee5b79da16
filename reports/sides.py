"""The two sides of a comparison: rows of one board, or two boards.

A board is named by its experiment, by a folder of records, or by a commit (seven digits of it or more). A folder shows
its board of the experiment that is asked for, or its newest. A commit shows the records that it made on the streams of
the experiment's board; records of earlier commits stay in the folder when code changes and cells run again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.records import boards, packed
from bench.records.comparability import differences, listed
from bench.records.schema import RunRecord
from bench.records.store import MANIFEST, read_board, read_run
from reports.board import grouped, labelled, load, unlike
from reports.rows import Group

COMMIT = re.compile("[0-9a-f]{7,40}")


def are_rows(a: str, b: str, runs: Path) -> bool:
    """True if both sides name rows, and False if both name boards.

    Raises:
        BenchError: one is a board, and the other one is not.
    """
    is_row = [not (_is_folder(side) or side in boards.names(runs) or COMMIT.fullmatch(side)) for side in (a, b)]
    if is_row[0] != is_row[1]:
        row, board = (a, b) if is_row[0] else (b, a)
        raise BenchError(
            f"{board} is a board, and {row!r} is none: it is no experiment under {runs}, folder of records or commit. "
            f"Name two boards, or two rows of one board."
        )
    return is_row[0]


def boards_of(a: str, b: str, runs: Path, experiment: str | None) -> tuple[Sequence[Group], Sequence[Group]]:
    """The rows of both boards, which are comparable.

    Raises:
        BenchError: there is no such board, or the two are not comparable; the message says in what they differ.
    """
    if COMMIT.fullmatch(a) and COMMIT.fullmatch(b):
        return _of_commits(a, b, runs, experiment)
    name = experiment or next((read_board(Path(side)).experiment for side in (a, b) if _is_folder(side)), None)
    left, right = (load(Path(side), name)[0] if _is_folder(side) else load(runs, side)[0] for side in (a, b))
    _check_comparable(left[0].records[0], right[0].records[0])
    _check_documents(left, right)
    return left, right


def _is_folder(side: str) -> bool:
    return (Path(side) / "boards").is_dir() or (Path(side) / packed.NAME).is_file()


def _of_commits(a: str, b: str, runs: Path, experiment: str | None) -> tuple[Sequence[Group], Sequence[Group]]:
    """The rows that two commits made on the streams of a board: in cells like its own, or else in others."""
    board = [record for group in load(runs, experiment)[0] for record in group.records]
    spec, streams = board[0].spec, {record.spec.stream for record in board}
    sides = []
    for commit in (a, b):
        of = [record for record in _records_of(commit, runs) if record.spec.dataset == spec.dataset]
        sides.append([record for record in of if record.spec.stream in streams and record.spec.prefix is None])
        if not sides[-1]:
            raise BenchError(f"No record under {runs} is of commit {commit} on the streams of the board.")
    keys = {record.comparability_key for record in sides[0]} & {record.comparability_key for record in sides[1]}
    if not keys:
        nearest = min(((x, y) for x in sides[0] for y in sides[1]), key=lambda two: len(_differences(*two)))
        _check_comparable(*nearest)
    key = board[0].comparability_key
    if key not in keys and len(keys) > 1:
        raise BenchError(
            f"{a} and {b} have records of {len(keys)} kinds that are comparable with each other, but not with the "
            f"board. Keep one kind in a folder of its own, and name it with --runs."
        )
    key = key if key in keys else min(keys)
    left, right = ([record for record in side if record.comparability_key == key] for side in sides)
    rows = labelled(grouped(left, runs)), labelled(grouped(right, runs))
    for group in (*rows[0], *rows[1]):
        _check_single(group)
    _check_documents(*rows)
    return rows


def _check_single(group: Group) -> None:
    """Refuse two records of one cell, such as those of two versions of a method that one commit has made."""
    seen: dict[tuple[str, int, int], RunRecord] = {}
    for record in group.records:
        other = seen.setdefault((record.spec.stream, record.spec.seed, record.spec.order), record)
        if other is not record:
            raise BenchError(
                f"{other.id} and {record.id} are both of {group.label} on {record.spec.stream}, with other code, "
                f"weights or devices. Delete one of them, or commit before you run."
            )


def _records_of(commit: str, runs: Path) -> Iterator[RunRecord]:
    for path in sorted(runs.glob(f"[!.]*/{MANIFEST}")):
        record = read_run(path.parent)
        if str(record.provenance.get("commit") or "").startswith(commit):
            yield record


def _differences(a: RunRecord, b: RunRecord) -> list[str]:
    return differences(a.spec, b.spec)


def _check_comparable(a: RunRecord, b: RunRecord) -> None:
    if a.comparability_key != b.comparability_key:
        raise BenchError(
            f"{a.id} and {b.id} cannot be compared; they differ in {listed(_differences(a, b))}. Compare runs under "
            f"the same conditions."
        )


def _check_documents(a: Sequence[Group], b: Sequence[Group]) -> None:
    """Refuse streams that have one name and different documents, questions or answers."""
    if two := unlike(record for group in (*a, *b) for record in group.records):
        name = two[0].spec.stream
        raise BenchError(f"{two[0].id} and {two[1].id} cannot be compared; {name} has other data in each.")
