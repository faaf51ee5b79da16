"""The conformance suite: whether a method keeps the contract, told check by check.

It tries the method in the harness's own loop on a tiny base model: it needs neither data nor an accelerator and takes a
few seconds. What it looks for is in :mod:`bench.conformance.checks`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.conformance.checks import CHECKS
from bench.conformance.fixtures import Skip, Violation
from bench.contract import registry
from bench.errors import BenchError

STATIC = ("declares_itself", "config_is_sound")
"""Checks that do not try the method out."""
COMPARING = {
    "blind_to_the_future",
    "blind_to_the_answers",
    "probes_leave_no_trace",
    "state_survives_saving",
    "resumes_in_mid_stream",
    "reset_forgets",
}
"""Checks that compare runs: they would accuse wrongly where already two equal runs differ."""


@dataclass(frozen=True)
class Outcome:
    """What one check found of one method. A skipped check has not failed, and ``message`` says why it was skipped."""

    check: str
    method: str
    passed: bool
    skipped: bool = False
    message: str = ""

    def line(self) -> str:
        """The outcome on one line of a terminal."""
        verdict = "skip" if self.skipped else "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.method}  {self.check}" + (f": {self.message}" if self.message else "")


def check(target: str, plugins: Sequence[str] = ()) -> Iterator[Outcome]:
    """Every check on a method, or on each method of a file, as they finish.

    A method that could not be tried out at all, every such check being skipped, fails.

    Raises:
        BenchError: there is no such method or file.
    """
    for info in _targets(target, plugins):
        declared = examine(info, STATIC[0])
        yield declared
        if not declared.passed:
            continue
        found: dict[str, Outcome] = {}
        for name in CHECKS:
            if name in COMPARING and not found["same_seed_same_results"].passed:
                message = "same_seed_same_results failed, so that nothing can be told from comparing runs."
                found[name] = Outcome(name, info.name, passed=True, skipped=True, message=message)
            else:
                found[name] = examine(info, name)
            yield found[name]
        if all(outcome.skipped for name, outcome in found.items() if name not in STATIC):
            message = "every check was skipped, so nothing is known of this method. Remove the reason given above."
            yield Outcome("is_tried_out", info.name, passed=False, message=message)


def examine(info: registry.MethodInfo, name: str) -> Outcome:
    """One check on one method."""
    try:
        kind = registry.load(info)
        if kind.name != info.name:
            raise Violation(f"the class calls itself {kind.name!r}, its source {info.name!r}: state the name once.")
        if name in CHECKS:
            CHECKS[name](kind)
    except Skip as reason:
        return Outcome(name, info.name, passed=True, skipped=True, message=str(reason))
    except (Violation, BenchError) as error:
        return Outcome(name, info.name, passed=False, message=str(error))
    except Exception as error:
        return Outcome(name, info.name, passed=False, message=_told(error, info.file))
    return Outcome(name, info.name, passed=True)


def _targets(target: str, plugins: Sequence[str]) -> list[registry.MethodInfo]:
    if target.endswith(".py") or Path(target).is_file():
        registry.list_methods([*plugins, target])  # no name of the file may be taken
        return registry.methods_in(target)
    return [registry.find_method(target, plugins)]


def _told(error: Exception, file: Path) -> str:
    """What was raised, and the line of the method's file that led there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    where = f" ({file.name}, line {lines[-1]})" if lines else ""
    notes = " ".join(getattr(error, "__notes__", ()))
    return " ".join(f"{type(error).__name__}: {str(error).rstrip('.')}{where}. {notes}".split())
