"""Running tasks on a Ray cluster, on this machine or on many.

Workers are Ray actors, each in a process of its own on some node. All nodes need this project, installed alike, and the
folder of the records. Bases and data files from elsewhere are put into Ray's object store once, and unpacked once on
each node that lacks them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench import hashing, machine, paths
from bench.errors import BenchError, RunError
from bench.files import make_folder
from bench.run import executor
from bench.run.executor import (
    CHECK_SECONDS,
    Assignee,
    Limit,
    Outcome,
    Pool,
    Task,
    TaskError,
    Told,
    start_environment,
)

RETRIES = 2
"""How often a task is given to another worker when its worker, or its node, was lost."""
CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 60.0
"""How long no worker may have begun before the room of the nodes is looked at again."""


def start(address: str | None, cores: int | None = None) -> tuple[Any, bool]:
    """Connect to the cluster at this address, or start one on this machine.

    A process is connected to one cluster at most: one to which it is connected already serves if no address is given.

    Returns:
        The package ``ray``, and True unless this process was connected before.

    Raises:
        BenchError: Ray is not installed, there is no cluster at the address, or this process is connected to one.
    """
    try:
        import ray
    except ImportError:
        raise BenchError("Ray is not installed: pip install ray, or use --executor local.") from None
    missing = f"There is no Ray cluster at {address}. Start one with `ray start --head`, or leave --ray-address out."
    is_new = not ray.is_initialized()
    if not is_new and address:
        raise BenchError("This process is connected to a Ray cluster already: call ray.shutdown() first.")
    if is_new:
        if address and (match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)):
            try:  # Ray itself waits for minutes
                socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
            except OSError:
                raise BenchError(missing) from None
        settings: dict[str, Any] = {"address": address or "local"}
        settings |= {} if address else {"num_cpus": cores, "include_dashboard": False}
        os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")  # else Ray replaces the function print
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address and isinstance(error, ConnectionError):
                raise BenchError(missing) from None
            done = f"connect to the cluster at {address}" if address else "start on this machine"
            raise BenchError(f"Ray did not {done}: {error}") from None
    return ray, is_new


class RayCluster(Pool["_Actor"]):
    """A pool of workers on a Ray cluster, by default as many as it has room for.

    A worker takes ``threads`` cores, ``gpus`` GPUs, which may be a fraction, and ``memory`` bytes, or what the largest
    node has if that is less. A task whose worker is lost is given to a new one, after those that wait, at most
    :data:`RETRIES` times, and on another node unless none has room for a worker: a node that kills all its workers
    costs time and no task.
    """

    def __init__(
        self,
        address: str | None = None,
        jobs: int | None = None,
        threads: int | None = None,
        gpus: float = 0.0,
        memory: int = 0,
    ) -> None:
        super().__init__()
        self.ray, self._is_own = start(address, machine.usable_cores())
        self._is_here = self._is_own and not address
        """True if the cluster is this machine alone."""
        self.threads, self.gpus = max(1, threads or 1), gpus
        self.memory = 0
        able = self._able().values()  # with the cores and GPUs
        self.memory = min(memory, max((int(node.get("memory", 0)) for node in able), default=0))
        room = sum(map(self._room, able))
        if room < 1:
            problem = self._no_room()
            self.close()
            raise BenchError(problem)
        self.jobs = min(jobs or room, room)
        self._since = time.monotonic()
        """When a worker was last seen to have begun."""
        self._parcels: dict[str, Parcel] = {}
        here = self.ray.get_runtime_context().get_node_id()
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        lasting = {"max_restarts": -1, "max_task_retries": -1}
        self._mail = self.ray.remote(num_cpus=0, scheduling_strategy=affinity, **lasting)(_Mailbox).remote()

    def _room(self, resources: Mapping[str, float]) -> int:
        """How many workers fit on a node."""
        needs = {"CPU": self.threads, "GPU": self.gpus, "memory": self.memory}
        return min(int(resources.get(kind, 0) / need) for kind, need in needs.items() if need)

    def _nodes(self) -> dict[str, Mapping[str, float]]:
        """The resources of each node that is alive, by its id."""
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def _is_room_beside(self, nodes: Set[str]) -> bool:
        """True if there is room for a worker on another node than these, or will be once those there have ended."""
        return bool(self._able(nodes))

    def _able(self, beside: Set[str] = frozenset()) -> dict[str, Mapping[str, float]]:
        """The resources of each node that has room for a worker, without those ``beside`` which one is looked for."""
        return {node: found for node, found in self._nodes().items() if node not in beside and self._room(found)}

    def _no_room(self) -> str:
        nodes = self._nodes().values()
        cores, cards, memory = (
            max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "GPU", "memory")
        )
        needed = f"{self.threads} cores, {self.gpus:g} GPUs and {self.memory / 1e9:.1f} GB"
        largest = f"{cores:g} cores, {cards:g} GPUs and {memory / 1e9:.1f} GB"
        return f"A worker with {needed} fits on no node of the Ray cluster: the largest have {largest}."

    def close(self) -> None:
        """End all workers and leave the cluster, which ends if it was started here."""
        super().close()
        if self._is_own:
            self.ray.shutdown()

    def _new(self, task: Task) -> _Actor:
        environment = {**start_environment(self.threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        strategy: Any = "DEFAULT"
        avoided = {*self.lost.get(task.key, [])} - {""}
        if not self._is_room_beside(avoided):
            avoided = set()
        if avoided:
            strategies = self.ray.util.scheduling_strategies
            strategy = strategies.NodeLabelSchedulingStrategy({"ray.io/node-id": strategies.NotIn(*avoided)})
        kind = self.ray.remote(
            num_cpus=self.threads,
            num_gpus=self.gpus,
            memory=self.memory,
            max_restarts=0,
            runtime_env={"env_vars": environment},
            scheduling_strategy=strategy,
        )(_Worker)
        name = f"{time.monotonic_ns()}"
        handle = kind.remote(name, self._mail, self.threads, sys.argv)
        worker = _Actor(self, name, handle, avoided)
        worker.assign(task)
        return worker

    def _wait(self, workers: Sequence[_Actor]) -> None:
        begun = [worker.has_begun() for worker in workers]
        if self._idle and not all(begun):
            self._end_idle()  # whose cores it may wait for, if a node was lost
        if any(begun):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_SECONDS and not self._is_room_beside(set()):
            raise RunError(self._no_room())  # the nodes with room for one were lost
        for worker, has_begun in zip(workers, begun, strict=True):
            if worker.avoided and not has_begun and not self._is_room_beside(worker.avoided):
                worker.recall()  # all other nodes were lost since: its task is tried anywhere
        self.ray.wait([worker.result for worker in workers], timeout=CHECK_SECONDS)
        by_name = {worker.name: worker for worker in workers}
        for name, message in self.ray.get(self._mail.take.remote()):
            if name in by_name:
                by_name[name].hear(message)

    def _is_retried(self, worker: _Actor, outcome: Outcome) -> bool:
        if outcome.error is None or outcome.error.kind not in ("worker_died", "io", "raised"):
            return False
        lost = self.lost.setdefault(outcome.key, [])
        if outcome.error.kind == "raised" and not self._is_room_beside({*lost, worker.place()[0]}):
            return False  # another node may have the code that this one lacks, but there is none
        if not worker.is_recalled:
            lost.append(worker.place()[0])
        return len(lost) <= RETRIES

    def may_move(self, task: Task) -> bool:
        """True if a task that the next worker is unfit for would go to another node."""
        lost = self.lost.get(task.key, [])
        return len(lost) < RETRIES and len(self._able({*lost})) > 1

    def shipped(self, task: Task) -> list[Parcel]:
        """The files that the task reads, put into the object store the first time, if there are other machines."""
        if self._is_here:
            return []
        for path in task.files:
            if path not in self._parcels:
                self._parcels[path] = Parcel(path, hashing.path_hash(Path(path)), self.ray.put(pack(Path(path))))
        return [self._parcels[path] for path in task.files]


class Parcel(NamedTuple):
    """A file or folder in the object store: its path on the driver, the hash of its content, and the reference."""

    path: str
    content: str
    reference: Any


def pack(path: Path) -> dict[str, Any]:
    """The bytes of a file, or of all files of a folder, by their paths in it ("" for a file)."""
    import numpy as np

    files = [path] if path.is_file() else hashing.files_under(path)
    return {"" if file == path else file.relative_to(path).as_posix(): np.fromfile(file, np.uint8) for file in files}


def unpacked(parcel: Parcel) -> Path:
    """The file or folder on this node: where it is on the driver, if that is here too, else in the user's cache."""
    import ray

    if Path(parcel.path).exists():  # its content is checked with the cell
        return Path(parcel.path)
    name = Path(parcel.path).name
    folder = paths.cache() / "shipped" / hashing.digest([name, parcel.content])[:16]

    def write(into: Path) -> None:
        for relative, content in ray.get(parcel.reference).items():
            file = into / name / relative if relative else into / name
            file.parent.mkdir(parents=True, exist_ok=True)
            content.tofile(file)

    make_folder(folder, write)
    return folder / name


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Plain data with other texts in place of those that are names."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Mapping):
        return {key: renamed(inner, names) for key, inner in value.items()}
    return [renamed(inner, names) for inner in value] if isinstance(value, list | tuple) else value


