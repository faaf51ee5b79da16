"""Arms: which documents stand before which questions. All but ``stream`` are controls (docs/rules.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

from bench.data.documents import Document, Entry

Arm = Annotated[str, pydantic.StringConstraints(pattern=r"^(stream|placebo|empty|gold_only|shuffled|every_[1-9]\d*)$")]
"""One of:

- ``stream``: all documents, one after another, and then the questions: the method itself;
- ``placebo``: as many other documents of the split, which do not hold the answers;
- ``empty``: no document;
- ``gold_only``: for each document afresh, that document alone, and then the questions about it;
- ``shuffled``: as ``gold_only``, but another document of the stream (:func:`shuffled`) in place of each;
- ``every_N``: afresh every N documents, and then the questions about these N.
"""


def apart(arm: str) -> int | None:
    """Number of documents after which the method starts afresh, None for never."""
    if arm.startswith("every_"):
        return int(arm.removeprefix("every_"))
    return 1 if arm in ("gold_only", "shuffled") else None


def shuffled(entries: Sequence[Entry]) -> tuple[Document, ...]:
    """In place of each document the next one, the first after the last, that is of another group."""
    chosen = []
    for i, entry in enumerate(entries):
        following = [*entries[i + 1 :], *entries[:i]]
        other = next((one for one in following if not one.group or one.group != entry.group), None)
        chosen.append((other or following[0]).document if following else entry.document)
    return tuple(chosen)
