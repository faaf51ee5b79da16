"""Where the records of a run are kept: in a folder, or in a bucket with a copy of it on this machine.

A bucket is any place that fsspec reaches by a URL (``s3://``, ``gs://``, ``memory://``). Records are read and written
in the copy; what others have written is fetched, and what is new here is sent, a record's manifest last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import paths
from bench.errors import BenchError
from bench.files import write_bytes
from bench.hashing import digest
from bench.records.store import MANIFEST, is_record, read_run
from bench.run import claims
from bench.run.claims import Claims, Running, Seen, in_order

HEARTBEAT_SECONDS, STALE_SECONDS = 60.0, 600.0
"""Of claims in a bucket, where writing is slow, and whose clock need not be that of this machine."""
WEIGHTS = f"{paths.ARTIFACTS}/"
REWRITTEN = ("boards/", "tuning/")
LISTED = (*REWRITTEN, WEIGHTS)
"""Folders in a bucket with single files, beside those of the records."""
MARK = ".bucket"
"""File in the copy of a bucket, with its URL."""


def _as_sent(path: Path) -> tuple[str, bool, str]:
    """Key of an order in which what makes others use a folder, its manifest, comes last."""
    return str(path.parent), path.name in (MANIFEST, paths.ARTIFACT), path.name


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

    @property
    def claims(self) -> Sequence[Claims]:
        """Where a cell is claimed: at each of these places."""
        return [claims.Folder(self.path)]

    def fetch(self) -> None:
        """Take over what others have written."""
        with contextlib.suppress(OSError):  # a folder that cannot be written
            # a machine remembers for a minute which files a server (NFS) lacked, unless it changes their folder itself
            os.utime(self.path)

    def fetch_record(self, cell: str) -> None:
        """Take over the record of a cell, if there is a newer one."""
        self.fetch()

    def fetch_weights(self) -> None:
        """Take over trained weights that others have made."""

    def send(self, name: str) -> None:
        """Pass on a file or a record, by its name under the path."""

    def running(self) -> list[Running]:
        """All claims that hold, the oldest first."""
        return in_order(one for place in self.claims for one in place.running())

    @contextlib.contextmanager
    def claimed(self, cell: str) -> Iterator[bool]:
        """Context in which this process holds the claim to a cell; False if another one does."""
        with contextlib.ExitStack() as stack:
            yield all(stack.enter_context(place.claimed(cell)) for place in self.claims)

    def holds(self, cell: str) -> bool:
        """True if this process still holds the claim to a cell, which others take over if it stands still."""
        return all(place.holds(cell) for place in self.claims)

    def is_claimed(self, cell: str) -> bool:
        """True if a process holds the claim to a cell."""
        return any(place.is_claimed(cell) for place in self.claims)


class Bucket(Place):
    """Records in a bucket, with a copy in the user's cache."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise BenchError(f"--runs {url} cannot be reached: {error}") from None
        if type(self.fs).modified is fsspec.AbstractFileSystem.modified:
            raise BenchError(
                f"--runs {url} cannot hold claims: {url.partition('://')[0]} does not tell when a file was written."
            )
        self.root = root.rstrip("/")
        super().__init__(paths.cache() / "buckets" / digest(url)[:16])
        self.name = url
        if not (self.path / MARK).is_file():  # every cell asks for its place
            write_bytes(self.path / MARK, url.encode())

    @property
    def claims(self) -> Sequence[Claims]:
        """Where a cell is claimed: here, so that processes of this machine need not ask there, and there."""
        return [*super().claims, InBucket(self.fs, self.root)]

    def fetch(self) -> None:
        """Take over records and files that are not here, failed records that are, and boards; send what is only here.

        What is only here, or has failed only there, was left behind by a process that was killed before it had sent it.
        """
        names = self._sizes()
        for name in sorted(names):
            folder, _, file = name.partition("/")
            if file == MANIFEST:
                if not self._is_good(folder):
                    self.fetch_record(folder)
                elif self._has_failed(name, names[name]):
                    self.send(folder)
            elif name.startswith(REWRITTEN):
                self._take_newest(name)
        self._fetch_files(name for name in names if name.startswith(WEIGHTS))
        here = [path.parent for path in self.path.glob(f"*/{MANIFEST}")]
        here += [path for folder in LISTED for path in (self.path / folder).rglob("*") if path.is_file()]
        for path in sorted(here, key=_as_sent):
            if any(part.startswith(".") for part in path.relative_to(self.path).parts):
                continue  # not finished
            name = path.relative_to(self.path).as_posix()
            if name not in names and f"{name}/{MANIFEST}" not in names:
                self.send(name)

    def fetch_weights(self) -> None:
        """Take over trained weights that others have made."""
        self._fetch_files(self._sizes(WEIGHTS))

    def _is_good(self, cell: str) -> bool:
        """True if there is a record here that can be read, and it is not a failed one."""
        try:
            return read_run(self.path / cell).status != "failed"
        except BenchError:
            return False

    def _has_failed(self, name: str, size: int) -> bool:
        """True if a manifest in the bucket, of this size, is that of a cell that failed, and the one here is not."""
        try:
            if size == (self.path / name).stat().st_size:
                return False
            manifest = self.fs.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:  # it is being replaced
            return False
        return is_record(manifest, self.path / name) and json.loads(manifest)["status"] == "failed"

    def _fetch_files(self, names: Iterable[str]) -> None:
        for name in sorted(names, key=lambda name: _as_sent(Path(name))):
            if not (self.path / name).is_file():
                write_bytes(self.path / name, self.fs.cat_file(f"{self.root}/{name}"))

    def _take_newest(self, name: str) -> None:
        """Take over a file that was written again, with its time, or send it if the one here is newer.

        So the board is that of the latest run, and a search of which a trial was run again is that of the board.
        """
        path, content = self.path / name, self.fs.cat_file(f"{self.root}/{name}")
        if path.is_file() and path.read_bytes() == content:
            return
        written = self.fs.modified(f"{self.root}/{name}").timestamp()
        if path.is_file() and path.stat().st_mtime > written:
            self.send(name)
        else:
            write_bytes(path, content)
            os.utime(path, (written, written))

    def fetch_record(self, cell: str) -> None:
        """Take over the record of a cell, if there is none here, or another one than a failed one that is here.

        One of another schema, or damaged, is left there: where its cell is run, it is replaced.
        """
        remote = f"{self.root}/{cell}"
        try:
            manifest: bytes = self.fs.cat_file(f"{remote}/{MANIFEST}")
        except FileNotFoundError:
            return
        here = self.path / cell / MANIFEST
        if (here.is_file() and here.read_bytes() == manifest) or self._is_good(cell) or not is_record(manifest, here):
            return
        try:
            hashes: Mapping[str, str] = json.loads(manifest)["files"]
            contents = {Path(file).name: self.fs.cat_file(f"{remote}/{Path(file).name}") for file in hashes}
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            return  # it is being sent, or was not sent whole
        if any(hashlib.sha256(content).hexdigest() != hashes.get(file) for file, content in contents.items()):
            return
        for file, content in contents.items():
            write_bytes(self.path / cell / file, content)
        write_bytes(here, manifest)

    def send(self, name: str) -> None:
        """Pass on a file or a record; its manifest comes last, so that nobody reads a part."""
        here = self.path / name
        files = [here] if here.is_file() else sorted(here.iterdir(), key=lambda file: file.name == MANIFEST)
        for file in files:
            path = f"{self.root}/{file.relative_to(self.path).as_posix()}"
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)  # only some places have folders
            self.fs.pipe_file(path, file.read_bytes())

    def _sizes(self, folder: str = "") -> dict[str, int]:
        """The sizes of all files in the bucket, or in a folder of it, by their names under the root."""
        self.fs.invalidate_cache()
        found: Mapping[str, Any] = self.fs.find(f"{self.root}/{folder}".rstrip("/"), detail=True)
        return {
            path.removeprefix(self.root).lstrip("/"): facts["size"]
            for path, facts in found.items()
            if facts["size"] or not path.endswith(f"/{MANIFEST}")
        }


