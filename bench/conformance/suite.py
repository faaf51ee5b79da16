"""The conformance suite: reports check by check whether a method keeps the contract.

It runs the method in the harness's own loop on a tiny base model, takes a few seconds, and needs neither data nor an
accelerator. The checks are in :mod:`bench.conformance.checks`.
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
"""Checks that do not run the method."""
COMPARING = {
    "blind_to_the_future",
    "blind_to_the_answers",
    "probes_leave_no_trace",
    "state_survives_saving",
    "resumes_in_mid_stream",
    "reset_forgets",
}
"""Checks that compare runs; their results mean nothing if two runs of the same stream already differ."""


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one method. A skipped check has passed; ``message`` says why it was skipped."""

    check: str
    method: str
    passed: bool
    skipped: bool = False
    message: str = ""

    def line(self) -> str:
        """The verdict on one line of a terminal."""
        verdict = "skip" if self.skipped else "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.method}  {self.check}" + (f": {self.message}" if self.message else "")


def check(target: str, plugins: Sequence[str] = ()) -> Iterator[Verdict]:
    """Verdicts of all checks on a method, or on each method in a file, as they finish.

    A method fails if every check that runs it was skipped.

    Raises:
        BenchError: the method or file does not exist.
    """
    for info in _targets(target, plugins):
        declaration = examine(info, STATIC[0])
        yield declaration
        if not declaration.passed:
            continue
        verdicts: dict[str, Verdict] = {}
        for name in CHECKS:
            if name in COMPARING and not verdicts["same_seed_same_results"].passed:
                message = "Runs cannot be compared because same_seed_same_results failed: fix that first."
                verdicts[name] = Verdict(name, info.name, passed=True, skipped=True, message=message)
            else:
                verdicts[name] = examine(info, name)
            yield verdicts[name]
        if all(verdict.skipped for name, verdict in verdicts.items() if name not in STATIC):
            message = "Every check was skipped, so the method is untested: resolve the reason given above."
            yield Verdict("is_tried_out", info.name, passed=False, message=message)


def examine(info: registry.MethodInfo, name: str) -> Verdict:
    """The verdict of one check on one method."""
    try:
        kind = registry.load(info)
        if kind.name != info.name:
            raise Violation(f"The class is named {kind.name!r}, but its source says {info.name!r}: use one name.")
        if name in CHECKS:
            CHECKS[name](kind)
    except Skip as reason:
        return Verdict(name, info.name, passed=True, skipped=True, message=str(reason))
    except (Violation, BenchError) as error:
        return Verdict(name, info.name, passed=False, message=str(error))
    except Exception as error:
        return Verdict(name, info.name, passed=False, message=_describe(error, info.file))
    return Verdict(name, info.name, passed=True)


def _targets(target: str, plugins: Sequence[str]) -> list[registry.MethodInfo]:
    if target.endswith(".py") or Path(target).is_file():
        registry.list_methods([*plugins, target])  # fails if another method has a name of the file's
        return registry.methods_in(target)
    return [registry.find_method(target, plugins)]


def _describe(error: Exception, file: Path) -> str:
    """The error as a sentence, with the line of the method's file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    where = f" ({file.name}, line {lines[-1]})" if lines else ""
    notes = " ".join(getattr(error, "__notes__", ()))
    return " ".join(f"{type(error).__name__}: {str(error).rstrip('.')}{where}. {notes}".split())
