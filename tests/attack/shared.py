"""Kill -9 of some process of several runs on one folder of records: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import psutil

from bench.run import claims
from tests.attack.attacks import Try
from tests.attack.kills import emptied, small_run

RUNS = 3
SECONDS = 25.0
"""The latest moment at which a process is killed; most of that is the start of the runs."""


def prepare(folder: Path) -> Try:
    """Three runs of a small experiment at once, of which one process is killed: a run, or one of its workers."""
    command, check = small_run(folder)

    def attempt(rng: random.Random) -> str | None:
        where = emptied(folder / "attacked")
        silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        runs = [psutil.Popen(command(where), **silence) for _ in range(RUNS)]
        time.sleep(rng.uniform(0, SECONDS))
        victims = [run for run in runs if run.is_running() and run.status() != psutil.STATUS_ZOMBIE]
        if victims:
            run = rng.choice(victims)
            children = run.children(recursive=True)
            (rng.choice(children) if children and rng.random() < 0.5 else run).kill()
        for run in runs:
            run.wait(300)
        if running := claims.running(where / "runs"):
            return f"{len(running)} cells are claimed after the end of all runs"
        return check(where)  # which also runs what died with its worker

    return attempt
