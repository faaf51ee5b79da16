"""Roles of the splits in an experiment, and the documents that are shared between roles that must be disjoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
    dataset: str | None = None
    """The data set, by name or path; None: the one that is streamed."""

    @property
    def name(self) -> str:
        """Name of the split in a message."""
        return self.split if self.dataset is None else f"{Path(self.dataset).name}'s {self.split}"


def uses_of(method: type[Method], config: MethodConfig) -> Iterator[Use]:
    """The splits that a method uses before its streams."""
    if issubclass(method, MetaTrained):
        if training_of(config).steps:
            dataset = training_of(config).dataset
            yield Use("train", "learned", f"that {method.name} was trained on", dataset)
            words = f"on which the training of {method.name} chose its best state"
            yield Use("validation", "selected", words, dataset)
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
    used = {use.name: use for pair in pairs for use in pair}
    splits = {
        name: _documents(use.dataset or dataset, {} if use.dataset else data_files, use.split)
        for name, use in used.items()
    }
    sentences: dict[tuple[str, str], str] = {}  # one for each pair of splits
    for one, other in pairs:
        sentences.setdefault((one.name, other.name), _overlap(one, other, splits[one.name], splits[other.name]))
    shared = [sentence for sentence in sentences.values() if sentence]
    if shared and not allowed:
        raise BenchError(
            f"{shared[0]} Use disjoint data, or state allow_overlap: true in the experiment, which marks every row."
        )
    return shared


def _overlap(one: Use, other: Use, left: Mapping[str, Document], right: Mapping[str, Document]) -> str:
    """What two uses of splits share, in words; "" if they share nothing."""
    if one.name == other.name:
        return f"{one.name} is both the split {one.words} and the split {other.words}." if left else ""
    shared = [document for text, document in left.items() if text in right]
    if not shared:
        return ""
    document = shared[0]
    name = document.title or " ".join(document.text.split())
    return (
        f"{one.name}, the split {one.words}, and {other.name}, the split {other.words}, share {len(shared)} of "
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
