"""Where the records of a run are kept: in a folder, or in a bucket with a copy of it on this machine.

A bucket is any place that fsspec reaches by a URL (``s3://``, ``gs://``, ``memory://``). Records are read and written
in the copy; what others have written is fetched, and what is new here is sent, a record's manifest last.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench import paths
from bench.errors import BenchError
from bench.files import json_bytes, write_bytes
from bench.hashing import digest
from bench.records.store import MANIFEST, read_run
from bench.run import claims

HEARTBEAT_SECONDS, STALE_SECONDS = 60.0, 600.0
"""Of claims in a bucket, where writing is slow, and whose clock need not be that of this machine."""
LISTED = ("boards/", "tuning/", "artifacts/")
"""Folders in a bucket with single files, beside those of the records."""
MARK = ".bucket"
"""File in the copy of a bucket, with its URL."""


def place(runs: str | Path) -> Place:
    """The place of a URL, or of a path, which may be that of the copy of a bucket.

    Raises:
        BenchError: nothing can be reached at the URL.
    """
    if "://" in str(runs):
        return Bucket(str(runs))
    with contextlib.suppress(OSError):
        return Bucket((Path(runs) / MARK).read_text(encoding="utf-8"))
    return Place(Path(runs))


class Place:
    """Records in a folder, which other processes may use at the same time."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path.resolve())

    def fetch(self) -> None:
        """Take over what others have written."""

    def fetch_record(self, cell: str) -> None:
        """Take over the record of a cell, if there is a newer one."""

    def send(self, name: str) -> None:
        """Pass on a file or a record, by its name under the path."""

    def claimed(self, cell: str) -> contextlib.AbstractContextManager[bool]:
        """Context in which this process holds the claim to a cell; False if another one does."""
        return claims.claimed(self.path, cell)

    def is_claimed(self, cell: str) -> bool:
        """True if a process holds the claim to a cell."""
        return claims.holder(self.path, cell) is not None


class Bucket(Place):
    """Records in a bucket, with a copy in the user's cache."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise BenchError(f"--runs {url} cannot be reached: {error}") from None
        self.root = root.rstrip("/")
        super().__init__(paths.cache() / "buckets" / digest(url)[:16])
        self.name = url
        if not (self.path / MARK).is_file():  # every cell asks for its place
            write_bytes(self.path / MARK, url.encode())

    def fetch(self) -> None:
        """Take over all records and files that are not here, and boards in any case."""
        names = self._names()
        for name in names:
            folder, _, file = name.partition("/")
            if file == MANIFEST and not (self.path / name).is_file():
                self.fetch_record(folder)
            elif name.startswith(LISTED) and (name.startswith("boards/") or not (self.path / name).is_file()):
                write_bytes(self.path / name, self.fs.cat_file(f"{self.root}/{name}"))

    def fetch_record(self, cell: str) -> None:
        """Take over the record of a cell, if there is none here, or another one than a failed one that is here."""
        remote = f"{self.root}/{cell}"
        try:
            manifest: bytes = self.fs.cat_file(f"{remote}/{MANIFEST}")
        except FileNotFoundError:
            return
        here = self.path / cell / MANIFEST
        if here.is_file() and (here.read_bytes() == manifest or read_run(here.parent).status != "failed"):
            return
        for path in self.fs.ls(remote, detail=False):
            file = Path(path).name
            if file != MANIFEST:
                write_bytes(self.path / cell / file, self.fs.cat_file(path))
        write_bytes(here, manifest)

    def send(self, name: str) -> None:
        """Pass on a file or a record; its manifest comes last, so that nobody reads a part."""
        here = self.path / name
        files = [here] if here.is_file() else sorted(here.iterdir(), key=lambda file: file.name == MANIFEST)
        for file in files:
            path = f"{self.root}/{file.relative_to(self.path).as_posix()}"
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)  # only some places have folders
            self.fs.pipe_file(path, file.read_bytes())

    @contextlib.contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """Context in which this process holds the claim to a cell, here and there; False if another one does."""
        with super().claimed(cell) as own:
            claim = json_bytes({"process": uuid.uuid4().hex})
            if not own or not self._take(cell, claim):
                yield False
                return
            try:
                with claims.beating(HEARTBEAT_SECONDS, partial(self.fs.pipe_file, self._claim(cell), claim)):
                    yield True
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(self._claim(cell))

    def is_claimed(self, cell: str) -> bool:
        """True if a process, here or elsewhere, holds the claim to a cell."""
        return super().is_claimed(cell) or self._age(cell) < STALE_SECONDS

    def _take(self, cell: str, claim: bytes) -> bool:
        path = self._claim(cell)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if self._age(cell) < STALE_SECONDS:
            return False
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)
        try:
            with self.fs.open(path, "xb") as file:
                file.write(claim)
        except FileExistsError:
            return False
        except (ValueError, NotImplementedError):  # no exclusive creation there: the last of two writers has it
            self.fs.pipe_file(path, claim)
        return bool(self.fs.cat_file(path) == claim)

    def _age(self, cell: str) -> float:
        """Seconds since the last heartbeat of a claim; infinite without one."""
        self.fs.invalidate_cache()
        try:
            return time.time() - float(self.fs.modified(self._claim(cell)).timestamp())
        except FileNotFoundError:
            return float("inf")

    def _claim(self, cell: str) -> str:
        return f"{self.root}/{claims.FOLDER}/{cell}.json"

    def _names(self) -> list[str]:
        self.fs.invalidate_cache()
        found: list[Any] = self.fs.find(self.root)
        return sorted(path.removeprefix(self.root).lstrip("/") for path in found)
