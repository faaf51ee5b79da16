"""Memory between training steps: large blocks that are freed and asked for again at every step stay with the process.

By default glibc gives them back to the system each time, and the system clears each page anew: a tenth to a half of
the time of a step on a small model. Elsewhere than on Linux with glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

_SETTINGS = ((-1, 2**31 - 1), (-2, 2**28), (-4, 0))  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX


def keep_freed() -> None:
    """From now on, freed blocks stay with this process."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            for option, value in _SETTINGS:
                libc.mallopt(option, value)


def give_back() -> None:
    """Give what is free back to the system once, so that the next task's peak is its own."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """Cores that this process may use (fewer than the machine has, under ``taskset`` or in a container)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor as it names itself, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def gpu_driver() -> str | None:
    """Version of the NVIDIA driver in use, as the Linux kernel module states it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    stated = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", text)
    return stated[0] if stated else None


def package_version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
