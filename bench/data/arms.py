"""Arms: the documents that a method observes before each question. All but ``stream`` are controls (docs/rules.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import pydantic

from bench.data.documents import Document, Entry

Arm = Annotated[
    str,
    pydantic.StringConstraints(
        pattern=r"^(stream|placebo|empty|gold_only|shuffled|every_[1-9]\d*|irrelevant_(100|[1-9]\d?))$"
    ),
]
"""One of:

- ``stream``: all documents in order, then all questions (the method itself, not a control);
- ``placebo``: the same number of other documents of the split, which do not contain the answers;
- ``empty``: no document;
- ``gold_only``: a reset before each document, then that document and the questions about it;
- ``shuffled``: like ``gold_only``, with another document of the stream (:func:`shuffled`) in place of each one;
- ``every_N``: a reset every N documents, then these N and the questions about them;
- ``irrelevant_N``: like ``stream``, with other documents of the split at random places among its own, N % as many
  (:func:`bench.data.streams.with_irrelevant`).
"""


def documents_per_reset(arm: str) -> int | None:
    """Number of documents between resets of the method; None if it is never reset."""
    if arm.startswith("every_"):
        return int(arm.removeprefix("every_"))
    return 1 if arm in ("gold_only", "shuffled") else None


def irrelevant_percent(arm: str) -> int:
    """Number of irrelevant documents that the arm inserts, in percent of those of the stream."""
    return int(arm.removeprefix("irrelevant_")) if arm.startswith("irrelevant_") else 0


def shuffled(entries: Sequence[Entry]) -> tuple[Document, ...]:
    """For each document, the next one of another group; after the last comes the first.

    If all documents are of one group, it is the next document, and the document itself if there is only one.
    """
    documents = []
    for i, entry in enumerate(entries):
        following = [*entries[i + 1 :], *entries[:i]]
        other = next((one for one in following if not one.group or one.group != entry.group), None)
        documents.append((other or following[0]).document if following else entry.document)
    return tuple(documents)
