"""Claims: which process runs a cell, so that several runs on one folder of records never run the same one.

A claim is a file under ``claims`` in the folder of the records, which one process alone can create: no locks are used,
since some file servers leave them to each machine. It names the process, whose heartbeat is the time of the file. A
claim without one for :data:`STALE_SECONDS`, or of a process of this machine that has ended, is taken over. A process
may have stood still for so long: it asks, before it writes a record, whether it still :func:`holds` its claim. Times
are those of the file server, so that the clocks of several machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench.files import json_bytes
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


class Seen(NamedTuple):
    """The file of a claim as it was read, and the seconds since its last heartbeat."""

    content: bytes
    silent: float

    def holds(self, longest: float) -> bool:
        """True unless it has been silent for so many seconds, or its process has ended.

        What names no process holds too: it may be a claim that is being written.
        """
        claim = parse(self.content)
        return self.silent < longest and (claim is None or may_be_alive(claim.process))


@contextlib.contextmanager
def claimed(runs: Path, cell: str) -> Iterator[bool]:
    """Context in which this process holds the claim to a cell; False if another one does, which is then left alone."""
    path, content = _path(runs, cell), json_bytes(own_claim(cell)._asdict())
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _take(path, content):
        yield False
        return

    def beat() -> None:
        if _content(path) == content:
            os.utime(path)

    try:
        with beating(HEARTBEAT_SECONDS, beat):
            yield True
    finally:
        if _content(path) == content:
            path.unlink(missing_ok=True)


def holds(runs: Path, cell: str) -> bool:
    """True if this process holds the claim to a cell."""
    return is_own(_content(_path(runs, cell)))


def is_own(content: bytes) -> bool:
    """True if a claim, by the content of its file, is one of this process."""
    claim = parse(content)
    return claim is not None and claim.process == process_name()


def _take(path: Path, content: bytes) -> bool:
    """Create the file of a claim, in place of one that no longer holds; False if another process has one."""
    found = _look(path)
    if found is not None:
        if found.holds(STALE_SECONDS):
            return False
        _remove(path, found.content)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return _content(path) == content  # else another process took it over before it was written


def _remove(path: Path, content: bytes) -> None:
    """Remove a claim with this content, but not one that another process has put in its place meanwhile."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _content(aside) == content:
        aside.unlink()
    else:
        aside.rename(path)


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


def is_claimed(runs: Path, cell: str) -> bool:
    """True if a process holds the claim to a cell."""
    found = _look(_path(runs, cell))
    return found is not None and found.holds(STALE_SECONDS)


def holder(runs: Path, cell: str) -> Claim | None:
    """The claim to a cell that holds; None if it is free to run, or its claim is being written."""
    return next((one.claim for one in running(runs) if one.claim.cell == cell), None)


def running(runs: Path) -> list[Running]:
    """All claims that hold, the oldest first."""
    return in_order(map(_look, (runs / FOLDER).glob("*.json")), STALE_SECONDS)


def in_order(found: Iterable[Seen | None], longest: float) -> list[Running]:
    """Those of the claims that hold (:meth:`Seen.holds`), the oldest first."""
    held = ((parse(seen.content), seen.silent) for seen in found if seen is not None and seen.holds(longest))
    return sorted((Running(claim, silent) for claim, silent in held if claim), key=lambda one: one.claim.started)


def _look(path: Path) -> Seen | None:
    """A claim, whether it holds or not; None without one."""
    try:
        return Seen(path.read_bytes(), _now(path.parent) - path.stat().st_mtime)
    except FileNotFoundError:  # also one that is released meanwhile
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


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


def _path(runs: Path, cell: str) -> Path:
    return runs / FOLDER / f"{cell}.json"
