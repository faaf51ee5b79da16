"""Inputs of a cell: its stream, the documents to observe, the anchor set, and data or weights from offline learning."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pydantic

from bench import paths
from bench.answering.retune import Retune
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, training_of
from bench.contract.method import Method
from bench.data import recipe, streams
from bench.data.arms import irrelevant_percent, shuffled
from bench.data.documents import Document, Entry, Stream, stream_hash
from bench.data.prompt_format import PromptFormat
from bench.data.reader import DataFiles, split_entries
from bench.harness.token_notes import notes_tagger
from bench.hashing import cached_by_content, digest
from bench.run import artifacts


class Sources(pydantic.BaseModel):
    """Location of a cell's data, model and plug-ins on this machine; not part of the cell's key."""

    dataset: str
    data_files: dict[str, list[str]] = {}
    model: str
    hub: str | None = None
    """The base's :func:`bench.lm.checkpoint.hub_name`; a copy of it on another machine has another path."""
    plugins: list[str] = []
    split: str
    documents: int | None
    index: int
    order: int = 0
    prefix: int | None = None
    anchor_questions: int = 0
    anchor_documents: int = 0
    offload: bool = False
    """What of the base the GPUs have no room for stays in main memory."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files and folders among them that do not come with the project."""
        named = [self.dataset, self.model, *self.plugins, *itertools.chain.from_iterable(self.data_files.values())]
        return tuple(name for name in dict.fromkeys(named) if os.path.isabs(name) and not paths.comes_along(Path(name)))


@dataclass(frozen=True)
class CellInputs:
    """Inputs of a cell: its stream, the documents to observe, and the anchor set."""

    stream: Stream
    """With the irrelevant documents, if the arm inserts any."""
    documents: tuple[Document, ...]
    anchor: tuple[Entry, ...]

    @property
    def hash(self) -> str:
        """Hash of the stream (documents, questions and answers) and of the documents to observe."""
        return digest([self.stream.hash, stream_hash(tuple(Entry(document) for document in self.documents))])

    @property
    def anchor_hash(self) -> str:
        """Hash of the anchor set."""
        return stream_hash(self.anchor)


@cached_by_content(64)
def inputs_of(sources: Sources, arm: str) -> CellInputs:
    """The stream, the documents to observe on this arm, and the anchor set."""
    dataset = recipe.find(sources.dataset)

    def read_split(_: recipe.Recipe, split: str, data_files: DataFiles) -> tuple[Entry, ...]:
        return split_entries(sources.dataset, split, data_files)

    stream = streams.load(dataset, sources.split, sources.documents, sources.index, sources.data_files, read_split)
    stream = streams.reordered(stream, sources.order)
    stream = replace(stream, entries=stream.entries[: sources.prefix])
    if percent := irrelevant_percent(arm):
        stream = streams.with_irrelevant(read_split(dataset, sources.split, sources.data_files), stream, percent)
    documents = tuple(entry.document for entry in stream.entries)
    if arm == "placebo":
        documents = streams.placebo(read_split(dataset, sources.split, sources.data_files), stream)
    elif arm == "shuffled":
        documents = shuffled(stream.entries)
    elif arm == "empty":
        documents = ()
    anchor: tuple[Entry, ...] = ()
    if sources.anchor_questions or sources.anchor_documents:
        anchor = streams.anchor(
            dataset, sources.data_files, sources.anchor_questions, sources.anchor_documents, read_split
        )
    return CellInputs(stream, documents, anchor)


def offline_entries(split: str, sources: Sources) -> tuple[Entry, ...]:
    """The entries of a split that is learned from, without those of the anchor set.

    Raises:
        MissingSplit: the dataset, or the files in its place, lack that split.
    """
    held_out = {entry.document.id for entry in inputs_of(sources, "stream").anchor}
    entries = split_entries(sources.dataset, split, sources.data_files)
    return tuple(entry for entry in entries if entry.document.id not in held_out)


def artifact_folder(
    method: type[MetaTrained],
    config: MethodConfig,
    seed: int,
    sources: Sources,
    prompt: PromptFormat,
    dtype: str,
    runs: Path,
) -> Path | None:
    """The folder of the method's trained weights; None without training steps: the learner stays untrained.

    Raises:
        BenchError: there are none for this base, data, settings, prompts and seed.
    """
    if not training_of(config).steps:
        return None
    key = artifacts.key_of(method, config, seed, sources.dataset, sources.data_files, sources.model, prompt, dtype)
    return artifacts.find(key, (artifacts.COMMITTED, runs / artifacts.FOLDER))


def dependencies(method: type[Method], config: MethodConfig) -> dict[str, str]:
    """What the method depends on (:func:`bench.run.artifacts.declared_dependencies`), and the tagger of token notes.

    Raises:
        BenchError: a file, a model or a tagger cannot be found or read.
    """
    tagger = notes_tagger(method)
    return {**artifacts.declared_dependencies(method, config), **({"parts of speech": tagger} if tagger else {})}


def train_hash(
    method: type[Method],
    config: MethodConfig,
    seed: int,
    sources: Sources,
    prompt: PromptFormat,
    dtype: str,
    runs: Path,
) -> str:
    """Hash of the trained weights, or of the entries that the method learns from offline; "" if it does neither."""
    if issubclass(method, MetaTrained):
        folder = artifact_folder(method, config, seed, sources, prompt, dtype, runs)
        return artifacts.weights_hash(folder) if folder else ""
    return stream_hash(offline_entries(method.learns_from, sources)) if method.learns_offline(config) else ""


def qa_train_hash(retune: Retune | None, sources: Sources) -> str:
    """Hash of the entries whose questions the model is retuned on; "" without ``retune``."""
    return "" if retune is None else stream_hash(offline_entries("qa_train", sources))