class _Actor(Assignee):
    """An actor of a pool, seen from the driver. It begins on no node that is avoided."""

    result: Any
    is_recalled = False

    def __init__(self, pool: RayCluster, name: str, handle: Any, avoided: Set[str]) -> None:
        self._pool, self._ray, self.name, self._handle, self.avoided = pool, pool.ray, name, handle, avoided
        self._place = handle.place.remote()

    def has_begun(self) -> bool:
        """True once its process runs, on some node."""
        return bool(self._ray.wait([self._place], timeout=0)[0])

    def place(self) -> tuple[str, str]:
        """The id of the node that it runs on, or ran on, and the name of its process; each is "" if it never began."""
        try:
            node, process = self._ray.get(self._place, timeout=CHECK_SECONDS)  # they may be on their way
        except self._ray.exceptions.RayError:
            return "", ""
        return node, process

    def assign(self, task: Task) -> None:
        self.accept(task)
        shipped, may_move = self._pool.shipped(task), self._pool.may_move(task)
        self.result = self._handle.work.remote(task, shipped, may_move, self._place)

    def outcome(self) -> Outcome | None:
        ready, _ = self._ray.wait([self.result], timeout=0)
        if not ready:
            return None if self.seconds_left() > 0 else self.timed_out()
        try:
            result: tuple[Outcome, bool] = self._ray.get(self.result)
        except self._ray.exceptions.RayError as error:
            self.reusable = False
            return Outcome(self.task.key, error=TaskError("worker_died", f"The Ray worker was lost: {error}"))
        outcome, self.reusable = result
        return outcome

    def recall(self) -> None:
        """Give up waiting for a node on which it may begin: its task goes to another worker."""
        self.is_recalled = True
        self.stop()

    def stop(self) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._handle)
        if self.has_begun() and machine.is_here(process := self.place()[1]):
            until = time.monotonic() + executor.GRACE_SECONDS
            while machine.may_be_alive(process) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)


