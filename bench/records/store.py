"""Records on disk, written atomically: a record is complete or absent.

A cell's record is the folder ``runs/<id>/`` with ``documents.jsonl`` and ``answers.jsonl`` (one event per line),
``tokens.jsonl`` if the method weights tokens, and the manifest ``run.json``. The folder is written under a temporary
name and renamed when it is complete. Tuning records and boards are in ``runs/tuning`` and ``runs/boards``.

Every manifest, tuning record and board holds a digest of its content, and a manifest those of its files of events.
They are compared whenever a file is read, so that no record is used that was edited, damaged or mixed with another by
mistake. This is no protection against a forger, who can compute digests.

Whatever is read may also be packed in one file (:mod:`bench.records.packed`), as published records are.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import pydantic

from bench.errors import BenchError, first_problem, nearest
from bench.files import json_bytes, write_bytes
from bench.hashing import digest
from bench.machine import may_be_alive, process_name
from bench.paths import PROGRAM
from bench.records import packed
from bench.records.schema import (
    SCHEMA,
    AnswerEvent,
    BoardRecord,
    DocumentEvent,
    Manifest,
    RunRecord,
    TokenEvent,
    TuningRecord,
)

PARTIAL = ".partial-"
MANIFEST = "run.json"
ABANDONED_SECONDS = 24 * 3600.0
"""Age of an incomplete folder, by when a process that is alive has long since finished it."""

Event = TypeVar("Event", DocumentEvent, AnswerEvent, TokenEvent)
Kind = TypeVar("Kind", bound=Manifest)


def write_run(
    runs: Path,
    record: RunRecord,
    documents: Sequence[DocumentEvent] = (),
    answers: Sequence[AnswerEvent] = (),
    tokens: Sequence[TokenEvent] = (),
) -> Path:
    """Write a record to ``runs/<record.id>/`` atomically, replacing an earlier one with the same id.

    Raises:
        OSError: the disk is full or not writable. At most a ``.partial-`` folder remains.
    """
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / record.id
    partial = partial_folder(runs)
    old = runs / f"{partial.name}-old"
    partial.mkdir()
    try:
        for name, content in run_files(record, documents, answers, tokens).items():
            write_bytes(partial / name, content)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another process has just written this record
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)  # the new record could not be put in its place
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def partial_folder(folder: Path) -> Path:
    """A new path under ``folder`` for what this process writes there before it gives it its name."""
    return folder / f"{PARTIAL}{process_name()}-{uuid.uuid4().hex[:8]}"


def run_files(
    record: RunRecord,
    documents: Sequence[DocumentEvent],
    answers: Sequence[AnswerEvent],
    tokens: Sequence[TokenEvent],
) -> dict[str, bytes]:
    """The files of a run by name: its events and, last, the manifest with their digests."""
    events = {"documents.jsonl": documents, "answers.jsonl": answers, **({"tokens.jsonl": tokens} if tokens else {})}
    files = {name: "".join(event.model_dump_json() + "\n" for event in of).encode() for name, of in events.items()}
    record = record.model_copy(update={"files": {name: sha256(content) for name, content in files.items()}})
    return {**files, MANIFEST: manifest(record)}


def manifest(record: Manifest) -> bytes:
    """The file of a manifest, tuning record or board: JSON with a digest of the content."""
    content = record.model_dump(mode="json")
    return json_bytes({**content, "digest": digest(content)})


def sweep(folder: Path) -> None:
    """Remove what killed processes have left incomplete in a folder, but not what a process may still be writing.

    Whether those of another machine are, cannot be seen: theirs are removed after :data:`ABANDONED_SECONDS`.
    """
    for leftover in folder.glob(f"{PARTIAL}*"):
        writer = re.match(rf"{re.escape(PARTIAL)}([0-9a-f]{{8}}-\d+)-", leftover.name)
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, or has finished
            silent = time.time() - leftover.stat().st_mtime
            if writer is None or silent > ABANDONED_SECONDS or not may_be_alive(writer[1]):
                shutil.rmtree(leftover, ignore_errors=True)


def write_tuning(runs: Path, record: TuningRecord) -> None:
    """Write a tuning record atomically, replacing an earlier one with the same key."""
    write_bytes(tuning_path(runs, record.key), manifest(record))


def write_board(runs: Path, record: BoardRecord) -> None:
    """Write a board atomically, replacing an earlier one of the same experiment."""
    write_bytes(board_path(runs, record.experiment), manifest(record))


class MissingRecord(BenchError):
    """There is no such record."""


def read_run(folder: Path) -> RunRecord:
    """Read one manifest.

    Raises:
        MissingRecord: there is none.
        BenchError: it is damaged, edited or of another schema, or the folder is that of another record.
    """
    path = folder / MANIFEST
    record = _read(RunRecord, path)
    if record.id != folder.name:
        refuse(path, f"is the record {record.id}, in the folder of another one.")
    return record


def read_documents(runs: Path, run_id: str) -> list[DocumentEvent]:
    """Read the document events of one run, in stream order.

    Raises:
        BenchError: as :func:`read_run`, or the file is missing or is not the one that was written.
    """
    return _read_events(DocumentEvent, runs / run_id / "documents.jsonl")


def read_answers(runs: Path, run_id: str) -> list[AnswerEvent]:
    """Read the answer events of one run, in the order of the probes.

    Raises:
        BenchError: as :func:`read_documents`.
    """
    return _read_events(AnswerEvent, runs / run_id / "answers.jsonl")


def read_tokens(runs: Path, run_id: str) -> list[TokenEvent]:
    """Read the token events of one run, in stream order; [] if the method weights all tokens the same.

    Raises:
        BenchError: as :func:`read_documents`.
    """
    return _read_events(TokenEvent, runs / run_id / "tokens.jsonl")


def read_tuning(runs: Path, keys: Iterable[str]) -> list[TuningRecord]:
    """Read the tuning records with these keys, each once.

    Raises:
        BenchError: one is missing, damaged, edited or of another schema, or the file is that of another record.
    """
    records = []
    for key in dict.fromkeys(keys):
        path = tuning_path(runs, key)
        records.append(_read(TuningRecord, path))
        if records[-1].key != key:
            refuse(path, f"is the tuning record {records[-1].key}, under the name of another one.")
    return records


def read_board(runs: Path, experiment: str | None = None) -> BoardRecord:
    """Read the board of this name, by default the newest board.

    Raises:
        BenchError: there is no such board under ``runs`` (with the nearest names), or it is damaged, edited or of
            another schema or experiment.
    """
    known = {path.stem: path for path in board_paths(runs)}
    if not known:
        below = sorted(path.name for path in runs.glob("*") if is_packed(path) or board_paths(path))
        hint = f"Name one of its folders: {', '.join(below)}" if below else f"Run an experiment first: {PROGRAM}"
        raise BenchError(f"There is no board in {runs}. {hint}.")
    if experiment is not None and experiment not in known:
        raise BenchError(f"There is no board {experiment!r} in {runs}.{nearest(experiment, known)}")
    path = known[experiment or [*known][-1]]
    board = _read(BoardRecord, path)
    if board.experiment != path.stem:
        refuse(path, f"is the board of {board.experiment}, under the name of another one.")
    return board


def is_packed(runs: Path) -> bool:
    """True if the records are packed in one file. They are then published ones, to which none are added."""
    return (runs / packed.NAME).exists()


def tuning_path(runs: Path, key: str) -> Path:
    """The file of the tuning record with this key."""
    return runs / "tuning" / f"{key}.json"


def board_path(runs: Path, experiment: str) -> Path:
    """The file of the board of an experiment."""
    return runs / "boards" / f"{experiment}.json"


def board_paths(runs: Path) -> list[Path]:
    """The files of the boards, the newest last."""
    if (files := packed.unpacked(runs)) is not None:
        return [runs / name for name in files if name.startswith("boards/")]
    return sorted((runs / "boards").glob("*.json"), key=lambda path: path.stat().st_mtime)


def _content(path: Path) -> bytes:
    """The content of a file ``<runs>/<folder>/<name>``, from the archive if there is one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if (files := packed.unpacked(path.parents[1])) is None:
        return current_bytes(path)
    name = f"{path.parent.name}/{path.name}"
    if name not in files:
        raise FileNotFoundError(path)
    return files[name]


