"""Records on disk, written atomically: a record is complete or absent.

A cell's record is the folder ``runs/<id>/`` with ``documents.jsonl`` and ``answers.jsonl`` (one event per line),
``tokens.jsonl`` if the method weights tokens, and the manifest ``run.json``. The folder is written under a temporary
name and renamed when it is complete. Tuning records and boards are in ``runs/tuning`` and ``runs/boards``.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pydantic

from bench.errors import BenchError, first_problem
from bench.files import write_json
from bench.machine import may_be_alive, process_name
from bench.records.schema import AnswerEvent, BoardRecord, DocumentEvent, RunRecord, TokenEvent, TuningRecord

PARTIAL = ".partial-"

Record = TypeVar("Record", bound=pydantic.BaseModel)


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
    partial = runs / f"{PARTIAL}{process_name()}-{uuid.uuid4().hex[:8]}"
    old = runs / f"{partial.name}-old"
    files = {"documents": documents, "answers": answers, **({"tokens": tokens} if tokens else {})}
    counts = {"document_events": len(documents), "answer_events": len(answers), "token_events": len(tokens)}
    record = record.model_copy(update=counts)
    partial.mkdir()
    try:
        for name, events in files.items():
            with (partial / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for event in events:
                    file.write(event.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        write_json(partial / "run.json", record.model_dump(mode="json"))
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)  # the new record could not be put in its place
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
    return folder


def sweep(runs: Path) -> None:
    """Remove the incomplete folders of killed runs, and leave those of processes that may still be writing."""
    for leftover in runs.glob(f"{PARTIAL}*"):
        writer = re.match(rf"{re.escape(PARTIAL)}([0-9a-f]{{8}}-\d+)-", leftover.name)
        if writer is None or not may_be_alive(writer[1]):
            shutil.rmtree(leftover, ignore_errors=True)


def read_run(folder: Path) -> RunRecord:
    """Read one manifest.

    Raises:
        BenchError: the manifest is missing, damaged or of another schema.
    """
    return _read(RunRecord, folder / "run.json")


def read_documents(runs: Path, run_id: str) -> list[DocumentEvent]:
    """Read the document events of one run, in stream order.

    Raises:
        BenchError: the file is missing or damaged.
    """
    return _read_events(DocumentEvent, runs / run_id / "documents.jsonl", read_run(runs / run_id).document_events)


def read_answers(runs: Path, run_id: str) -> list[AnswerEvent]:
    """Read the answer events of one run, in the order of the probes.

    Raises:
        BenchError: the file is missing or damaged.
    """
    return _read_events(AnswerEvent, runs / run_id / "answers.jsonl", read_run(runs / run_id).answer_events)


def read_tokens(runs: Path, run_id: str) -> list[TokenEvent]:
    """Read the token events of one run, in stream order; [] if the method weights all tokens the same.

    Raises:
        BenchError: the file is missing or damaged.
    """
    expected = read_run(runs / run_id).token_events
    return _read_events(TokenEvent, runs / run_id / "tokens.jsonl", expected) if expected else []


def read_tuning(runs: Path, keys: Iterable[str]) -> list[TuningRecord]:
    """Read the tuning records with these keys.

    Raises:
        BenchError: one is missing or damaged.
    """
    return [_read(TuningRecord, runs / "tuning" / f"{key}.json") for key in keys]


def read_board(runs: Path, experiment: str | None = None) -> BoardRecord:
    """Read the board of an experiment, by default the newest board.

    Raises:
        BenchError: there is no such board under ``runs``, or it is damaged.
    """
    folder = runs / "boards"
    boards = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    path = folder / f"{experiment}.json" if experiment else boards[-1] if boards else None
    if path is None or not path.exists():
        name = f"of {experiment} " if experiment else ""
        raise BenchError(f"There is no board {name}in {runs}. Run an experiment first: python run_bench.py.")
    return _read(BoardRecord, path)


def _read(kind: type[Record], path: Path) -> Record:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BenchError(f"{path} is missing. Run the same experiment again: it runs only what is missing.") from None
    except pydantic.ValidationError as error:
        what = "its folder" if path.name == "run.json" else "it"
        raise BenchError(
            f"{path} is not a readable record. {first_problem(error, kind)} Delete {what} and run the same experiment "
            f"again: it runs only what is missing."
        ) from None


def _read_events(kind: type[Record], path: Path, expected: int) -> list[Record]:
    try:
        events = [kind.model_validate_json(line) for line in path.read_bytes().splitlines()]
    except (FileNotFoundError, pydantic.ValidationError):
        events = []
    if len(events) != expected:
        raise BenchError(
            f"{path} is damaged: it should hold {expected} events. Delete its folder and run the experiment again."
        )
    return events
