"""Running many independent tasks: a protocol, and a pool of worker processes on this machine.

A task names a function and carries plain data. The executor knows nothing else about it, so that the same tasks can go
to another executor on other machines.
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
"""Seconds between checks that the busy workers are alive."""
GRACE_SECONDS = 2.0
"""Seconds that a worker has to end before it is killed."""


@dataclass(frozen=True)
class Task:
    """A function call: ``function`` is "module:name", ``payload`` (picklable) its keyword arguments."""

    key: str
    function: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class TaskError:
    """The reason why a task has no value: it raised, or its worker process died."""

    kind: Literal["raised", "worker_died"]
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of the task with this key: a value, or an error."""

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

    By default there is one worker per usable core, and the cores are divided among the workers. If a worker dies, only
    its task is lost and it is replaced. Idle workers wait for the next :meth:`run` until :meth:`close` or the end of
    the pool's ``with`` block. An interrupt, closing the iterator, or the death of this process ends all workers.
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
        """End the idle workers."""
        while self._idle:
            self._idle.pop().stop()

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Run all tasks as :meth:`Executor.run` says. The workers start when the first outcome is requested."""
        waiting = list(reversed(tasks))
        workers: list[_Worker] = []
        try:
            while waiting or workers:
                while waiting and len(workers) < self.jobs:
                    worker = self._idle_or_new_worker()
                    worker.assign(waiting.pop())
                    workers.append(worker)
                ready = connection.wait([worker.pipe for worker in workers], CHECK_SECONDS)
                for worker in list(workers):
                    if worker.pipe not in ready and worker.process.is_alive():
                        continue
                    outcome = worker.outcome()
                    if worker.alive and waiting:
                        worker.assign(waiting.pop())
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

    def _idle_or_new_worker(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.is_alive():
                return worker
            worker.stop()
        return _Worker(self.threads)


class _Worker:
    """One worker, seen from this process. It has at most one task at a time."""

    task: Task

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=_work, args=(worker_end, threads), daemon=True)
        with _thread_counts(threads), _interrupts_blocked():
            self.process.start()
        worker_end.close()
        self.alive = True

    def assign(self, task: Task) -> None:
        """Send a task to the process."""
        self.task = task
        with contextlib.suppress(OSError):  # it died while idle; outcome() will report that
            self.pipe.send(task)

    def outcome(self) -> Outcome:
        """The outcome of the task, once there is something to read or the process has ended."""
        try:
            if self.pipe.poll():
                outcome: Outcome = self.pipe.recv()
                return outcome
        except (EOFError, OSError):
            pass
        self.alive = False
        self.process.join(GRACE_SECONDS)
        return Outcome(self.task.key, error=TaskError("worker_died", _cause_of_death(self.process.exitcode)))

    def stop(self) -> None:
        """End the process and wait for it."""
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
def _thread_counts(threads: int) -> Iterator[None]:
    """Set the thread counts in the environment of new processes. torch reads them once, when it is imported."""
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


def _work(pipe: Connection, threads: int) -> None:
    """Run in the worker: one task after another until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    machine.keep_freed_memory()
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
