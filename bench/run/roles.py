"""Roles of the splits in an experiment, and the documents that are shared between roles that must be disjoint."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, training_of
from bench.contract.method import Method
from bench.data.documents import text_key
from bench.data.reader import DataFiles, MissingSplit, split_entries
from bench.errors import BenchError
from bench.lm import checkpoint
from bench.run.experiment import Experiment

Role = Literal["streams", "learned", "selected", "anchor", "base"]
"""What a split is for: the streams of the board, learning offline, choices (tuning, the best state), the anchor set,
the tuning of the base."""

DISJOINT: tuple[tuple[Role, Role], ...] = (
    ("streams", "learned"),
    ("streams", "selected"),
    ("streams", "anchor"),
    ("streams", "base"),
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
    """The dataset, by name or path; None: the one that is streamed. For the role ``base``, the base."""

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


def uses_in(
    experiment: Experiment, methods: Iterable[tuple[type[Method], MethodConfig]], anchor: str | None, is_tuned: bool
) -> list[Use]:
    """The uses of splits in an experiment with these methods, each once.

    ``anchor`` is the split that its dataset has for the anchor set; ``is_tuned`` says whether a method is tuned.
    """
    uses = [Use(experiment.streams.split, "streams", "of the streams"), *uses_of_base(experiment.model)]
    for method, config in methods:
        uses += uses_of(method, config)
    if experiment.retune is not None:
        uses.append(Use("qa_train", "learned", "on which every method is retuned"))
    if experiment.tuning and is_tuned:
        uses.append(Use(experiment.tuning.split, "selected", "on which methods are tuned"))
    if anchor and (experiment.anchor.questions or experiment.anchor.documents):
        uses.append(Use(anchor, "anchor", "of the anchor set"))
    return list(dict.fromkeys(uses))


def uses_of_base(model: str) -> Iterator[Use]:
    """The splits on which a base was tuned to answer questions."""
    yield Use("qa_train", "base", "that the base was tuned on", model)
    yield Use("qa_validation", "base", "on which the tuning of the base chose its step", model)


def overlaps(dataset: str, data_files: DataFiles, uses: Sequence[Use], allowed: bool) -> list[str]:
    """A sentence for each pair of splits that share documents although their roles must be disjoint.

    The sentences are in the order of ``uses``. Texts that differ in case and white space only are one document. A split
    that does not exist shares none.

    Raises:
        BenchError: there is such a pair, and it is not ``allowed``; the message names the first document.
    """
    pairs = [pair for pair in itertools.permutations(uses, 2) if (pair[0].role, pair[1].role) in DISJOINT]
    used = {use.name: use for pair in pairs for use in pair}
    splits = {name: _documents(use, dataset, data_files) for name, use in used.items()}
    sentences: dict[tuple[str, str], str] = {}  # one for each pair of splits
    for one, other in pairs:
        sentences.setdefault((one.name, other.name), _overlap(one, other, splits[one.name], splits[other.name]))
    shared = [sentence for sentence in sentences.values() if sentence]
    if shared and not allowed:
        raise BenchError(
            f"{shared[0]} Use disjoint data, or state allow_overlap: true in the experiment, which marks every row."
        )
    return shared


def _overlap(one: Use, other: Use, left: Mapping[str, str], right: Mapping[str, str]) -> str:
    """What two uses of splits share, in words; "" if they share nothing."""
    if one.name == other.name:
        return f"{one.name} is both the split {one.words} and the split {other.words}." if left else ""
    shared = [name for key, name in left.items() if key in right]
    if not shared:
        return ""
    return (
        f"{one.name}, the split {one.words}, and {other.name}, the split {other.words}, share {len(shared)} of "
        f"{len(left)} documents; the first one is {shared[0]}."
    )


def _documents(use: Use, dataset: str, data_files: DataFiles) -> dict[str, str]:
    """The names of a split's documents by :func:`text_key`; {} without the split."""
    if use.role == "base":
        return {key: key for split, key in checkpoint.tuned_on(use.dataset or "") if split == use.split}
    try:
        entries = split_entries(use.dataset or dataset, use.split, {} if use.dataset else data_files)
    except MissingSplit:
        return {}
    documents: dict[str, str] = {}
    for document in (entry.document for entry in entries):
        title = (document.title or " ".join(document.text.split()))[:60]
        documents.setdefault(text_key(document.text), f"{document.id} ({title!r})")
    return documents
