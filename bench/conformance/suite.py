"""The conformance suite: reports check by check whether a method keeps the contract.

It runs the method in the harness's own loop on a tiny base model, takes a few seconds, and needs neither data nor an
accelerator. The checks are in :mod:`bench.conformance.checks`.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from bench.conformance import fixtures
from bench.conformance.checks import CHECKS
from bench.conformance.fixtures import Skip, Violation
from bench.conformance.verdict import Verdict
from bench.contract import registry
from bench.errors import BenchError, RunError, text_of

STATIC = ("declares_itself", "config_is_sound")
"""Checks that do not run the method."""
NAMES = (STATIC[0], *CHECKS)
"""All checks, in the order of their verdicts."""
COMPARING = {
    "blind_to_the_future",
    "blind_to_the_answers",
    "probes_leave_no_trace",
    "flush_leaves_no_state",
    "question_weights_do_not_leak",
    "state_survives_saving",
    "resumes_in_mid_stream",
    "reset_forgets",
}
"""Checks that compare runs or answers; their results mean nothing if two equal runs already differ."""


def check_method(info: registry.MethodInfo) -> Iterator[Verdict]:
    """Verdicts of all checks on a method, as they finish. It fails if every check that runs it was skipped."""
    declaration = examine(info, STATIC[0])
    yield declaration
    if not declaration.passed:
        return
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
    fixtures.first_fingerprint()  # before a method is imported
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
    except (Exception, SystemExit) as error:
        return Verdict(name, info.name, passed=False, message=_describe(error, info.file))
    return Verdict(name, info.name, passed=True)


def _describe(error: BaseException, file: Path) -> str:
    """The error as a sentence, with the line of the method's file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    text = text_of(error).rstrip(".")
    where = f" ({file.name}, line {lines[-1]})" if lines else ""
    notes = list(getattr(error, "__notes__", ()))
    if isinstance(error, SystemExit):
        notes.append("A method must not end the process.")
    kind = "" if isinstance(error, RunError) else f"{type(error).__name__}: "  # the harness's own is a sentence
    return " ".join(f"{kind}{text:.1000}{where}. {' '.join(notes)}".split())
