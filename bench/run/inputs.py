"""What a cell runs on: its stream, the documents to observe, the anchor set, and what its method learned offline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.contract.method import Method
from bench.data import recipe, streams
from bench.data.arms import shuffled
from bench.data.documents import Document, Entry, Stream, stream_hash
from bench.data.reader import DataFiles, split_entries
from bench.hashing import digest
from bench.run import artifacts


class Sources(pydantic.BaseModel):
    """Where a cell finds its data, model and plug-ins on this machine: never part of its identity."""

    dataset: str
    data_files: dict[str, list[str]] = {}
    model: str
    plugins: list[str] = []
    split: str
    documents: int | None
    index: int
    anchor_questions: int = 0
    anchor_documents: int = 0


@dataclass(frozen=True)
class Material:
    """What a cell runs on: its stream, the documents to observe, and the anchor set."""

    stream: Stream
    documents: tuple[Document, ...]
    anchor: tuple[Entry, ...]

    @property
    def hash(self) -> str:
        """Hash of the documents, questions and answers, and of what is observed in place of the documents."""
        return digest([self.stream.hash, stream_hash(tuple(Entry(document) for document in self.documents))])

    @property
    def anchor_hash(self) -> str:
        """Hash of the anchor set."""
        return stream_hash(self.anchor)


@lru_cache(maxsize=64)
def _material(sources_json: str, arm: str) -> Material:
    sources = Sources.model_validate_json(sources_json)
    found = recipe.find(sources.dataset)

    def read(_: recipe.Recipe, split: str, data_files: DataFiles) -> tuple[Entry, ...]:
        return split_entries(sources.dataset, split, data_files)

    loaded = streams.load(found, sources.split, sources.documents, sources.index, sources.data_files, read)
    documents = tuple(entry.document for entry in loaded.entries)
    if arm == "placebo":
        documents = streams.placebo(split_entries(sources.dataset, sources.split, sources.data_files), loaded)
    elif arm == "shuffled":
        documents = shuffled(loaded.entries)
    elif arm == "empty":
        documents = ()
    anchor: tuple[Entry, ...] = ()
    if sources.anchor_questions or sources.anchor_documents:
        anchor = streams.anchor(found, sources.data_files, sources.anchor_questions, sources.anchor_documents, read)
    return Material(loaded, documents, anchor)


def material(sources: Sources, arm: str) -> Material:
    """The stream, the documents to observe on this arm, and the anchor set."""
    return _material(sources.model_dump_json(), arm)


def offline_entries(method: type[Method], sources: Sources) -> tuple[Entry, ...]:
    """The split that the method may learn from offline, without the anchor's documents.

    Raises:
        MissingSplit: the data set, or the files given for it, lack that split.
    """
    held_out = {entry.document.id for entry in material(sources, "stream").anchor}
    entries = split_entries(sources.dataset, method.learns_from, sources.data_files)
    return tuple(entry for entry in entries if entry.document.id not in held_out)


def trained(method: type[MetaTrained], config: Any, sources: Sources, runs: Path) -> Path | None:
    """The artifact that holds what the method was meta-trained to; None for no steps: the learner as constructed.

    Raises:
        BenchError: there is none for this base, data and settings.
    """
    if not config.training.steps:
        return None
    wanted = artifacts.identify(method, config, sources.dataset, sources.data_files, sources.model)
    return artifacts.find(wanted, (artifacts.COMMITTED, runs / artifacts.FOLDER))


def train_hash(method: type[Method], config: MethodConfig, sources: Sources, runs: Path) -> str:
    """Hash of what the method learned or learns from offline, "" for one that does not."""
    if issubclass(method, MetaTrained):
        folder = trained(method, config, sources, runs)
        return artifacts.weights_hash(folder) if folder else ""
    return stream_hash(offline_entries(method, sources)) if method.learns_offline(config) else ""
