"""Running many independent tasks: a protocol, and a pool of worker processes on this machine.

A task names a function and carries plain data. The executor knows nothing else about it, so that the same tasks can go
to another executor on other machines.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from bench import machine
from bench.errors import BenchError, RunError
from bench.lm.placement import GPU_BYTES, LEARNING_BYTES, READING_BYTES, WEIGHT_BYTES
from bench.machine import usable_cores

CHECK_SECONDS = 1.0
"""Seconds between checks that the busy workers are alive."""
GRACE_SECONDS = 2.0
"""Seconds that a worker has to end before it is killed."""
PROCESS_BYTES = 350 * 2**20
"""Memory of a worker without a base: its share of Python and the libraries, and what it makes of texts."""
_PRELOADED = ["bench.run.cell", "transformers.modeling_utils"]
"""Modules that take long to import and that new workers find imported (where processes can be forked safely)."""


@dataclass(frozen=True)
class Task:
    """A function call: ``function`` is "module:name", ``payload`` (picklable) its keyword arguments."""

    key: str
    function: str
    payload: Mapping[str, Any]
    group: str = ""
    """Tasks of different groups never run in the same process: what one does to its process cannot reach the other."""
    files: Sequence[str] = ()
    """Files and folders that it reads, as the payload names them; those of the project are not among them."""


@dataclass(frozen=True)
class TaskError:
    """The reason why a task has no value: it raised, its worker process died, or it exceeded a time limit."""

    kind: Literal["raised", "failed", "io", "worker_died", "timed_out"]
    """``io``: it raised an error of the system, but not of a full disk, or :class:`UnfitMachine`: it may run elsewhere.
    ``failed``: it raised a RunError, as it would anywhere."""
    message: str
    activity: Any = None
    """What exceeded its time limit, as passed to :func:`limit_time`."""


class UnfitMachine(Exception):
    """This machine lacks what the task needs; another may have it."""


@dataclass(frozen=True)
class Outcome:
    """The result of the task with this key: a value, or an error."""

    key: str
    value: Any = None
    error: TaskError | None = None


@dataclass(frozen=True)
class Note:
    """What the running task with this key told last (:func:`tell`)."""

    key: str
    content: Any


class Executor(Protocol):
    """Anything that can run tasks."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome | Note]:
        """Run all tasks and yield one outcome for each, in the order in which they finish; notes may come before it.

        Tasks that are appended to the list between two outcomes are run as well.
        """
        ...


def worker_bytes(weights: int, gpus: int = 0) -> tuple[int, int]:
    """Memory of a worker that reads a base of so many weights, and of one that learns them all, in bytes.

    On one or several GPUs it is that of all of them.
    """
    process = GPU_BYTES * gpus or PROCESS_BYTES
    return process + READING_BYTES * weights, process + LEARNING_BYTES * weights


