"""The files that the last report wrote in a folder: when they are outdated these are removed, and no others."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.files import write_json

NAME = ".written.json"
"""Names, relative to the folder, and SHA-256 of the files."""


def replace(folder: Path, paths: Iterable[Path]) -> None:
    """Note the files that are written now, and remove those of the last report that are not among them."""
    now = {path.relative_to(folder).as_posix(): _sha256(path) for path in paths}
    for name in outdated(folder, now):
        (folder / name).unlink(missing_ok=True)  # another process may report here
        with contextlib.suppress(OSError):  # another file is in its folder, or that is removed already
            if (parent := (folder / name).parent) != folder:
                parent.rmdir()
    write_json(folder / NAME, dict(sorted(now.items())))


def outdated(folder: Path, expected: Iterable[str]) -> list[str]:
    """The names of files that the last report wrote, if they are there as it wrote them and not ``expected``."""
    last = _last(folder)
    return sorted(name for name in last.keys() - {*expected} if _is_unchanged(folder, name, last[name]))


def _is_unchanged(folder: Path, name: str, sha256: str) -> bool:
    path = folder / name
    try:
        return path.resolve().is_relative_to(folder.resolve()) and path.is_file() and _sha256(path) == sha256
    except OSError:  # another process has just removed it
        return False


def _last(folder: Path) -> Mapping[str, str]:
    """What the last report noted; nothing if there was none, or if its note cannot be read."""
    try:
        names = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return names if isinstance(names, dict) else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
