"""Claims: which process runs a cell, so that several runs on one folder of records never run the same one.

A claim is a file under ``claims`` in the folder of the records, which one process alone can create: no locks are used,
since some file servers leave them to each machine. It names the process, whose heartbeat is the time of the file. A
claim without one for :data:`STALE_SECONDS`, or of a process of this machine that has ended, is taken over, by one
process alone. A process may have stood still for so long: it asks, before it writes a record, whether it still holds
its claim. Times are those of the file server, so that the clocks of several machines may differ.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bench.files import json_bytes, write_bytes
from bench.hashing import digest
from bench.machine import may_be_alive, process_name

FOLDER = "claims"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 120.0
HALF_WRITTEN_SECONDS = 1.0
"""Seconds after which a claim that could not be read is read again."""


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


class Claims(ABC):
    """The claims of one place of records, by the name of the cell."""

    heartbeat: float
    """Seconds between two heartbeats."""
    longest: float
    """Seconds of silence after which a claim no longer holds."""

    @contextlib.contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """Context in which this process holds the claim to a cell; False if another one does, which is left alone."""
        content = json_bytes(own_claim(cell)._asdict())
        if not self._take(cell, content):
            yield False
            return

        def beat() -> None:
            if self._has(cell, content):
                self.beat(cell, content)

        try:
            with beating(self.heartbeat, beat):
                yield True
        finally:
            if self._has(cell, content):
                self.remove(cell)

    def _take(self, name: str, content: bytes) -> bool:
        """Create a claim, or replace one that no longer holds; False if another process has one.

        Several processes may see the same claim that no longer holds. One of them at a time can create the claim to
        replace this very claim, and it does so only if the claim is still the one that it saw.
        """
        seen = self.look(name)
        if seen is None:
            return self.create(name, content)
        takeover = f"{name}.{digest(seen.content.hex())[:16]}"
        if seen.holds(self.longest) or not self._take(takeover, content):
            return False
        try:
            if not self._has(name, seen.content):
                return False
            self.replace(name, content)
            return True
        finally:
            self.remove(takeover)

    def _has(self, name: str, content: bytes) -> bool:
        """True if this is the content of a claim."""
        found = self.look(name)
        return found is not None and found.content == content

    def holds(self, cell: str) -> bool:
        """True if this process holds the claim to a cell."""
        found = self.look(cell)
        if found is not None and parse(found.content) is None:  # its heartbeat may be writing it at this moment
            time.sleep(HALF_WRITTEN_SECONDS)
            found = self.look(cell)
        claim = None if found is None else parse(found.content)
        return claim is not None and claim.process == process_name()

    def is_claimed(self, cell: str) -> bool:
        """True if a process holds the claim to a cell."""
        found = self.look(cell)
        return found is not None and found.holds(self.longest)

    def holder(self, cell: str) -> Claim | None:
        """The claim to a cell that holds; None if it is free to run, or its claim is being written."""
        return next((one.claim for one in self.running() if one.claim.cell == cell), None)

    def running(self) -> list[Running]:
        """All claims that hold, the oldest first."""
        found = [seen for name in self.names() if (seen := self.look(name)) is not None and seen.holds(self.longest)]
        held = [Running(claim, seen.silent) for seen in found if (claim := parse(seen.content)) is not None]
        return in_order(held)

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all claims that are there."""

    @abstractmethod
    def look(self, name: str) -> Seen | None:
        """A claim, whether it holds or not; None without one."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Create a claim; False if there is one, or if another process has replaced it meanwhile."""

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Put a claim in place of another one."""

    def beat(self, name: str, content: bytes) -> None:
        """Give a claim with this content, which is there, the present time."""
        self.replace(name, content)

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a claim, if it is there."""


class Folder(Claims):
    """Claims in a folder of records."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.heartbeat, self.longest = runs, HEARTBEAT_SECONDS, STALE_SECONDS

    def names(self) -> list[str]:
        """The names of all claims that are there."""
        return [path.stem for path in (self.runs / FOLDER).glob("*.json")]

    def look(self, name: str) -> Seen | None:
        """A claim, whether it holds or not; None without one."""
        path = self._path(name)
        try:
            return Seen(path.read_bytes(), _now(path.parent) - path.stat().st_mtime)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # also one that is released or replaced meanwhile
                return None
            raise

    def create(self, name: str, content: bytes) -> bool:
        """Create a claim; False if there is one, or if another process has replaced it meanwhile."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:  # a full disk, say: an empty claim would keep the cell from others
            path.unlink(missing_ok=True)
            raise
        return self._has(name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Put a claim in place of another one."""
        write_bytes(self._path(name), content)

    def beat(self, name: str, content: bytes) -> None:
        """Give a claim the present time."""
        os.utime(self._path(name))

    def remove(self, name: str) -> None:
        """Remove a claim, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.runs / FOLDER / f"{name}.json"


def in_order(found: Iterable[Running]) -> list[Running]:
    """One claim to each cell, the oldest first."""
    by_cell = {one.claim.cell: one for one in found}
    return sorted(by_cell.values(), key=lambda one: one.claim.started)


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


def parse(content: bytes) -> Claim | None:
    """A claim from the content of its file; None if it was not written by a claim."""
    try:
        return Claim(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _now(folder: Path) -> float:
    """The time by the clock of the file server, with which heartbeats are written."""
    clock = folder / ".clock"
    with contextlib.suppress(OSError):
        clock.touch()
        return clock.stat().st_mtime
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as new:  # the clock is another user's
        return os.fstat(new.fileno()).st_mtime
    return time.time()  # a folder that cannot be written