class InBucket(Claims):
    """Claims in a bucket."""

    def __init__(self, fs: Any, root: str) -> None:
        self.fs, self.root, self.heartbeat, self.longest = fs, root, HEARTBEAT_SECONDS, STALE_SECONDS

    def names(self) -> list[str]:
        """The names of all claims that are there."""
        self.fs.invalidate_cache()
        return [Path(path).stem for path in self.fs.find(f"{self.root}/{claims.FOLDER}")]

    def look(self, name: str) -> Seen | None:
        """A claim, whether it holds or not; None without one."""
        self.fs.invalidate_cache()
        path = self.path(name)
        try:
            return Seen(self.fs.cat_file(path), time.time() - float(self.fs.modified(path).timestamp()))
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Create a claim; False if there is one, or if another process has replaced it meanwhile."""
        path = self.path(name)
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            with self.fs.open(path, "xb") as file:
                file.write(content)
        except FileExistsError:
            pass  # it may be our own, by a request that was sent again
        except OSError:  # other kinds, too, may say that there is a claim already
            if (found := self.look(name)) is None:
                raise
            if not found.content:  # SFTP creates the file but cannot write to it
                self.fs.pipe_file(path, content)
        except (ValueError, NotImplementedError):  # no exclusive creation there: the last of two writers has it
            self.fs.pipe_file(path, content)
        return self._has(name, content)

    def replace(self, name: str, content: bytes) -> None:
        """Put a claim in place of another one."""
        self.fs.pipe_file(self.path(name), content)

    def remove(self, name: str) -> None:
        """Remove a claim, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def path(self, name: str) -> str:
        """The path of a claim in the bucket."""
        return f"{self.root}/{claims.FOLDER}/{name}.json"
