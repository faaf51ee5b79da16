"""Provenance of a number: code, packages, hardware and command line, without anything that names a person."""

from __future__ import annotations

import hashlib
import itertools
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
from bench.paths import ROOT, relative

ADDRESS_OPTION = "--ray-address"
"""Option whose value is the address of a machine."""
PACKAGES = "torch transformers tokenizers datasets evaluate peft numpy scipy pydantic bm25s bitsandbytes".split()


def collect() -> dict[str, Any]:
    """Collect the provenance of a result as plain JSON values, None for whatever is unknown.

    torch is used only if the caller has imported it. No user name, host name or absolute path is recorded.
    """
    commit, dirty = git_state(ROOT)
    return {
        "project": __version__,
        "protocol": PROTOCOL,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{_release()}-{platform.machine()}",
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": cpu_name(),
        **_accelerator(),
        "threads": _threads(),
        "command": redact(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state(root: Path) -> tuple[str | None, str | None]:
    """The commit of the project and a hash of the changes to it (None without changes or without a commit).

    Untracked files count by their names.
    """
    head = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if head is None or len(lines := head.decode().splitlines()) != 2 or Path(lines[0]).resolve() != root:
        return None, None
    changed = _git(root, "status", "--porcelain")
    difference = _git(root, "diff", "HEAD", "--full-index", "--no-ext-diff", "--no-color")
    if not changed or difference is None:
        return lines[1], None
    return lines[1], hashlib.sha256(changed + difference).hexdigest()


def redact(arguments: Sequence[str]) -> list[str]:
    """A command line without absolute paths, which become relative to the project or the working folder, or their last
    part, and without the addresses of a cluster and of URLs, which may hold user names and paths.

    Relative paths that leave the working folder lose all but their last part, too. Paths after "=", "," or ":" within
    an argument are included.
    """
    url = re.compile(r"(\w[\w+.-]*://)\S*")
    path = re.compile(r"(?:(?<=[=,:])|^)(?:~|/(?!/)|(?=[^=,:]*\.\./))[^=,:]*")
    shown = [path.sub(lambda match: _short(match[0]), url.sub(r"\1ADDRESS", text)) for text in arguments]
    for i, (before, text) in enumerate(itertools.pairwise(["", *shown])):
        if before == ADDRESS_OPTION:
            shown[i] = "ADDRESS"
        elif text.startswith(f"{ADDRESS_OPTION}="):
            shown[i] = f"{ADDRESS_OPTION}=ADDRESS"
    return shown


def _short(path: str) -> str:
    return relative(Path(path)) or Path(path).name


def _git(root: Path, *arguments: str) -> bytes | None:
    """Output of a git command; None if git is missing or refuses."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        process = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout if process.returncode == 0 else None


def _accelerator() -> dict[str, str | None]:
    device: dict[str, str | None] = {"gpu": None, "gpu_driver": None, "cuda": None}
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        device |= {"gpu": torch.cuda.get_device_name(), "gpu_driver": gpu_driver(), "cuda": torch.version.cuda}
    return device


def _release() -> str:
    """The version of the system without what follows the numbers, which whoever built the kernel can choose freely."""
    return re.match(r"[\d.]*", platform.release())[0]  # type: ignore[index]


def _threads() -> int:
    """Threads that torch uses, or will use once it is imported."""
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdecimal() else usable_cores()
