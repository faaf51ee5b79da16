"""Which executor runs the cells of a command, and with how many workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.errors import BenchError
from bench.lm import checkpoint
from bench.machine import available_memory, free_gpu_memory, usable_cores
from bench.run import executor, ray_cluster
from bench.run.executor import affordable_jobs, gpu_places, offloaded_bytes, short_of_memory
from bench.run.experiment import Experiment

KINDS = ("local", "ray", "slurm")


class Plan(NamedTuple):
    """How many workers there are, a remark if there are fewer than could be, and the GPUs of each.

    Of workers on other machines those are counted that the options name, or one for each job of Slurm.
    """

    jobs: int
    remark: str = ""
    gpus: tuple[str, ...] = ()
    memory: int = 0
    """Bytes that each of a cluster's workers may need; 0 on GPUs, whose share says how many fit."""


@dataclass(frozen=True)
class Workers:
    """What a command says of its workers.

    Raises:
        BenchError: there is no executor of this kind, or it does not take an option.
    """

    kind: str = "local"
    jobs: int | None = None
    """Number of workers; None: as many as there are cores, or as a cluster has room for."""
    threads: int | None = None
    """Threads of each worker; None: the cores are divided among them, or on a cluster one."""
    address: str | None = None
    """Address of a Ray cluster; None: one is started on this machine."""
    shard: tuple[int, int] = (1, 1)
    """The part K of N that is run."""
    shards: int | None = None
    """Number of parts, each a job of an array job of Slurm."""
    slurm: tuple[str, ...] = ()
    """Settings of these jobs, KEY=VALUE."""
    gpus: int | None = None
    """GPUs of each worker; None: as many as it takes to read the base, and no more than there are."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BenchError(f"--executor takes {', '.join(KINDS[:-1])} or {KINDS[-1]}, not {self.kind!r}.")
        if (self.kind == "slurm") != (self.shards is not None) or (self.slurm and self.kind != "slurm"):
            raise BenchError(
                "--executor slurm needs --shards N, the number of jobs; others take neither that nor --slurm."
            )
        if self.kind == "slurm" and self.shard != (1, 1):
            raise BenchError("--executor slurm runs all shards: leave out --shard, which is for a part of a run.")
        if self.address is not None and self.kind != "ray":
            raise BenchError("--ray-address needs --executor ray.")

    def plan(self, experiment: Experiment, weights: int) -> Plan:
        """The workers with a base of so many weights, as far as memory allows.

        Raises:
            BenchError: there is not enough memory to read the base, or fewer GPUs than a worker is to have.
        """
        if self.gpus is not None and experiment.device != "cuda":
            raise BenchError("--gpus-per-worker needs --device cuda.")
        if self.kind == "slurm" or (self.kind == "ray" and experiment.device == "cpu"):  # on other machines
            return Plan((self.jobs or 1) * (self.shards or 1), memory=executor.worker_bytes(weights)[1])
        if experiment.device == "cpu":
            jobs = self.jobs or max(1, usable_cores() // (self.threads or 1))
            return Plan(*affordable_jobs(jobs, weights, available_memory()))
        free = free_gpu_memory() if experiment.device == "cuda" else {}
        if self.kind == "local" and self.gpus is not None and len(free) < self.gpus:
            raise BenchError(f"--gpus-per-worker is {self.gpus}, and nvidia-smi shows {len(free)} GPUs here.")
        gpus = gpu_places(weights, free, self.gpus)
        most = len(gpus) or self.jobs or 1
        if experiment.offload and (rest := offloaded_bytes(weights, free, gpus)):
            most = max(1, min(most, available_memory() // rest))
        jobs = min(self.jobs or max(usable_cores(), len(set(gpus))), most)
        if self.jobs and jobs < self.jobs and self.kind != "local":  # other machines have GPUs too
            return Plan(self.jobs, "", tuple(gpus))
        fewer = f"{jobs} worker{'s' if jobs > 1 else ''} instead of {self.jobs}: no more fit onto the GPUs."
        each = executor.gpus_of(gpus)
        remarks = [
            fewer if self.jobs and jobs < self.jobs else "",
            f"The base is spread over {each} GPUs in each worker." if each > 1 and self.gpus is None else "",
            short_of_memory(weights, free, gpus, experiment.offload),
        ]
        return Plan(jobs, " ".join(filter(None, remarks)), tuple(gpus[:jobs]))

    def submit(self, arguments: Sequence[str], folder: Path) -> str:
        """Submit the shards of a ``run`` with these arguments to Slurm; returns the id of the array job.

        Raises:
            BenchError: as :func:`bench.run.slurm.submit`.
            RunError: as there.
        """
        from bench.run import slurm

        settings = dict(setting.partition("=")[::2] for setting in self.slurm)
        if wrong := [key for key, value in settings.items() if not (key and value)]:
            raise BenchError(f"--slurm takes KEY=VALUE, as in partition=gpu, got {wrong[0]!r} without a value.")
        assert self.shards is not None
        kept = slurm.without_options(arguments, ("--executor", "--shards", "--slurm"))
        values = {key: int(value) if value.isdecimal() else value for key, value in settings.items()}
        return slurm.submit(kept, self.shards, folder, values)

    def open(self, experiment: Experiment, plan: Plan) -> AbstractContextManager[Any]:
        """The executor, which is closed at the end of its ``with`` block.

        On Ray a worker takes the share of a GPU that it takes of this machine's.

        Raises:
            BenchError: the device is not on this machine; or Ray is not installed, or there is no cluster at the
                address, or no room on it.
        """
        if self.kind == "ray":
            each = self.gpus or executor.gpus_of(plan.gpus)
            share = 1 / max(Counter(plan.gpus).values(), default=1)
            gpus = (each if each > 1 else share) if experiment.device == "cuda" else 0.0
            return ray_cluster.RayCluster(self.address, self.jobs, self.threads, gpus, plan.memory)
        checkpoint.check_device(experiment.device)
        return executor.LocalPool(plan.jobs, self.threads, plan.gpus)
