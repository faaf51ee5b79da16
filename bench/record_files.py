"""Records on disk: written atomically, complete or absent.

A cell's record is the folder ``runs/<id>/`` with ``documents.jsonl`` and ``answers.jsonl`` (one event per line) and
``run.json``, the manifest. The folder is filled under a temporary name and renamed when it is complete, so a folder
without that prefix is always whole. Beside the cells stand ``runs/tuning`` and ``runs/boards``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydantic

from bench.errors import BenchError
from bench.records import AnswerEvent, BoardRecord, DocumentEvent, RunRecord, TuningRecord

PARTIAL = ".partial-"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically and durably: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_run(
    runs: Path, record: RunRecord, documents: Iterable[DocumentEvent] = (), answers: Iterable[AnswerEvent] = ()
) -> Path:
    """Write a whole record under ``runs/<record.id>/`` atomically, replacing an earlier one of the same id.

    Raises:
        OSError: the disk is full or not writable; nothing but a ``.partial-`` folder can be left behind.
    """
    runs.mkdir(parents=True, exist_ok=True)
    folder = runs / record.id
    partial = runs / f"{PARTIAL}{record.id}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        for name, events in (("documents.jsonl", documents), ("answers.jsonl", answers)):
            with (partial / name).open("w", encoding="utf-8") as file:
                for event in events:
                    file.write(event.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        write_json(partial / "run.json", record.model_dump(mode="json"))
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    return folder


def read_run(folder: Path) -> RunRecord:
    """Read one manifest.

    Raises:
        BenchError: the manifest is missing, truncated or of another schema.
    """
    path = folder / "run.json"
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BenchError(
            f"{folder} has no run.json. Delete the folder; the same command runs the cell again."
        ) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BenchError(
            f"{path} is not a readable record ({where}: {first['msg']}). Delete its folder; the same command runs "
            f"the cell again."
        ) from None


def read_runs(runs: Path) -> list[RunRecord]:
    """All records under ``runs``, sorted by id; unfinished folders are passed over."""
    if not runs.is_dir():
        return []
    folders = [folder for folder in sorted(runs.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    return [read_run(folder) for folder in folders if folder.name not in ("tuning", "boards")]


def read_documents(runs: Path, run_id: str) -> list[DocumentEvent]:
    """The document events of one run, in stream order."""
    return [DocumentEvent.model_validate_json(line) for line in _lines(runs / run_id / "documents.jsonl")]


def read_answers(runs: Path, run_id: str) -> list[AnswerEvent]:
    """The answer events of one run, in the order of the probes."""
    return [AnswerEvent.model_validate_json(line) for line in _lines(runs / run_id / "answers.jsonl")]


def read_tuning(runs: Path) -> list[TuningRecord]:
    """All tuning records under ``runs/tuning``."""
    return [TuningRecord.model_validate_json(path.read_bytes()) for path in sorted((runs / "tuning").glob("*.json"))]


def read_board(runs: Path, experiment: str | None = None) -> BoardRecord:
    """The board of an experiment, by default the one that was run last.

    Raises:
        BenchError: there is no such board under ``runs``.
    """
    folder = runs / "boards"
    boards = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    path = folder / f"{experiment}.json" if experiment else boards[-1] if boards else None
    if path is None or not path.exists():
        wanted = f"of {experiment} " if experiment else ""
        raise BenchError(f"There is no board {wanted}in {runs}. Run an experiment first: python run_bench.py.")
    return BoardRecord.model_validate_json(path.read_bytes())


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file
