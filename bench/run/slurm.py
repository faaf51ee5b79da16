"""Array jobs on a Slurm cluster: the shards of a run, one for each job of the array, submitted through submitit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError, RunError
from bench.paths import ROOT

DAY = 24 * 60
"""Minutes that a job may take unless its settings say otherwise; submitit's own default is five."""


def submit(arguments: Sequence[str], shards: int, folder: Path, settings: Mapping[str, Any]) -> str:
    """Submit an array job of so many shards of ``run_bench.py run <arguments>``; returns its id.

    ``settings`` are those of the job by their names in submitit without ``slurm_``: partition, time (minutes), mem,
    gpus_per_node, array_parallelism and so on. Its scripts and logs go to ``folder``.

    Raises:
        BenchError: submitit or Slurm is not there, or there is no such setting.
        RunError: Slurm refused the job.
    """
    try:
        import submitit
    except ImportError:
        raise BenchError("submitit is not installed: pip install submitit.") from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm")
        stated = {"time": DAY, **settings}
        executor.update_parameters(name="oab", **{f"slurm_{key}": value for key, value in stated.items()})
    except RuntimeError:
        raise BenchError("There is no Slurm on this machine (no srun): submit from a node that has it.") from None
    except NameError as error:
        raise BenchError(f"--slurm: {error}") from None
    count = range(1, shards + 1)
    try:
        jobs = executor.map_array(
            run_shard, [list(arguments)] * shards, count, [shards] * shards, [os.getcwd()] * shards
        )
    except (submitit.core.utils.FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise RunError(f"Slurm did not take the job: {error}") from None
    return str(jobs[0].job_id).partition("_")[0]


def run_shard(arguments: Sequence[str], place: int, count: int, folder: str) -> None:
    """Run one shard, in the folder from which the job was submitted.

    Raises:
        RunError: the run failed; its output is in the job's logs.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "run_bench", "run", *arguments, f"--shard={place}/{count}"]
    code = subprocess.run(command, cwd=folder, env=environment).returncode
    if code:
        raise RunError(f"Shard {place}/{count} ended with exit code {code}.")


def without_options(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Arguments of a command line without these options, each of which has a value, as ``--a b`` or ``--a=b``."""
    kept, skipped = [], False
    for argument in arguments:
        if not skipped and argument.partition("=")[0] not in names:
            kept.append(argument)
        skipped = not skipped and argument in names
    return kept
