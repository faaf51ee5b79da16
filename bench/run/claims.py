"""Claims: which process runs a cell, so that several runs on one folder of records never run the same one.

A claim is a file under ``claims`` in the folder of the records. It names the process, whose heartbeat is the time of
the file. A claim without one for :data:`STALE_SECONDS`, or of a process of this machine that has ended, is taken over.
Times are those of the file server, so that the clocks of several machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from bench.files import json_bytes, write_bytes
from bench.machine import may_be_alive, process_name

FOLDER = "claims"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0


class Claim(NamedTuple):
    """Who runs a cell."""

    cell: str
    host: str
    process: str
    """:func:`bench.machine.process_name`."""
    started: str
    token: str

    @property
    def pid(self) -> int:
        """The process id on its host."""
        return int(self.process.rpartition("-")[2])


class Running(NamedTuple):
    """A claim that holds, and the seconds since its last heartbeat."""

    claim: Claim
    silent: float


@contextlib.contextmanager
def claimed(runs: Path, cell: str) -> Iterator[bool]:
    """Context in which this process holds the claim to a cell; False if another one does, which is then left alone."""
    folder = runs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    claim = own_claim(cell)
    with _lock(folder):
        free = _running(folder, cell) is None
        if free:
            write_bytes(_path(folder, cell), json_bytes(claim._asdict()))
    if not free:
        yield False
        return
    try:
        with beating(HEARTBEAT_SECONDS, partial(os.utime, _path(folder, cell))):
            yield True
    finally:
        with _lock(folder):
            if _read(_path(folder, cell)) == claim:
                _path(folder, cell).unlink(missing_ok=True)


def own_claim(cell: str) -> Claim:
    """A claim of this process, from now on."""
    return Claim(cell, platform.node(), process_name(), datetime.now(UTC).isoformat(), uuid.uuid4().hex)


@contextlib.contextmanager
def beating(seconds: float, beat: Callable[[], object]) -> Iterator[None]:
    """Context in which ``beat`` is called every so many seconds. It may fail, and is called again."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(Exception):  # the claim is taken over, or the server does not answer now
                beat()

    heart = threading.Thread(target=run, daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()


def holder(runs: Path, cell: str) -> Claim | None:
    """The claim to a cell that holds; None if it is free to run."""
    found = _running(runs / FOLDER, cell)
    return None if found is None else found.claim


def running(runs: Path) -> list[Running]:
    """All claims that hold, the oldest first."""
    folder = runs / FOLDER
    found = (_running(folder, path.stem) for path in sorted(folder.glob("*.json")))
    return sorted((one for one in found if one is not None), key=lambda one: one.claim.started)


def _running(folder: Path, cell: str) -> Running | None:
    path = _path(folder, cell)
    claim = _read(path)
    if claim is None or not may_be_alive(claim.process):
        return None
    try:
        silent = _now(folder) - path.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return None
    return Running(claim, silent) if silent < STALE_SECONDS else None


def _read(path: Path) -> Claim | None:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return None


def parse(content: bytes) -> Claim | None:
    """A claim from the content of its file; None if it was not written by a claim."""
    try:
        return Claim(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _now(folder: Path) -> float:
    """The time by the clock of the file server, with which heartbeats are written."""
    clock = folder / ".clock"
    try:
        clock.touch()
        return clock.stat().st_mtime
    except OSError:  # a folder that cannot be written
        return time.time()


def _path(folder: Path, cell: str) -> Path:
    return folder / f"{cell}.json"


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock")
