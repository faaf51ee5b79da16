"""Array jobs: the script that Slurm gets, and a run by a Slurm that is two scripts on the path."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.records.store import read_board
from bench.run.slurm import submit, without_options
from tests.conftest import ROOT
from tests.world import make_dataset, wait_until

SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
open({log!r}, "a").write(text)
first, last = map(int, re.search(r"--array=(\\d+)-(\\d+)", text).groups())
print("Submitted batch job 17", flush=True)
if not {runs} or os.fork():
    os._exit(0)
os.setsid()
open({began!r}, "w").write(str(os.getpid()))
os.dup2(os.open(os.devnull, os.O_RDWR), 1)  # submitit waits for the end of the output
os.dup2(1, 2)
for index in range(first, last + 1):
    job = {{"ARRAY_JOB_ID": "17", "ARRAY_TASK_ID": index, "JOB_ID": 100 + index, "NTASKS": 1, "PROCID": 0}}
    job |= {{"LOCALID": 0, "NODEID": 0, "JOB_NUM_NODES": 1}}
    variables = {{f"SLURM_{{name}}": str(value) for name, value in job.items()}}
    subprocess.run(["bash", sys.argv[-1]], env={{**os.environ, **variables}})
open({finished!r}, "w").close()
"""
SRUN = """#!{python}
import os, sys
arguments, job = sys.argv[1:], os.environ["SLURM_ARRAY_TASK_ID"]
while arguments and arguments[0].startswith("--"):
    option = arguments.pop(0)
    if option in ("--output", "--error"):
        name = arguments.pop(0).replace("%t", "0").replace("%A", "17").replace("%a", job)
        output = os.open(name, os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1 if option == "--output" else 2)
os.execvp(arguments[0], arguments)
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], Path]]:
    """Put a Slurm on the path; it runs the jobs at once, one after the other, or not at all. Returns its log.

    The file ``finished`` is there when all jobs have ended. Those that still run after the test are killed.
    """
    began, finished = tmp_path / "began", tmp_path / "finished"

    def install(runs: bool) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "submitted"
        folder.mkdir()
        for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
            places = {"log": str(log), "began": str(began), "finished": str(finished)}
            (folder / name).write_text(text.format(python=sys.executable, runs=runs, **places))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    yield install
    if began.exists() and not finished.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(began.read_text()), signal.SIGKILL)


def test_one_array_job_holds_all_shards(slurm: Callable[[bool], Path], tmp_path: Path) -> None:
    log = slurm(False)
    settings = {"partition": "gpu", "time": 90, "gpus_per_node": 1, "array_parallelism": 4}
    assert submit(["default"], 16, tmp_path / "logs", settings) == "17"
    script = log.read_text()
    assert re.findall(r"^#SBATCH --(array|partition|time|gpus-per-node|job-name)=(.+)$", script, re.MULTILINE) == [
        ("array", "0-15%4"),
        ("gpus-per-node", "1"),
        ("job-name", "oab"),
        ("partition", "gpu"),
        ("time", "90"),
    ]


def test_jobs_get_a_day_by_default(slurm: Callable[[bool], Path], tmp_path: Path) -> None:
    log = slurm(False)
    submit(["default"], 2, tmp_path / "logs", {})
    assert "#SBATCH --time=1440\n" in log.read_text()


def test_a_run_is_submitted_and_its_last_shard_makes_the_board(
    slurm: Callable[[bool], Path], llama: Path, tmp_path: Path
) -> None:
    slurm(True)
    file, streams = tmp_path / "arrayed.yaml", "{split: test, documents: 2, count: 4}"
    dataset = make_dataset(tmp_path / "keepers")
    file.write_text(f"dataset: {dataset}\nmodel: {llama}\nstreams: {streams}\nmethods: [closed_book]\n")
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    options = ["--executor", "slurm", "--shards=2", "--slurm", "partition=any", "--jobs", "1"]
    command = [sys.executable, "run_bench.py", "run", str(file), *options, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Array job 17 of 2 shards is submitted. Its logs are in" in " ".join(done.stdout.split())
    wait_until((tmp_path / "finished").exists, 300)
    assert (tmp_path / "out" / "leaderboard.md").is_file()
    assert len(read_board(tmp_path / "runs").runs) == 4
    logs = "\n".join(path.read_text() for path in (tmp_path / "runs" / "slurm").glob("*.out"))
    assert "This shard has run. 2 cells of other shards are missing" in " ".join(logs.split())


def test_jobs_for_gpus_are_submitted_from_a_machine_without_one(
    slurm: Callable[[bool], Path], llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run_bench

    log, file = slurm(False), tmp_path / "arrayed.yaml"
    dataset = make_dataset(tmp_path / "keepers")
    file.write_text(f"dataset: {dataset}\nmodel: {llama}\nstreams: {{split: test, count: 1}}\nmethods: [closed_book]\n")
    monkeypatch.setattr("bench.lm.checkpoint.has_device", lambda device: device == "cpu")
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = ["run_bench.py", "run", str(file), "--device", "cuda", *folders]
    monkeypatch.setattr(sys, "argv", [*command, "--executor", "slurm", "--shards", "2"])
    run_bench.app(sys.argv[1:], standalone_mode=False)
    assert "--array=0-1" in log.read_text()
    run_bench.app([*command[1:], "--dry-run"], standalone_mode=False)
    with pytest.raises(BenchError, match="PyTorch finds no cuda device here"):
        run_bench.app(command[1:], standalone_mode=False)
    assert not [*(tmp_path / "runs").glob("closed_book*")]


def test_without_slurm_or_with_an_unknown_setting_nothing_is_submitted(
    slurm: Callable[[bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = slurm(False)
    with pytest.raises(BenchError, match=r"--slurm: .*slurm_partion"):
        submit(["default"], 2, tmp_path / "logs", {"partion": "gpu"})
    assert not log.exists()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="There is no Slurm on this machine"):
        submit(["default"], 2, tmp_path / "logs", {})


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["default", "--executor", "slurm", "--jobs", "2"], ["default", "--jobs", "2"]),
        (["--shards=4", "default", "--slurm", "time=90", "--slurm=mem=8GB"], ["default"]),
        (["default", "--set", "--executor"], ["default", "--set"]),
    ],
)
def test_options_of_the_submission_are_not_those_of_the_jobs(arguments: list[str], kept: list[str]) -> None:
    assert without_options(arguments, ("--executor", "--shards", "--slurm")) == kept
