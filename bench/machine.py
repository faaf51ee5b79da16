"""This machine: memory between training steps, cores, processor, GPU driver and installed packages."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from math import floor
from pathlib import Path

_SETTINGS = ((-1, 2**31 - 1), (-2, 2**28), (-4, 0))  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, from now on.

    By default glibc returns large blocks to the system, which clears their pages when the next step allocates them
    again: a tenth to a half of the time of a step on a small model. Without glibc on Linux, nothing is done.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            for option, value in _SETTINGS:
                libc.mallopt(option, value)


def return_freed_memory() -> None:
    """Return free memory to the system once, so that the peak of the next task does not include it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def release_gpu_memory() -> None:
    """Give back the GPU memory of what is no longer used; nothing is done if torch is not loaded, or uses no GPU."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def usable_cores() -> int:
    """Number of cores that this process may use: fewer than the machine has under ``taskset`` or in a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [floor(share) for group in _control_groups() for share in _cores_of(group)]
    return max(1, min([cores, *limits]))


def available_memory() -> int:
    """Bytes that new processes can use without swapping: those of the machine or, in a container, of its limit."""
    import psutil

    return min(int(psutil.virtual_memory().available), *map(_left_in, _control_groups()))


CONTROL_GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control group and of all above it, such as those of a container or a Slurm job."""
    own = [CONTROL_GROUPS]
    with suppress(OSError):
        for line in OWN_GROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):  # version 1, whose controllers have a folder each
                own.append(CONTROL_GROUPS / "memory" / path.lstrip("/"))
            elif not controllers:
                own.append(CONTROL_GROUPS / path.lstrip("/"))
    groups = dict.fromkeys(group for folder in own for group in (folder, *folder.parents))
    yield from (group for group in groups if group.is_relative_to(CONTROL_GROUPS))


def _cores_of(group: Path) -> Iterator[float]:
    """The cores that a control group may use at a time, if it has a limit."""
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # a quota of "max" is no limit


def _left_in(group: Path) -> int:
    """Bytes that a control group may still use; as good as all if it has no limit."""
    for limit, used, inactive in _MEMORY_FILES:
        with suppress(OSError, ValueError, KeyError):
            most, now = (int((group / name).read_text()) for name in (limit, used))
            counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return max(0, most - (now - int(counts[inactive])))
    return sys.maxsize


_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


def cpu_name() -> str:
    """The model name of the processor, else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def gpu_driver() -> str | None:
    """Version of the NVIDIA driver in use, from its Linux kernel module."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", text)
    return match[0] if match else None


GPU_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Variable that lets CUDA number GPUs as nvidia-smi does, not the fastest first."""


def free_gpu_memory() -> dict[str, int]:
    """Free bytes of each GPU that this process may use, by its name in CUDA_VISIBLE_DEVICES; {} without nvidia-smi.

    CUDA itself is not asked, since it would take memory on each of them.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    free: dict[str, int] = {}
    for index, identity, mebibytes in (map(str.strip, row.split(",")) for row in rows):
        if mebibytes.isdecimal():  # some cards do not tell
            free |= dict.fromkeys((index, identity), int(mebibytes) * 2**20)
    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [name for name in free if name.isdecimal()] if stated is None else stated.split(",")
    return {name: free[name] for name in visible if name in free}


def package_version(name: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def process_name() -> str:
    """A name for this process, ``<hash of its host>-<process id>``, that :func:`may_be_alive` understands.

    Containers can share the name of a host, but not the numbers of processes; copies of a virtual machine share both,
    but not the start of the system.
    """
    numbers = start = ""
    with suppress(OSError):
        numbers = os.readlink("/proc/self/ns/pid")
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{hashlib.sha256(f'{platform.node()} {numbers} {start}'.encode()).hexdigest()[:8]}-{os.getpid()}"


def is_here(name: str) -> bool:
    """True if the process of this name runs, or ran, on this machine."""
    return name.rpartition("-")[0] == process_name().rpartition("-")[0]


def may_be_alive(name: str) -> bool:
    """False if the process of this name ran on this machine and has ended; processes elsewhere cannot be seen."""
    import psutil

    if not is_here(name):
        return True
    pid = name.rpartition("-")[2]
    try:
        return bool(psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE)
    except psutil.AccessDenied:  # somebody else's
        return True
    except psutil.NoSuchProcess:
        try:
            os.kill(int(pid), 0)
        except PermissionError:  # somebody else's, which /proc may hide
            return True
        except (ProcessLookupError, OverflowError):
            pass
        return False
