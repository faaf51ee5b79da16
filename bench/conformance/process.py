"""The conformance suite in a child process, one for each method, so that a method cannot end it without a verdict."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.conformance.verdict import Verdict
from bench.contract import registry

GRACE_SECONDS = 2.0
"""Seconds that a child has to end before it is killed."""


def check(target: str, plugins: Sequence[str] = ()) -> Iterator[Verdict]:
    """Verdicts of all checks on a method, or on each method in a file, as they finish.

    If the method ends the process, every check that is missing has failed.

    Raises:
        BenchError: the method or file does not exist.
    """
    for info in _targets(target, plugins):
        yield from _check_in_child(info)


def _targets(target: str, plugins: Sequence[str]) -> list[registry.MethodInfo]:
    """The method with this name, or the methods in this file."""
    if target.endswith(".py") or Path(target).is_file():
        registry.list_methods([*plugins, target])  # fails if another method has a name of the file's
        return registry.methods_in(target)
    return [registry.find_method(target, plugins)]


def _check_in_child(info: registry.MethodInfo) -> Iterator[Verdict]:
    context = get_context("spawn")
    pipe, child_end = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(info, child_end), daemon=True)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child inherits this; Ctrl-C reaches the parent alone
    try:
        child.start()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    child_end.close()
    missing = ["declares_itself"]
    try:
        missing = pipe.recv()
        while (verdict := pipe.recv()) is not None:
            missing = [name for name in missing if name != verdict.check]
            yield verdict
    except (EOFError, OSError):
        child.join(GRACE_SECONDS)
        first, *others = missing or ["is_tried_out"]
        message = f"The method ended the process ({_cause_of_death(child)}): it must raise an error instead."
        yield Verdict(first, info.name, passed=False, message=message)
        for name in others:
            yield Verdict(name, info.name, passed=False, message="Not checked, since the process had ended.")
    else:
        child.join(GRACE_SECONDS)
    finally:
        child.kill()
        child.join()
        pipe.close()


def _work(info: registry.MethodInfo, pipe: Connection) -> None:
    """Run in the child: send the names of all checks, each verdict, and None at the end."""
    from bench.conformance import suite

    pipe.send(suite.NAMES)
    for verdict in suite.check_method(info):
        pipe.send(verdict)
    pipe.send(None)


def _cause_of_death(child: BaseProcess) -> str:
    code = child.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