def current_bytes(path: Path) -> bytes:
    """The content of a file that another machine may replace while it is read.

    Raises:
        OSError: it cannot be read, or there is no such file.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:  # of a file server: the file that was opened is gone
            raise
        return path.read_bytes()


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _read(kind: type[Kind], path: Path) -> Kind:
    try:
        text = _content(path)
    except FileNotFoundError:
        _refuse(path, "is missing.", "Run the same experiment again: it runs only what is missing.", MissingRecord)
    return _parse(kind, text, path)


def is_record(manifest: bytes, path: Path) -> bool:
    """True if these bytes, which are to be written to ``path``, are a run's manifest, whole and of this version."""
    try:
        _parse(RunRecord, manifest, path)
    except BenchError:
        return False
    return True


def _parse(kind: type[Kind], text: str | bytes, path: Path) -> Kind:
    try:
        content = json.loads(text, parse_constant=_no_number)
        if not isinstance(content, dict):
            raise ValueError
    except (ValueError, RecursionError):
        refuse(path, "is not readable JSON.")
    stated = content.pop("digest", None)
    if (version := content.get("schema_version")) != SCHEMA:
        older = isinstance(version, int) and 0 < version < SCHEMA
        refuse(path, "is from an older version of this program." if older else f"is not a record of version {SCHEMA}.")
    try:
        record = kind.model_validate(content)
    except pydantic.ValidationError as error:
        refuse(path, f"is not a valid record. {first_problem(error, kind)}")
    if digest(content) != stated:
        refuse(path, "has been changed since it was written.")
    return record


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_events(kind: type[Event], path: Path) -> list[Event]:
    written = read_run(path.parent).files.get(path.name)
    try:
        content = _content(path)
    except FileNotFoundError:
        if written is None:
            return []
        refuse(path, "is missing.")
    if sha256(content) != written:
        refuse(path, f"is not the file that was written with {MANIFEST}.")
    events = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            events.append(kind.model_validate_json(line))
        except pydantic.ValidationError as error:
            refuse(path, f"is damaged in line {number}. {first_problem(error, kind)}")
    return events


def refuse(path: Path, problem: str) -> NoReturn:
    """Refuse a file that is not as it was written.

    Raises:
        BenchError: always; the message is the path, the ``problem`` as the rest of a sentence, and the remedy.
    """
    what = "it" if path.parent.name in ("tuning", "boards") else "its folder"
    _refuse(path, problem, f"Delete {what} and run the same experiment again: it runs only what is missing.")


def _refuse(path: Path, problem: str, remedy: str, kind: type[BenchError] = BenchError) -> NoReturn:
    if is_packed(path.parents[1]):
        name = f"{path.parent.name}/{path.name}"
        raise kind(f"{path.parents[1] / packed.NAME}: {name} {problem} {packed.REMEDY}")
    raise kind(f"{path} {problem} {remedy}")
