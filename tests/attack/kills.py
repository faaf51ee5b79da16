"""Kill -9 of some process of runs on one folder of records: nothing is lost or there twice, and no process stays."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.run import claims
from tests.attack.attacks import Missed, Try
from tests.conftest import ROOT, make_checkpoint
from tests.world import make_dataset, make_experiment

LONGEST = 900.0
"""Seconds after which runs that have not ended hang: a busy machine can take minutes to start one."""
GRACE = 60.0
"""Seconds that the processes of a killed one have to end."""
LOOK_SECONDS = 0.1

ERRORS = "errors"
"""File with what the runs print on errors."""
INTERNAL = "inside the benchmark itself"
"""Words with which a run ends after an error that is neither the method's nor the user's."""

MEASURED = ("seconds", "bytes", "break_even", "started", "origin")
"""Parts of the names of what is measured, or says where and by which command a cell ran."""

PLUGIN = '''
import os

from methods.uniform import Uniform


class Logged(Uniform):
    """Uniform fine-tuning that logs each cell at its end: the process, the documents and the settings."""

    name = "logged"
    paper = "none"

    def reset(self):
        super().reset()
        self.seen = []

    def observe(self, document):
        self.seen.append(document.id)
        super().observe(document)

    def notes(self):
        with open({log!r}, "a") as file:
            print(os.getpid(), "-".join(self.seen), self.config.model_dump_json(), file=file)
        return super().notes()
'''


class Kills:
    """Runs of a small experiment at once, one process of which is killed: a run or, if there are several, a child too.

    On construction they run undisturbed, which says for how long there is something to kill, and one worker runs all
    cells, one after the other, which says what the board is. A try kills up to ``times`` times, each time one process
    of new runs, and then runs what is still missing. It is survived if the board is the same, and no cell has run twice
    unless the process that ran it first was killed.
    """

    codes: tuple[int, ...] = (0, 1)
    """Exit codes of runs that were not killed: 1 if a cell failed, which the next run repeats."""

    def __init__(self, folder: Path, runs: int = 1, times: int = 1) -> None:
        self.runs, self.times = runs, times
        self.where, self._file, self._plugin = folder / "attacked", folder / "keepers.yaml", folder / "logged.py"
        self._log = self.where / "log"
        self._plugin.write_text(PLUGIN.format(log=str(self._log)))
        methods = ["closed_book", {"name": "logged", "space": {"learning_rate": [1e-3, 3e-3, 1e-2]}}]
        streams = {"split": "test", "documents": 5, "count": 3}
        model, dataset = make_checkpoint(folder / "llama", "llama"), make_dataset(folder / "keepers")
        plan = make_experiment(dataset, model, methods, streams=streams)
        self._file.write_text(yaml.safe_dump(plan.model_dump(mode="json")))
        self._empty()
        started, moments = self.start(), []
        end = time.monotonic() + LONGEST
        while any(run.poll() is None for run in started) and time.monotonic() < end:
            moments += [time.monotonic()] if self.victims(started) else []
            time.sleep(LOOK_SECONDS)
        self.window = moments[-1] - moments[0]
        problem = self.problem(started, []) or ran_again(self._log, [])
        assert problem is None, f"undisturbed: {problem}"
        board = self._read_board()
        self._empty()
        assert self.run("--jobs", "1").wait(LONGEST) == 0
        self._board = self._read_board()
        assert board == self._board, "runs at the same time do not make the board of a serial one"

    def run(self, *options: str) -> psutil.Popen:
        """Start a run of the experiment."""
        command = [sys.executable, str(ROOT / "run_bench.py"), "run", str(self._file), "--plugin", str(self._plugin)]
        folders = ["--runs", str(self.where / "runs"), "--out", str(self.where / "out")]
        with (self.where / ERRORS).open("ab") as errors:
            return psutil.Popen([*command, *folders, *options], stdout=subprocess.DEVNULL, stderr=errors)

    def start(self) -> list[psutil.Popen]:
        """Start all runs."""
        return [self.run("--jobs", "2") for _ in range(self.runs)]

    def victims(self, started: Sequence[psutil.Popen]) -> list[psutil.Process]:
        """The processes of which one can be killed now."""
        alive = [run for run in started if run.poll() is None]
        return alive if self.runs == 1 else [*alive, *(one for run in alive for one in run.children(recursive=True))]

    def dependants(self, victim: psutil.Process) -> list[psutil.Process]:
        """The processes that have to end with one that is killed."""
        return victim.children(recursive=True)

    def attempt(self, rng: random.Random) -> str | None:
        """One try.

        Raises:
            Missed: everything had ended before something was to be killed.
        """
        self._empty()
        killed: list[psutil.Process] = []
        for _ in range(rng.randint(1, self.times)):
            started = self.start()
            dying = self._kill(started, rng)
            if problem := self.problem(started, dying):
                return problem
            if not dying:
                break
            killed += dying
        if not killed:
            raise Missed
        last = self.run("--jobs", "2")  # it also runs what failed with its worker
        if problem := self.problem([last], []):
            return problem
        if last.returncode:
            return f"the run that was to finish ended with exit code {last.returncode}"
        if list((self.where / "runs").glob(".partial-*")):
            return "a partial record stayed"
        return ran_again(self._log, killed) or (None if self._read_board() == self._board else "the board changed")

    def _kill(self, started: Sequence[psutil.Popen], rng: random.Random) -> list[psutil.Process]:
        """Kill one process at a random moment; returns it with its dependants, or nothing if there was none."""
        end = time.monotonic() + LONGEST
        while not self.victims(started) and any(run.poll() is None for run in started) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        time.sleep(rng.uniform(0, self.window))
        try:
            victim = rng.choice(self.victims(started))
            dying = [victim, *self.dependants(victim)]
            victim.kill()
        except (IndexError, psutil.NoSuchProcess):  # it has just ended
            return []
        return dying

    def problem(self, started: Sequence[psutil.Popen], dying: Sequence[psutil.Process]) -> str | None:
        """Wait for the end of all runs, and of the killed process and its dependants: what is wrong then, if anything.

        What has not ended is killed.
        """
        _, hanging = psutil.wait_procs(started, LONGEST)
        _end([*hanging, *(child for run in hanging for child in run.children(recursive=True))])
        if hanging:
            return f"{len(hanging)} runs had not ended after {LONGEST:g} seconds"
        _, alive = psutil.wait_procs(dying, GRACE)
        _end(alive)
        if alive:
            return f"processes outlived the one that was killed: {alive}"
        if running := claims.Folder(self.where / "runs").running():
            return f"{len(running)} cells are claimed after the end of all runs"
        printed = self.where / ERRORS
        errors = " ".join(printed.read_text(errors="replace").split()) if printed.exists() else ""
        codes = [run.returncode for run in started if run not in dying and run.returncode not in self.codes]
        if codes:
            return f"runs that were not killed ended with the exit codes {codes}: {errors}"
        return f"an error of the benchmark: {errors}" if INTERNAL in errors else None

    def _empty(self) -> None:
        """Remove what an earlier try has left."""
        shutil.rmtree(self.where, ignore_errors=True)
        self.where.mkdir()

    def _read_board(self) -> object:
        return unmeasured(json.loads((self.where / "out" / "leaderboard.json").read_text())["rows"])


def _end(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def ran_again(log: Path, killed: Sequence[psutil.Process]) -> str | None:
    """What is wrong if, by the log, a cell has run again though not every process that had run it was killed."""
    ran = defaultdict(list)
    for line in log.read_text().splitlines():
        process, _, cell = line.partition(" ")
        ran[cell].append(int(process))
    dead = {process.pid for process in killed}
    again = {cell: processes for cell, processes in ran.items() if not dead.issuperset(processes[:-1])}
    return f"cells ran again, though not every process that had run them was killed: {again}" if again else None


def unmeasured(value: Any) -> Any:
    """Plain data without times and bytes, which differ from run to run, at any depth."""
    if isinstance(value, dict):
        return {key: unmeasured(of) for key, of in value.items() if not any(name in key for name in MEASURED)}
    return [unmeasured(of) for of in value] if isinstance(value, list) else value


def prepare(folder: Path) -> Try:
    """A run that is killed up to three times, then finished."""
    return Kills(folder, times=3).attempt


def prepare_shared(folder: Path) -> Try:
    """Three runs on one folder of records, of which one, or a child of one, is killed."""
    return Kills(folder, runs=3).attempt
