"""Running many independent tasks: a protocol, and a pool of worker processes on this machine.

The executor knows nothing of what it runs: a task names a function and carries plain data, so that the same tasks can
go to another executor on other machines.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

from bench import machine
from bench.machine import usable_cores

CHECK_SECONDS = 1.0
"""How often busy workers are checked for being alive, beside listening to them."""
GRACE_SECONDS = 2.0
"""How long a worker may take to end before it is killed."""


@dataclass(frozen=True)
class Task:
    """A call to make: ``function`` is "module:name", called with ``payload`` (picklable) as keyword arguments."""

    key: str
    function: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class TaskError:
    """Why a task has no value: it raised, or its worker process died."""

    kind: Literal["raised", "worker_died"]
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of the task with this key: a value, or an error."""

    key: str
    value: Any = None
    error: TaskError | None = None


class Executor(Protocol):
    """Anything that can run tasks."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run all tasks and yield one outcome for each, in the order in which they finish."""
        ...


class LocalPool:
    """Worker processes on this machine: ``jobs`` at a time, each with ``threads`` threads, reused from task to task.

    By default there is a worker per usable core, and the cores are shared out among the workers. A worker that dies is
    replaced and only its task is lost. Idle workers wait for the next :meth:`run` until :meth:`close`, or the end of
    the pool's ``with``. An interrupt (or closing the iterator) ends all workers; so does the death of this process.
    """

    def __init__(self, jobs: int | None = None, threads: int | None = None) -> None:
        self.jobs = max(1, jobs or usable_cores())
        self.threads = max(1, threads or usable_cores() // self.jobs)
        self._idle: list[_Worker] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers that wait."""
        while self._idle:
            self._idle.pop().stop()

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run all tasks; see :meth:`Executor.run`. The workers start with the first outcome asked for."""
        waiting = list(reversed(tasks))
        workers: list[_Worker] = []
        try:
            while waiting or workers:
                while waiting and len(workers) < self.jobs:
                    worker = self._worker()
                    worker.give(waiting.pop())
                    workers.append(worker)
                ready = connection.wait([worker.pipe for worker in workers], CHECK_SECONDS)
                for worker in list(workers):
                    if worker.pipe not in ready and worker.process.is_alive():
                        continue
                    outcome = worker.outcome()
                    if worker.alive and waiting:
                        worker.give(waiting.pop())
                    else:
                        workers.remove(worker)
                        if worker.alive:
                            self._idle.append(worker)
                        else:
                            worker.stop()
                    yield outcome
        finally:
            for worker in workers:
                worker.process.terminate()
            for worker in workers:
                worker.stop()

    def _worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            worker.stop()
        return _Worker(self.threads)


class _Worker:
    """This process's end of one worker, which has at most one task at a time."""

    task: Task

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        with _environment(threads), _interrupts_held():
            self.process.start()
        theirs.close()
        self.alive = True

    def give(self, task: Task) -> None:
        self.task = task
        with contextlib.suppress(OSError):  # it died while idle, which outcome() will find
            self.pipe.send(task)

    def outcome(self) -> Outcome:
        """What became of the task, once there is something to read or the process is gone."""
        try:
            if self.pipe.poll():
                received: Outcome = self.pipe.recv()
                return received
        except (EOFError, OSError):
            pass
        self.alive = False
        self.process.join(GRACE_SECONDS)
        return Outcome(self.task.key, error=TaskError("worker_died", _cause_of_death(self.process.exitcode)))

    def stop(self) -> None:
        """End the process and wait until it is gone."""
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
    hint = " (often the system running out of memory; try fewer --jobs)" if name == "SIGKILL" else ""
    return f"The worker process was ended by {name}{hint}."


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Thread counts as a new process must find them: torch reads them once, when it is imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start a process deaf to Ctrl-C from its first instruction (it inherits the mask); ours is only postponed."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # otherwise started with the first process, where it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, threads: int) -> None:
    """The worker's life: do one task after the other until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    machine.keep_freed()
    threading.Thread(target=_follow_parent, daemon=True).start()
    while True:
        try:
            task: Task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(Outcome(task.key, value=_call(task, threads)))
        except BrokenPipeError:
            return
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            pipe.send(Outcome(task.key, error=TaskError("raised", message, traceback.format_exc())))


def _call(task: Task, threads: int) -> Any:
    module, name = task.function.split(":")
    function = getattr(importlib.import_module(module), name)
    if "torch" in sys.modules:  # its own default ignores the environment where it was built without OpenMP
        sys.modules["torch"].set_num_threads(threads)
    machine.give_back()
    return function(**task.payload)


def _follow_parent() -> None:
    """A killed parent cannot end its workers, so they end themselves, even in the middle of a task."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
