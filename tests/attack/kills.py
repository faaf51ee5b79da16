"""Kill -9 at any moment: the same command then gives the board of an uninterrupted run, and no process stays."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.attack.attacks import Try
from tests.conftest import ROOT, make_checkpoint
from tests.world import make_dataset, make_experiment

SECONDS = 20.0
"""The latest moment at which a run is killed; most of that is its start."""

MEASURED = ("seconds", "bytes", "break_even", "started", "origin")
"""Parts of the names of what is measured, or says where and by which command a cell ran."""

Command = Callable[[Path], list[str]]
Check = Callable[[Path], str | None]


def small_run(folder: Path) -> tuple[Command, Check]:
    """A run of a small experiment in some folder, as a command, and a check of that folder after an attack.

    The check runs the command once more and compares the board, but for times and bytes, with an undisturbed one.
    """
    model = make_checkpoint(folder / "llama", "llama")
    methods = ["closed_book", "bm25", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}]
    plan = make_experiment(make_dataset(folder / "keepers"), model, methods)
    file = folder / "keepers.yaml"
    file.write_text(yaml.safe_dump(plan.model_dump(mode="json")))

    def command(where: Path) -> list[str]:
        options = ["--jobs", "2", "--runs", str(where / "runs"), "--out", str(where / "out")]
        return [sys.executable, str(ROOT / "run_bench.py"), "run", str(file), *options]

    def board(where: Path) -> object:
        return unmeasured(json.loads((where / "out" / "leaderboard.json").read_text())["rows"])

    subprocess.run(command(folder), check=True, capture_output=True)
    expected = board(folder)

    def check(where: Path) -> str | None:
        result = subprocess.run(command(where), capture_output=True, text=True)
        if result.returncode:
            return f"exit code {result.returncode}: {result.stderr[-500:]}"
        if list((where / "runs").glob(".partial-*")):
            return "a partial record stayed"
        return None if board(where) == expected else "the board changed"

    return command, check


def unmeasured(value: Any) -> Any:
    """Plain data without times and bytes, which differ from run to run, at any depth."""
    if isinstance(value, dict):
        return {key: unmeasured(of) for key, of in value.items() if not any(name in key for name in MEASURED)}
    return [unmeasured(of) for of in value] if isinstance(value, list) else value


def emptied(folder: Path) -> Path:
    """The folder, without what an earlier try has left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def prepare(folder: Path) -> Try:
    """Runs of a small experiment that are killed up to three times, then finished."""
    command, check = small_run(folder)

    def attempt(rng: random.Random) -> str | None:
        where = emptied(folder / "attacked")
        for _ in range(rng.randrange(1, 4)):
            process = psutil.Popen(command(where), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(rng.uniform(0, SECONDS))
            except psutil.TimeoutExpired:
                children = process.children(recursive=True)
                process.kill()
                process.wait()
                _, alive = psutil.wait_procs(children, 10)
                if alive:
                    return f"{len(alive)} processes outlived the killed run"
        return check(where)

    return attempt