class _Mailbox:
    """The messages of all workers since they were last taken: of each, the latest of each kind."""

    def __init__(self) -> None:
        self._messages: dict[tuple[str, type], Limit | Told] = {}

    def post(self, name: str, message: Limit | Told) -> None:
        """Leave a message."""
        self._messages[name, type(message)] = message

    def take(self) -> list[tuple[str, Limit | Told]]:
        """Take all messages."""
        taken = [(name, message) for (name, _), message in self._messages.items()]
        self._messages.clear()
        return taken


class _Worker:
    """A worker, in its own process on some node."""

    def __init__(self, name: str, mail: Any, threads: int, command: list[str]) -> None:
        self.threads, sys.argv = threads, command  # as a process of the local pool has it
        machine.keep_freed_memory()
        executor.connect(_Letters(name, mail))

    def place(self) -> tuple[str, str]:
        """The id of its node and the name of its process."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), machine.process_name()

    def work(
        self, task: Task, parcels: Sequence[Parcel], may_move: bool, place: tuple[str, str]
    ) -> tuple[Outcome, bool]:
        """Run a task, with its files where this node has them; ``may_move`` if another node can take it.

        The ``place`` is that of :meth:`place`: the driver has it before a task can end the process.
        """

        def with_files(task: Task) -> Task:
            here = {parcel.path: str(unpacked(parcel)) for parcel in parcels}
            return replace(task, payload=renamed(task.payload, here))

        return executor.perform(task, self.threads, may_move, with_files)


class _Letters:
    """Sends messages to the mailbox."""

    def __init__(self, name: str, mail: Any) -> None:
        self.name, self.mail = name, mail

    def send(self, message: Limit | Told, /) -> None:
        """Send a message, without waiting until it has arrived."""
        self.mail.post.remote(self.name, message)
