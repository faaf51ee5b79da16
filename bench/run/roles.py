"""Roles of the splits in an experiment, and the documents that are shared between roles that must be disjoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, training_of
from bench.contract.method import Method
from bench.data.documents import Document
from bench.data.reader import DataFiles, MissingSplit, split_entries
from bench.errors import BenchError

Role = Literal["streams", "learned", "selected", "anchor"]
"""What a split is for: the streams of the board, learning offline, choices (tuning, the best state), the anchor set."""

DISJOINT: tuple[tuple[Role, Role], ...] = (
    ("streams", "learned"),
    ("streams", "selected"),
    ("streams", "anchor"),
    ("learned", "selected"),
)
"""Roles whose splits may share no document."""


@dataclass(frozen=True)
class Use:
    """One use of a split; ``words`` complete "the split ..."."""

    split: str
    role: Role
    words: str


def uses_of(method: type[Method], config: MethodConfig) -> Iterator[Use]:
    """The splits that a method uses before its streams."""
    if issubclass(method, MetaTrained):
        if training_of(config).steps:
            yield Use("train", "learned", f"that {method.name} was trained on")
            yield Use("validation", "selected", f"on which the training of {method.name} chose its best state")
    elif method.learns_offline(config):
        yield Use(method.learns_from, "learned", f"that {method.name} learns from offline")


def overlaps(dataset: str, data_files: DataFiles, uses: Sequence[Use], allowed: bool) -> list[str]:
    """A sentence for each pair of splits that share documents although their roles must be disjoint.

    The sentences are in the order of ``uses``. Texts that differ in case and white space only are one document. A split
    that does not exist shares none.

    Raises:
        BenchError: there is such a pair, and it is not ``allowed``; the message names the first document.
    """
    pairs = [pair for pair in itertools.permutations(uses, 2) if (pair[0].role, pair[1].role) in DISJOINT]
    names = {use.split for pair in pairs for use in pair}
    splits = {name: _documents(dataset, data_files, name) for name in names}
    sentences: dict[tuple[str, str], str] = {}  # one for each pair of splits
    for one, other in pairs:
        sentences.setdefault((one.split, other.split), _overlap(one, other, splits[one.split], splits[other.split]))
    shared = [sentence for sentence in sentences.values() if sentence]
    if shared and not allowed:
        raise BenchError(
            f"{shared[0]} Use disjoint data, or state allow_overlap: true in the experiment, which marks every row."
        )
    return shared


def _overlap(one: Use, other: Use, left: Mapping[str, Document], right: Mapping[str, Document]) -> str:
    """What two uses of splits share, in words; "" if they share nothing."""
    if one.split == other.split:
        return f"{one.split} is both the split {one.words} and the split {other.words}." if left else ""
    shared = [document for text, document in left.items() if text in right]
    if not shared:
        return ""
    document = shared[0]
    name = document.title or " ".join(document.text.split())
    return (
        f"{one.split}, the split {one.words}, and {other.split}, the split {other.words}, share {len(shared)} of "
        f"{len(left)} documents; the first one is {document.id} ({name[:60]!r})."
    )


def _documents(dataset: str, data_files: DataFiles, split: str) -> dict[str, Document]:
    """The documents of a split by their text without differences in case and white space; {} without the split."""
    try:
        entries = split_entries(dataset, split, data_files)
    except MissingSplit:
        return {}
    documents: dict[str, Document] = {}
    for entry in entries:
        documents.setdefault(" ".join(entry.document.text.split()).casefold(), entry.document)
    return documents
