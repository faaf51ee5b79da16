"""Errors that reach the user as one or two sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A wrong request (bad name, bad file, bad key): the message names it and the remedy. Exit code 2."""


class RunError(Exception):
    """A run that failed although the request was right. Exit code 1."""


class Diverged(RunError):
    """A loss or a state became NaN or infinite. In a run, the cell is recorded as diverged."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: " Did you mean ...?" with the nearest known names, else a list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(known)}." if known else ""
