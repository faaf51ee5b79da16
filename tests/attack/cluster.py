"""Kill -9 of a worker, a node or the driver of a run on a Ray cluster of two nodes, also beside runs without Ray."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.attack.attacks import Attack, Try
from tests.attack.kills import Kills

Victim = Literal["worker", "node", "driver"]
VICTIMS: tuple[Victim, ...] = ("worker", "node", "driver")


class RayKills(Kills):
    """:class:`Kills` of a run on Ray, and of any ``runs`` without Ray on the same folder."""

    def __init__(self, folder: Path, kinds: Sequence[Victim], runs: int = 0) -> None:
        self._kinds = kinds
        if not runs:
            self.codes = (0,)  # a task that lost its worker is given to another one
        super().__init__(folder, runs)

    def start(self) -> list[psutil.Popen]:
        cluster = _cluster()
        if not _raylet():
            cluster.remove_node(_second(), allow_graceful=False)
            cluster.add_node(num_cpus=1)
        self._driver = self.run("--executor", "ray", "--ray-address", cluster.address)
        return [*super().start(), self._driver]

    def victims(self, started: Sequence[psutil.Popen]) -> list[psutil.Process]:
        if self._driver.poll() is not None:
            return super().victims(started[:-1])
        own = {"worker": _workers, "node": _raylet, "driver": lambda: [self._driver]}
        return [*super().victims(started[:-1]), *(one for kind in self._kinds for one in own[kind]())]

    def dependants(self, victim: psutil.Process) -> list[psutil.Process]:
        return [*super().dependants(victim), *(_workers() if victim == self._driver else [])]


@cache
def _cluster() -> Any:
    """A cluster of two nodes with one core each, until the end of this process."""
    os.environ["RAY_TQDM_PATCH_PRINT"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    atexit.register(cluster.shutdown)
    cluster.add_node(num_cpus=1)
    return cluster


def _second() -> Any:
    """The node of the cluster that is not its head."""
    return next(iter(_cluster().worker_nodes))


def _raylet() -> list[psutil.Process]:
    """The process that is the second node, with which all others of the node end; none if it was killed."""
    pid = _second().all_processes["raylet"][0].process.pid
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []


def _workers() -> list[psutil.Process]:
    """The processes of the cluster that hold a worker of a run."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if (process.cmdline() or [""])[0].startswith("ray::_Worker"):
                found.append(process)
    return found


def prepare(kinds: Sequence[Victim], runs: int, folder: Path) -> Try:
    """A run on the cluster, and so many beside it, of which a process is killed: on the cluster one of these kinds."""
    return RayKills(folder, kinds, runs).attempt


ATTACKS: dict[str, Attack] = {
    **{f"kill -9 of a Ray {victim}": partial(prepare, (victim,), 0) for victim in VICTIMS},
    "kill -9 amid three runs and a Ray cluster": partial(prepare, VICTIMS, 3),
}
