"""Published records: those of one experiment without documents, questions and gold answers, packed in one file.

They hold what tables and plots are made from: all manifests, tuning records and boards, and the events of the boards'
runs with their ids, dates, scores and predictions. They also lack the events of trials, and what may hold a text or a
path: the messages of errors, and notes other than remarks.

Predictions can tell of the data: where ``em`` is 1 a prediction is a gold answer but for case, articles and
punctuation, and a method that reads documents with a question may answer with a span of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bench.data.documents import document_id
from bench.errors import BenchError
from bench.files import write_bytes
from bench.records import boards, packed
from bench.records.check import check_board
from bench.records.schema import AnswerEvent, BoardRecord, Manifest, RunRecord, TokenEvent
from bench.records.store import (
    MANIFEST,
    board_path,
    is_packed,
    manifest,
    read_answers,
    read_board,
    read_documents,
    read_run,
    read_tokens,
    read_tuning,
    run_files,
    tuning_path,
)
from bench.records.tuning import runs_of

ABSOLUTE = re.compile(r"""(?:^|[\s"'=:,(\[])(~/\S+|/[^\s/]+/\S+|file:/{3}\S+|\w+://[^/\s]*@\S+)""")
"""A path that is absolute or in a home folder, or a URL with such a path or a user's name, within a text."""

Kind = TypeVar("Kind", bound=Manifest)


def publish(runs: Path, experiment: str, to: Path) -> Path:
    """Write the published records of an experiment to ``<to>/<experiment>/``, atomically; returns the file.

    Its boards on further base models are among them. Equal records give equal bytes.

    Raises:
        BenchError: a record is missing or damaged, a score is wrong, a run of a board has failed, a record holds an
            absolute path, or the records under ``runs`` are published ones.
    """
    if is_packed(runs):
        raise BenchError(f"{runs} holds published records: publish those that the runs themselves have written.")
    own = read_board(runs, experiment)
    all_boards = [*(read_board(runs, name) for name in own.bases), own]  # by default the last one is read
    for board in all_boards:
        check_board(runs, board)
    files = {**_trials(runs, all_boards), **_runs(runs, all_boards)}
    files = {name: files[name] for name in sorted(files, key=lambda name: name.split("/")[::-1])}  # like beside like
    for board in all_boards:
        files[board_path(Path(), board.experiment).as_posix()] = manifest(_without_paths(board, board.experiment))
    path = to / experiment / packed.NAME
    write_bytes(path, packed.pack(files))
    return path


def without_commit(folder: Path) -> tuple[int, int]:
    """How many runs of the boards in published records name no commit, and how many runs there are."""
    ids = {run_id for name in boards.names(folder) for run_id in read_board(folder, name).runs}
    return sum(not read_run(folder / run_id).provenance.get("commit") for run_id in ids), len(ids)


def _trials(runs: Path, boards: list[BoardRecord]) -> dict[str, bytes]:
    """The tuning records and the manifests of their runs."""
    files: dict[str, bytes] = {}
    for tuning in read_tuning(runs, (key for board in boards for key in board.tuning)):
        files[tuning_path(Path(), tuning.key).as_posix()] = manifest(_without_paths(tuning, tuning.key))
        for run_id in runs_of(tuning):
            record = _without_texts(read_run(runs / run_id)).model_copy(update={"files": {}})
            files[f"{run_id}/{MANIFEST}"] = manifest(record)
    return files


def _runs(runs: Path, boards: list[BoardRecord]) -> dict[str, bytes]:
    """The manifests and events of the boards' runs."""
    files: dict[str, bytes] = {}
    for run_id in dict.fromkeys(run_id for board in boards for run_id in board.runs):
        record = read_run(runs / run_id)
        if record.status == "failed":
            raise BenchError(f"{runs / run_id} has failed: run the same experiment again before it is published.")
        of_run = run_files(
            _without_texts(record),
            read_documents(runs, run_id),
            [_without_gold(event) for event in read_answers(runs, run_id)],
            [_without_pieces(event) for event in read_tokens(runs, run_id)],
        )
        files |= {f"{run_id}/{name}": content for name, content in of_run.items()}
    return files


def _without_texts(record: RunRecord) -> RunRecord:
    notes = {name: of for name, of in record.notes.items() if name == "remarks"}
    return _without_paths(without_error(record).model_copy(update={"notes": notes}), record.id)


def without_error(record: RunRecord) -> RunRecord:
    """A record without the texts of its failure, which may hold anything; kind, stream and document stay."""
    if record.failure is None:
        return record
    silent = record.failure.model_copy(update={"message": "", "traceback": ""})
    return record.model_copy(update={"failure": silent})


def _without_gold(event: AnswerEvent) -> AnswerEvent:
    """The event without gold answers; its prediction, which may be one, stays."""
    question_id = event.question_id
    if len(question_id.split()) > 1:  # a text
        question_id = document_id(question_id)
    return event.model_copy(update={"question_id": question_id, "answers": (), "earlier": ()})


def _without_pieces(event: TokenEvent) -> TokenEvent:
    return event.model_copy(update={"pieces": (), "nll": None})


def _without_paths(record: Kind, name: str) -> Kind:
    """The record, if no absolute path is in it."""
    for key, text in _texts(record.model_dump(mode="json")):
        if match := ABSOLUTE.search(text):
            raise BenchError(
                f"The record {name} is not published: its {key} holds the path {match[1]}. State it relative to the "
                f"project, and run the experiment again."
            )
    return record


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in plain data with their dotted keys."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, inner in items:
        yield from _texts(inner, f"{key}.{name}" if key else str(name))