def affordable_jobs(jobs: int, weights: int, available: int) -> tuple[int, str]:
    """Number of workers, at most ``jobs``, that fit into memory with a base of so many weights, and a remark.

    The remark says why there are fewer, and is "" if there are not. It is assumed that all weights learn, but one
    worker starts if it can at least read the base: methods differ in what they need.

    Raises:
        BenchError: there is not enough memory to read the base.
    """
    least, most = worker_bytes(weights)
    sizes = f"{{}} of memory, and {_gigabytes(available)} are available"
    if least > available:
        raise BenchError(
            f"A worker with this base needs {sizes.format(_gigabytes(least))}. Close other programs, or use a smaller "
            f"base."
        )
    fitting = max(1, min(jobs, available // most))
    need = sizes.format(f"up to {_gigabytes(most)}")
    if fitting < jobs:
        return fitting, f"{fitting} worker{'s' if fitting > 1 else ''} instead of {jobs}: each needs {need}."
    return jobs, f"Memory may run out: a worker needs {need}." if most > available else ""


def gpu_places(weights: int, free: Mapping[str, int], each: int | None = None) -> list[str]:
    """The GPUs of each worker, with a base of so many weights, as CUDA_VISIBLE_DEVICES names them.

    A worker has ``each`` of them, by default as few as have the ``free`` bytes to read the base together, else all. As
    many workers share a GPU as fit into it if all weights learn, and at least one. A GPU that cannot even hold its part
    of a base that is read has none, unless too few are left: methods differ in what they need. The first workers are on
    different GPUs.
    """
    if each is None:
        enough = (gpus for gpus in range(1, len(free)) if len(_able(weights, free, gpus)) >= gpus)
        each = next(enough, len(free) or 1)
    able = _able(weights, free, each)
    gpus = able if len(able) >= each else list(free)
    _, most = worker_bytes(weights, each)
    fitting = {
        ",".join(gpus[i : i + each]): max(1, free[gpus[i]] // most) if each == 1 else 1
        for i in range(0, len(gpus) - each + 1, each)
    }
    return [place for turn in range(max(fitting.values(), default=0)) for place in fitting if turn < fitting[place]]


def _able(weights: int, free: Mapping[str, int], each: int) -> list[str]:
    """The GPUs that can hold their part of a base that is read by a worker with so many of them."""
    least, _ = worker_bytes(weights, each)
    return [gpu for gpu, size in free.items() if size * each >= least]


def short_of_memory(weights: int, free: Mapping[str, int], places: Sequence[str], offload: bool = False) -> str:
    """A remark if no worker, by the free bytes of its GPUs, can read a base of so many weights, or learn them all."""
    sizes, gpus = _rooms(free, places), gpus_of(places)
    for use, need in zip(("read", "fine-tune"), worker_bytes(weights, gpus), strict=True):
        if sizes and need > max(sizes):
            whose = "a GPU's" if gpus == 1 else f"{gpus} GPUs'"
            of = f"{_gigabytes(need)} of {whose} memory, and {_gigabytes(max(sizes))} are free"
            if use == "read" and offload:
                return f"A part of the base stays in main memory, which slows passes down: a worker needs up to {of}."
            more = " (--gpus-per-worker)" if gpus < len(free) else ""
            return f"Memory may run out: to {use} the base, a worker needs up to {of}{more}."
    return ""


def offloaded_bytes(weights: int, free: Mapping[str, int], places: Sequence[str]) -> int:
    """Most bytes of main memory that a worker needs for what its GPUs have no room for if the base is only read."""
    least, _ = worker_bytes(weights, gpus_of(places))
    return max((max(0, least - room) * WEIGHT_BYTES // READING_BYTES for room in _rooms(free, places)), default=0)


def _rooms(free: Mapping[str, int], places: Sequence[str]) -> list[int]:
    """The free bytes of the GPUs of each worker together."""
    return [sum(free[gpu] for gpu in place.split(",")) for place in places]


def gpus_of(places: Sequence[str]) -> int:
    """How many GPUs each worker has, by :func:`gpu_places`; 1 if they are not known."""
    return max((place.count(",") + 1 for place in places), default=1)


def default_threads(jobs: int) -> int:
    """Threads of each of so many workers: an equal part of the usable cores, or OMP_NUM_THREADS if that is fewer."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    part = max(1, usable_cores() // jobs)
    return min(part, int(stated)) if stated.isdecimal() and int(stated) > 0 else part


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def take(tasks: list[Task], groups: Set[str]) -> Task | None:
    """Remove the first task of one of these groups and return it; None if there is none."""
    index = next((i for i, task in enumerate(tasks) if task.group in groups), None)
    return None if index is None else tasks.pop(index)


def start_environment(threads: int) -> dict[str, str]:
    """The variables that a worker must be started with: its threads, and one order of sets in all processes."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    return {**counts, "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Limit:
    """Message of a worker: what it does now must end within ``seconds``."""

    seconds: float | None
    activity: Any


@dataclass(frozen=True)
class Told:
    """Message of a worker: what it does now."""

    content: Any


class Assignee(ABC):
    """One worker, seen from the process that gives it tasks. It has at most one task at a time."""

    task: Task
    note: Note | None = None
    """The last note of the task, until it is passed on."""
    reusable = True
    """False if it is not fit for another task."""

    @abstractmethod
    def assign(self, task: Task) -> None:
        """Send a task to the worker, which has no other one."""

    @abstractmethod
    def outcome(self) -> Outcome | None:
        """The outcome of the task; None while it runs."""

    @abstractmethod
    def stop(self) -> None:
        """End the worker's process."""

    def is_alive(self) -> bool:
        """False if its process is known to have ended."""
        return True

    def interrupt(self) -> None:
        """Begin to end the worker's process, before it is stopped, so that many end at the same time."""

    def accept(self, task: Task) -> None:
        """State its task, which has no time limit yet."""
        self.task, self.note = task, None
        self.hear(Limit(None, None))

    def hear(self, message: Limit | Told) -> None:
        """Take a message of the worker."""
        if isinstance(message, Limit):
            self._limit, self._limited_since = message, time.monotonic()
        else:
            self.note = Note(self.task.key, message.content)

    def seconds_left(self) -> float:
        """Seconds until the present time limit; infinite without one."""
        if self._limit.seconds is None:
            return float("inf")
        return max(0.0, self._limited_since + self._limit.seconds - time.monotonic())

    def timed_out(self) -> Outcome:
        """The outcome of a task that exceeded its limit."""
        self.reusable = False
        message = f"It ran for more than {self._limit.seconds:g} seconds."
        return Outcome(self.task.key, error=TaskError("timed_out", message, activity=self._limit.activity))


W = TypeVar("W", bound=Assignee)


class Pool(ABC, Generic[W]):
    """At most ``jobs`` workers at a time, each in a process of its own, reused within a group of tasks.

    A worker that is free continues with its group of tasks, else a new one begins with a group that no other worker
    has, else helps with any. Idle workers wait for the next :meth:`run` until :meth:`close` or the end of the ``with``
    block. An interrupt, or closing the iterator, ends all busy workers.
    """

    jobs: int

    def __init__(self) -> None:
        self._idle: list[W] = []
        self.lost: dict[str, list[str]] = {}
        """Where the workers were that a task has lost and that were replaced, also in earlier calls."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers."""
        self._end_idle()

    def _end_idle(self) -> None:
        while self._idle:
            self._end(self._idle.pop())

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome | Note]:
        """Run all tasks as :meth:`Executor.run` says. The workers start when the first outcome is requested."""
        waiting, seen = list(tasks), len(tasks)
        again: list[Task] = []
        workers: list[W] = []
        try:
            while waiting or again or workers:
                while waiting and len(workers) < self.jobs:
                    workers.append(self._start(waiting, {worker.task.group for worker in workers}))
                while again and len(workers) < self.jobs:
                    self._end_idle()
                    workers.append(self._new(again.pop(0)))
                self._wait(workers)
                for worker in list(workers):
                    outcome = worker.outcome()
                    if worker.note is not None:
                        note, worker.note = worker.note, None
                        yield note
                    if outcome is None:
                        continue
                    is_retried = self._is_retried(worker, outcome)
                    if not worker.reusable:  # ended first: while its process lives, its claims hold
                        workers.remove(worker)
                        self._end(worker)
                    if is_retried:
                        again.append(worker.task)
                    else:
                        yield outcome
                        waiting += tasks[seen:]
                        seen = len(tasks)
                    if not worker.reusable:
                        continue
                    if (task := take(waiting, {worker.task.group})) is not None:
                        worker.assign(task)
                    else:
                        workers.remove(worker)
                        self._idle.append(worker)
        finally:
            for worker in workers:
                worker.interrupt()
            for worker in workers:
                self._end(worker)

    def _start(self, waiting: list[Task], busy: Set[str]) -> W:
        """A worker with the first task that suits it, which is removed from those that wait.

        A new one begins with a group that is not busy, if there is one.
        """
        for worker in self._idle:
            task = take(waiting, {worker.task.group}) if worker.is_alive() else None
            if task is not None:
                self._idle.remove(worker)
                worker.assign(task)
                return worker
        self._end_idle()  # no task of their groups is left
        return self._new(take(waiting, {task.group for task in waiting} - busy) or waiting.pop(0))

    @abstractmethod
    def _new(self, task: Task) -> W:
        """A new worker, with its first task."""

    @abstractmethod
    def _wait(self, workers: Sequence[W]) -> None:
        """Wait until one of the busy workers may have something to say, and take their messages."""

    def _is_retried(self, worker: W, outcome: Outcome) -> bool:
        """True if a task with this outcome goes to another worker, after all that wait."""
        return False

    def _end(self, worker: W) -> None:
        """End a worker, busy or not."""
        worker.stop()


class LocalPool(Pool["_Worker"]):
    """A pool of worker processes on this machine, each with ``threads`` threads.

    By default there is one worker per usable core, and the cores are divided among the workers, as far as
    ``OMP_NUM_THREADS`` does not say fewer. ``gpus`` has the GPU of each worker, as CUDA_VISIBLE_DEVICES names it; one
    may be there several times. If a worker dies, only its task is lost and it is replaced. The death of this process
    ends all workers.
    """

    def __init__(self, jobs: int | None = None, threads: int | None = None, gpus: Sequence[str] = ()) -> None:
        super().__init__()
        self.jobs = max(1, jobs or usable_cores())
        self.threads = threads or default_threads(self.jobs)
        self._gpus = list(gpus)  # those without a worker

    def _new(self, task: Task) -> _Worker:
        worker = _Worker(self.threads, self._gpus.pop(0) if self._gpus else None)
        worker.assign(task)
        return worker

    def _wait(self, workers: Sequence[_Worker]) -> None:
        limits = [worker.seconds_left() for worker in workers]
        connection.wait([worker.pipe for worker in workers], min([CHECK_SECONDS, *limits]))

    def _end(self, worker: _Worker) -> None:
        super()._end(worker)
        self._gpus = [*filter(None, [worker.gpu]), *self._gpus]


class _Worker(Assignee):
    """A worker process of the pool."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        forks = sys.platform == "linux"
        context: Any = get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(_PRELOADED)
        start = start_environment(threads)
        self.gpu = gpu
        self.pipe, worker_end = context.Pipe()
        here = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu, **machine.GPU_ORDER}
        arguments = (worker_end, threads, {**os.environ, **start, **here})
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        with _environment({**start, "PYTHONPATH": os.pathsep.join(sys.path)}), _script_hidden(), _interrupts_blocked():
            self.process.start()
        worker_end.close()

    def assign(self, task: Task) -> None:
        self.accept(task)
        with contextlib.suppress(OSError):  # it died while idle; outcome() will report that
            self.pipe.send(task)

    def outcome(self) -> Outcome | None:
        alive = self.process.is_alive()
        try:
            while self.pipe.poll():
                received: Limit | Told | tuple[Outcome, bool] = self.pipe.recv()
                if isinstance(received, Limit | Told):
                    self.hear(received)
                else:
                    outcome, self.reusable = received
                    return outcome
        except (EOFError, OSError):
            alive = False
        if alive and self.seconds_left() > 0:
            return None
        if alive:
            self.process.kill()
            return self.timed_out()
        self.reusable = False
        self.process.join(GRACE_SECONDS)
        return Outcome(self.task.key, error=TaskError("worker_died", _cause_of_death(self.process.exitcode)))

    def is_alive(self) -> bool:
        return bool(self.process.is_alive())

    def interrupt(self) -> None:
        self.process.terminate()

    def stop(self) -> None:
        self.pipe.close()
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.process.close()


def _cause_of_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"The worker process ended with exit code {code}."
    name = signal.Signals(-code).name
    hint = " (the system may have run out of memory; try fewer --jobs)" if name == "SIGKILL" else ""
    return f"The worker process was ended by {name}{hint}."


@contextlib.contextmanager
def _script_hidden() -> Iterator[None]:
    """Hide the script of this process from a new one, which would else run it again to import it as ``__main__``.

    Tasks name their modules. A script that starts a pool can so do without the guard ``if __name__ == "__main__"``.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables in the environment of new processes. Libraries read thread counts once, when they are imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C. A process that is started meanwhile inherits the mask; this process gets the signal afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise it starts with the first process, and lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_pipe: Channel | None = None
_retiring = False
_may_move = ContextVar("may_move", default=False)
"""No plain flag: a value that changes between two cells would look like the doing of the method."""


def limit_time(seconds: float | None, activity: Any = None) -> None:
    """Let the pool kill this worker unless this function is called again, or the task ends, within so many seconds.

    The outcome is then an error with this ``activity`` (picklable). None lifts the limit. It holds during calls into C
    too. Outside a pool's worker nothing is done.
    """
    _send(Limit(seconds, activity))


def tell(content: Any) -> None:
    """Let the pool pass on what this worker does now (picklable), as a :class:`Note`.

    Outside a pool's worker nothing is done.
    """
    _send(Told(content))


def _send(message: Limit | Told) -> None:
    if _pipe is None:
        return
    try:
        _pipe.send(message)
    except BrokenPipeError:  # the parent has died: this is no error of the task, which must not record it
        os._exit(1)


def retire() -> None:
    """Let this worker end with the present task, because its process is not fit for another one.

    Outside a pool's worker nothing is done.
    """
    global _retiring
    _retiring = _pipe is not None


def may_move() -> bool:
    """True if the pool would give the present task to another machine if it raised :class:`UnfitMachine`."""
    return _may_move.get()


def _work(pipe: Connection, threads: int, environment: Mapping[str, str]) -> None:
    """Run in the worker: one task after another until the pipe is closed, or a task makes it retire."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    machine.keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    connect(pipe)
    while not _retiring:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(perform(task, threads))
        except BrokenPipeError:
            return


def perform(
    task: Task, threads: int, may_move: bool = False, prepare: Callable[[Task], Task] = lambda task: task
) -> tuple[Outcome, bool]:
    """Run a task in this worker, as ``prepare`` returns it; its outcome, and False if the worker is to end with it."""
    told = _may_move.set(may_move)
    try:
        outcome = Outcome(task.key, value=_call(prepare(task), threads))
    except Exception as error:
        if (kind := _kind(error)) == "io":
            retire()  # a new process holds no memory, and no file that is lost
        text = str(error) if isinstance(error, UnfitMachine) else f"{type(error).__name__}: {error}"
        outcome = Outcome(task.key, error=TaskError(kind, text))
    finally:
        _may_move.reset(told)
    return outcome, not _retiring


def _kind(error: Exception) -> Literal["raised", "failed", "io"]:
    """The kind of a task's error. A full disk would stop other tasks of this machine too."""
    if isinstance(error, RunError):
        return "failed"
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "io" if isinstance(error, OSError | UnfitMachine) and not is_full else "raised"


class Channel(Protocol):
    """Where a worker sends what it does now."""

    def send(self, message: Limit | Told, /) -> None:
        """Send a message."""


def connect(channel: Channel) -> None:
    """Let this process be a worker, whose messages go to ``channel``."""
    global _pipe
    _pipe = channel


def _call(task: Task, threads: int) -> Any:
    module, name = task.function.split(":")
    function = getattr(importlib.import_module(module), name)
    if "torch" in sys.modules:  # built without OpenMP, it ignores the environment
        sys.modules["torch"].set_num_threads(threads)
    machine.return_freed_memory()
    return function(**task.payload)


def _follow_parent() -> None:
    """End this worker when its parent dies, even during a task: a killed parent cannot do that."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
