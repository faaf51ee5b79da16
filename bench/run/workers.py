"""Which executor runs the cells of a command, and with how many workers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from bench.errors import BenchError
from bench.machine import available_memory, usable_cores
from bench.run import executor, ray_cluster
from bench.run.executor import affordable_jobs
from bench.run.experiment import Experiment

KINDS = ("local", "ray")


@dataclass(frozen=True)
class Workers:
    """What a command says of its workers.

    Raises:
        BenchError: there is no executor of this kind, or it does not take an option.
    """

    kind: Literal["local", "ray"] = "local"
    jobs: int | None = None
    """Number of workers; None: as many as there are cores, or as a cluster has room for."""
    threads: int | None = None
    """Threads of each worker; None: the cores are divided among them, or on a cluster one."""
    address: str | None = None
    """Address of a Ray cluster; None: one is started on this machine."""
    shard: tuple[int, int] = (1, 1)
    """The part K of N that is run."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BenchError(f"--executor takes {' or '.join(KINDS)}, not {self.kind!r}.")
        if self.address is not None and self.kind != "ray":
            raise BenchError("--ray-address needs --executor ray.")

    def count(self, experiment: Experiment, weights: int) -> tuple[int, str]:
        """Number of local workers with a base of so many weights, and a remark if memory does not allow more.

        Raises:
            BenchError: there is not enough memory to read the base.
        """
        jobs = self.jobs or experiment.default_jobs or usable_cores()
        if self.kind == "local" and experiment.device == "cpu":
            return affordable_jobs(jobs, weights, available_memory())
        return jobs, ""

    def open(self, experiment: Experiment, jobs: int) -> AbstractContextManager[Any]:
        """The executor, which is closed at the end of its ``with`` block. ``jobs`` is its number of workers.

        Raises:
            BenchError: Ray is not installed, or there is no cluster at the address, or no room on it.
        """
        if self.kind == "ray":
            gpus = 1.0 if experiment.device == "cuda" else 0.0
            return ray_cluster.RayCluster(self.address, self.jobs, self.threads, gpus)
        return executor.LocalPool(jobs, self.threads)
