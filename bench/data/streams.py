"""Streams: drawn from a split by a deterministic rule, frozen as manifests, and checked when they are loaded.

The rule orders groups and documents by a hash of (purpose, dataset, split, length, name). It uses no random generator
and does not depend on the order of the groups in the file, so the same data give the same streams everywhere. A
manifest detects later changes of the data, and keeps the stream if the rule changes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pydantic

from bench import paths
from bench.data import times
from bench.data.documents import Document, Entry, Stream, stream_hash, superseded, text_key
from bench.data.reader import NO_FILES, DataFiles, MissingSplit, load_split
from bench.data.recipe import Recipe, StreamPolicy
from bench.errors import BenchError, first_problem
from bench.files import write_json
from bench.seeds import seed_for
from bench.settings import Settings

Reader = Callable[[Recipe, str, DataFiles], tuple[Entry, ...]]
"""A function that returns the entries of a split, like :func:`bench.data.reader.load_split`."""


class Manifest(Settings):
    """A frozen stream: ``datasets/<dataset>/streams/<name>.json``."""

    dataset: str
    name: str
    """``<split>-<documents>-<index>``, where documents is ``all`` for a whole split in file order."""
    documents: tuple[str, ...]
    """Document ids, in order."""
    contents: tuple[str, ...]
    """For each document, the start of a hash of the document with its questions and answers."""
    hash: str
    """:attr:`bench.data.documents.Stream.hash`."""
    source: str
    """Hash of all entries of the split, in file order."""


def stream_name(split: str, documents: int | None, index: int) -> str:
    """``test-200-0``, or ``test-all-0`` for a whole split."""
    return f"{split}-{'all' if documents is None else documents}-{index}"


def load(
    recipe: Recipe,
    split: str,
    documents: int | None,
    index: int,
    data_files: DataFiles = NO_FILES,
    read: Reader = load_split,
) -> Stream:
    """Load a stream: the frozen one if there is a manifest for these data, else drawn by the rule.

    ``read`` returns the entries of a split. Data from the recipe's own source must agree with the manifest. The user's
    files may differ: the manifest applies to them only if it was frozen from the same split.

    Raises:
        BenchError: the data differ from the manifest (the message names the first such document), or the split is
            too small.
        MissingSplit: there is no such split.
    """
    entries = read(recipe, split, data_files)
    path = _path(recipe, stream_name(split, documents, index))
    if path.exists():
        manifest = _read(path)
        if split not in data_files or manifest.source == stream_hash(entries):
            return _thaw(recipe, path, manifest, entries)
    return _draw_stream(recipe, split, documents, index, entries)


def draw(
    entries: Sequence[Entry],
    dataset: str,
    split: str,
    documents: int | None,
    index: int,
    policy: StreamPolicy,
) -> tuple[Entry, ...]:
    """The entries of stream ``index`` of n = ``documents`` documents.

    None is the whole split, in file order or, with ``policy.order: timestamp``, by time if all documents are dated.

    The groups of the split (single documents without ``policy.group``) are sorted by hash. Stream k begins with the
    first group that no earlier stream has, and takes documents of one group after another, of each at most its share of
    n among ``policy.groups``, until it has n. So streams of one length share no group. Each is then sorted by
    ``policy.order``: ``timestamp`` (ties in file order), ``grouped`` (groups as drawn, file order within a group) or
    ``random`` (by a hash of the document). With ``policy.group: alone`` stream k is the first n documents of the k-th
    group that has as many.

    Raises:
        BenchError: the split is too small, or the order is by time and a document has no timestamp.
    """
    if documents is None:
        if index:
            raise BenchError(
                f"A whole split is one stream: use 1 stream of {split!r}, or set the number of documents per stream "
                f"(--streams, --documents, --validation-documents)."
            )
        if policy.order == "timestamp" and all(entry.document.timestamp for entry in entries):
            return tuple(sorted(entries, key=lambda entry: times.parse(entry.document.timestamp)))
        return tuple(entries)

    def rank(*name: str | int) -> int:
        return seed_for("stream", dataset, split, documents, *name)

    groups: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        groups.setdefault((policy.group and entry.group) or entry.document.id, []).append(position)
    ordered = [groups[group] for group in sorted(groups, key=rank)]
    if policy.group == "alone":
        runs = [group[:documents] for group in ordered if len(group) >= documents]
        there = f"{len(runs)} groups of that length"
    else:
        runs = _whole_groups(ordered, documents, policy.groups)
        there = f"{len(entries)} documents"
        there += f" in {len(ordered)} groups" if len(ordered) < len(entries) else ""
    if index >= len(runs):
        limit = ""
        if policy.groups > 1:
            limit = f" Each stream has documents of {policy.groups} groups at least, and no group is in two streams."
        raise BenchError(
            f"{split!r} of {dataset} has {there}, too few for {index + 1} disjoint stream(s) of {documents}: use fewer "
            f"streams or documents (--streams, --documents, --validation-documents), or more data.{limit}"
        )
    run = runs[index]
    if policy.order == "timestamp":
        undated = [entries[position].document.text for position in run if not entries[position].document.timestamp]
        if undated:
            remedy = "give it one, or leave it out"
            if not any(entry.document.timestamp for entry in entries):
                remedy = "no document has one. Name the column of dates in the recipe (columns: {timestamp: NAME})"
            raise BenchError(
                f"The document of {split!r} of {dataset} that begins {undated[0][:60]!r} has no timestamp to order the "
                f"stream by: {remedy}."
            )
        run.sort(key=lambda position: (times.parse(entries[position].document.timestamp), position))
    elif policy.order == "random":
        run.sort(key=lambda position: rank(index, entries[position].document.id))
    return tuple(entries[position] for position in run)


def _whole_groups(groups: Iterable[list[int]], documents: int, fewest: int) -> list[list[int]]:
    """Streams of documents from groups that no other stream has, at least so many groups in each."""
    most = math.ceil(documents / fewest)
    streams: list[list[int]] = []
    stream: list[int] = []
    for group in groups if documents > 0 else ():
        stream += group[: min(most, documents - len(stream))]
        if len(stream) == documents:
            streams.append(stream)
            stream = []
    return streams


def build(
    recipe: Recipe, split: str, documents: int | None, count: int, data_files: DataFiles = NO_FILES
) -> list[Path]:
    """Draw streams 0 to ``count`` - 1 and freeze them, replacing earlier manifests of the same names.

    Raises:
        BenchError: as :func:`draw`; then nothing is written.
    """
    entries = load_split(recipe, split, data_files)
    source = stream_hash(entries)
    streams = [_draw_stream(recipe, split, documents, index, entries) for index in range(count)]
    for stream in streams:
        manifest = Manifest(
            dataset=recipe.name,
            name=stream.name,
            documents=tuple(entry.document.id for entry in stream.entries),
            contents=tuple(_content(entry) for entry in stream.entries),
            hash=stream.hash,
            source=source,
        )
        write_json(_path(recipe, stream.name), manifest.model_dump(mode="json"))
    return [_path(recipe, stream.name) for stream in streams]


def build_all(recipe: Recipe, data_files: DataFiles = NO_FILES) -> list[Path]:
    """Freeze the streams of every size in the recipe; with ``data_files``, only those of its splits.

    Raises:
        BenchError: the recipe has no such size; else as :func:`build`.
    """
    sizes = {split: some for split, some in recipe.stream.sizes.items() if not data_files or split in data_files}
    if not sizes:
        raise BenchError(f"{recipe.name} has no stream sizes to freeze: see stream.sizes in datasets/README.md.")
    return [
        path
        for split, some in sizes.items()
        for size in some
        for path in build(recipe, split, size.documents, size.count, data_files)
    ]


def verify(recipe: Recipe, data_files: DataFiles = NO_FILES) -> list[str]:
    """Check every manifest of a dataset against its data, and report one line for each; with files, those of theirs.

    Raises:
        BenchError: a manifest is unreadable, its data differ, or two streams of one length share a document.
    """
    report = []
    read = lru_cache(maxsize=1)(lambda split: load_split(recipe, split, data_files))  # manifests are sorted by split
    owners: dict[tuple[str, str], str] = {}
    for path in sorted((recipe.folder / "streams").glob("*.json")):
        manifest = _read(path)
        family = manifest.name.rpartition("-")[0]
        split = family.rpartition("-")[0]
        if data_files and split not in data_files:
            continue
        entries = read(split)
        stream = _thaw(recipe, path, manifest, entries)
        if manifest.source != stream_hash(entries):
            raise BenchError(
                f"{path}: the documents of the stream are unchanged, but the rest of its split, from which placebo "
                f"documents are taken, has changed. Freeze it again: {_rebuild(recipe)}."
            )
        for document in manifest.documents:
            if (other := owners.setdefault((family, document), manifest.name)) != manifest.name:
                raise BenchError(
                    f"{path}: document {document} is also in {other}. Freeze them again: {_rebuild(recipe)}."
                )
        questions = sum(len(entry.questions) for entry in stream.entries)
        report.append(f"{manifest.name}: {len(stream.entries)} documents, {questions} questions, as frozen")
    return report


def reordered(stream: Stream, order: int) -> Stream:
    """The stream's documents in another order: 0 is its own, every other number a permutation at random.

    The documents of one group keep their order, as do a question's document and the one that revises it: they take the
    places that the permutation gives to all of them, from the first on.
    """
    if order == 0:
        return stream
    kin = _kin(stream.entries)

    def rank(position: int) -> int:
        return seed_for("order", stream.dataset, stream.name, order, stream.entries[position].document.id)

    waiting: dict[str, list[Entry]] = {}
    for name, entry in zip(kin, stream.entries, strict=True):
        waiting.setdefault(name, []).append(entry)
    places = sorted(range(len(stream.entries)), key=rank)
    return replace(stream, entries=tuple(waiting[kin[position]].pop(0) for position in places))


def _kin(entries: Sequence[Entry]) -> list[str]:
    """For each entry a name that it shares with those of its group and those whose questions it supersedes."""
    names = [f"group {entry.group}" if entry.group else f"document {entry.document.id}" for entry in entries]
    owners = {gold.question.id: i for i, entry in enumerate(entries) for gold in entry.questions}
    for i, entry in enumerate(entries):
        for revised in (old for gold in entry.questions for old in gold.supersedes if old in owners):
            old, new = names[owners[revised]], names[i]
            names = [new if name == old else name for name in names]
    return names


def placebo(entries: Sequence[Entry], stream: Stream) -> tuple[Document, ...]:
    """Other documents of the split, one for each position of the stream, of the nearest length (UTF-8 bytes).

    No document comes from the stream or its groups, so none contains the answers, and none is used twice. The choice is
    greedy, in stream order.

    Raises:
        BenchError: the split has too few other documents.
    """
    return tuple(other.document for other in _others(entries, stream, stream.entries, "placebo"))


def with_irrelevant(entries: Sequence[Entry], stream: Stream, percent: int) -> Stream:
    """The stream with other documents of the split among its own: ``percent`` % as many, rounded up.

    For as many documents of the stream, drawn at random, other documents are chosen as for :func:`placebo`. Each is
    inserted before a document of the stream drawn at random, or after the last one, and has no questions. The documents
    of a smaller percentage are among those of a larger one, at the same places.

    Raises:
        BenchError: the split has too few other documents.
    """

    def draw(purpose: str, document: Document) -> int:
        return seed_for("irrelevant", purpose, stream.dataset, stream.name, document.id)

    size = len(stream.entries)
    like = sorted(stream.entries, key=lambda entry: draw("length", entry.document))[: math.ceil(percent * size / 100)]
    others = _others(entries, stream, like, f"irrelevant_{percent}")
    places = [((i, size), entry) for i, entry in enumerate(stream.entries)]
    for i, other in enumerate(others):
        places.append(((draw("place", other.document) % (size + 1), i), replace(other, questions=())))
    return replace(stream, entries=tuple(entry for _, entry in sorted(places, key=lambda item: item[0])))


def _others(entries: Sequence[Entry], stream: Stream, like: Sequence[Entry], arm: str) -> list[Entry]:
    """For each entry of ``like`` another one whose document has nearly the same length, as :func:`placebo` says."""
    own = {text_key(entry.document.text) for entry in stream.entries}
    groups = {entry.group for entry in stream.entries if entry.group}
    pool = [entry for entry in entries if entry.group not in groups and text_key(entry.document.text) not in own]
    if len(pool) < len(like):
        raise BenchError(
            f"The {arm} arm of {stream.dataset} {stream.name} needs {len(like)} documents outside the stream and its "
            f"groups, but the split has {len(pool)}: use fewer --documents or more data, or leave the arm out of the "
            f"experiment (the methods that have it, with --methods)."
        )
    rest: list[tuple[int, int, Entry]] = []
    for other in pool:
        tie = seed_for("placebo", stream.dataset, stream.name, other.document.id)
        insort(rest, (len(other.document.text.encode()), tie, other), key=lambda item: item[:2])
    others = []
    for entry in like:
        size = len(entry.document.text.encode())
        place = bisect_left(rest, size, key=lambda item: item[0])
        if place == len(rest) or (place > 0 and size - rest[place - 1][0] <= rest[place][0] - size):
            place -= 1
        others.append(rest.pop(place)[2])
    return others


def anchor(
    recipe: Recipe, data_files: DataFiles, questions: int, documents: int, read: Reader = load_split
) -> tuple[Entry, ...]:
    """The anchor set: a fixed sample of documents of the anchor split, with at most ``questions`` questions in all.

    Questions that another question of the split supersedes are left out. The set is empty if the recipe has no anchor
    split, or the data do not contain it.

    Raises:
        BenchError: the data of the split are wrong.
    """
    if recipe.anchor is None:
        return ()
    try:
        entries = read(recipe, recipe.anchor.split, data_files)
    except MissingSplit:
        return ()

    def rank(name: str) -> int:
        return seed_for("anchor", recipe.name, name)

    old = superseded(gold for entry in entries for gold in entry.questions)
    sample = sorted(entries, key=lambda entry: rank(entry.document.id))[:documents]
    current = {gold.question.id for entry in sample for gold in entry.questions} - old
    ids = set(sorted(current, key=rank)[:questions])
    return tuple(
        replace(entry, questions=tuple(gold for gold in entry.questions if gold.question.id in ids)) for entry in sample
    )


def _draw_stream(recipe: Recipe, split: str, documents: int | None, index: int, entries: Sequence[Entry]) -> Stream:
    name = stream_name(split, documents, index)
    return Stream(recipe.name, name, draw(entries, recipe.name, split, documents, index, recipe.stream))


def _thaw(recipe: Recipe, path: Path, manifest: Manifest, entries: Sequence[Entry]) -> Stream:
    by_id = {entry.document.id: entry for entry in entries}
    for position, (document, content) in enumerate(zip(manifest.documents, manifest.contents, strict=True)):
        if document not in by_id:
            problem = "is missing from the data (or its text has changed)"
        elif _content(by_id[document]) != content:
            problem = "has other questions, answers, title or timestamp in the data"
        else:
            continue
        raise BenchError(
            f"{path}: document {document} (position {position}) {problem}. Restore the data, or freeze the streams "
            f"again: {_rebuild(recipe)} (and delete those of other lengths)."
        )
    stream = Stream(recipe.name, manifest.name, tuple(by_id[document] for document in manifest.documents))
    if manifest.dataset != recipe.name or manifest.name != path.stem or stream.hash != manifest.hash:
        raise BenchError(f"{path} contradicts itself (dataset, name or hash). Freeze it again: {_rebuild(recipe)}.")
    return stream


def _read(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise BenchError(
            f"{path} is not a stream manifest. {first_problem(error, Manifest)} Freeze it again."
        ) from None
    if len(manifest.documents) != len(manifest.contents):
        raise BenchError(f"{path} is not a stream manifest (documents and contents differ in number). Freeze it again.")
    return manifest


def _content(entry: Entry) -> str:
    return stream_hash((entry,))[:16]


def _path(recipe: Recipe, name: str) -> Path:
    return recipe.folder / "streams" / f"{name}.json"


def _rebuild(recipe: Recipe) -> str:
    here = recipe.folder.parent == paths.DATASETS
    return f"{paths.PROGRAM} streams build {recipe.name if here else recipe.folder}"
