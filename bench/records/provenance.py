"""Where a number comes from: code, packages, hardware and command line, without anything that names a person."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import PROTOCOL, __version__
from bench.machine import cpu_name, gpu_driver, package_version, usable_cores
from bench.paths import ROOT

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "peft", "numpy", "scipy", "pydantic")


def collect() -> dict[str, Any]:
    """What to keep beside a result; plain JSON values, None for whatever cannot be found out.

    torch is asked only if the caller has imported it already. No user or host name and no absolute path is recorded.
    """
    commit, dirty = git_state(ROOT)
    return {
        "project": __version__,
        "protocol": PROTOCOL,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        **_accelerator(),
        "threads": _threads(),
        "command": shown_command(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state(root: Path) -> tuple[str | None, str | None]:
    """The commit of the project, and a hash of what differs from it (None if nothing does or there is no commit).

    Files that git does not know count by their names.
    """
    head = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if head is None or len(lines := head.decode().splitlines()) != 2 or Path(lines[0]).resolve() != root:
        return None, None
    changed = _git(root, "status", "--porcelain")
    difference = _git(root, "diff", "HEAD", "--full-index", "--no-ext-diff", "--no-color")
    if not changed or difference is None:
        return lines[1], None
    return lines[1], hashlib.sha256(changed + difference).hexdigest()


def shown_command(arguments: Sequence[str]) -> list[str]:
    """A command line with absolute paths made relative to the working folder or the project, else cut to the last part.

    A path may also stand behind "=", "," or ":" within an argument.
    """
    return [re.sub(r"(?:(?<=[=,:])|^)(?:~|/(?!/))[^=,:]*", lambda path: _shown(path[0]), text) for text in arguments]


def _shown(text: str) -> str:
    path = Path(text)
    for base in (Path.cwd(), ROOT):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return path.name


def _git(root: Path, *arguments: str) -> bytes | None:
    """Output of a git command; None if git is missing or refuses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _accelerator() -> dict[str, str | None]:
    found: dict[str, str | None] = {"gpu": None, "gpu_driver": None, "cuda": None}
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "gpu_driver": gpu_driver(), "cuda": torch.version.cuda}
    return found


def _threads() -> int:
    """Threads that torch computes with, or will once it is imported."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdecimal() else usable_cores()
