"""Streams: drawn from a split by a rule without chance, frozen as manifests, and checked when they are loaded.

The rule orders things by a hash of (purpose, dataset, split, length, name of the thing). It depends on neither the
order of the file nor a random generator, so the same data give the same streams everywhere. A manifest protects what
was drawn against later changes of the data or of the rule.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pydantic

from bench.data.documents import Document, Entry, Stream, stream_hash, superseded
from bench.data.reader import NO_FILES, DataFiles, MissingSplit, load_split
from bench.data.recipe import Recipe, StreamPolicy
from bench.errors import BenchError
from bench.files import write_json
from bench.seeds import seed_for

Reader = Callable[[Recipe, str, DataFiles], tuple[Entry, ...]]
"""Gives the entries of a split, as :func:`bench.data.load_split` does."""


class Manifest(pydantic.BaseModel):
    """A frozen stream: ``datasets/<dataset>/streams/<name>.json``."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    dataset: str
    name: str
    """``<split>-<documents>-<index>``; documents is ``all`` for a whole split in file order."""
    documents: tuple[str, ...]
    """Document ids in order."""
    contents: tuple[str, ...]
    """For each document, the start of the hash of it with its questions and answers."""
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
    """One stream: the frozen one where there is a manifest for these data, else drawn (and the same for the same data).

    ``read`` gives the entries of a split. A manifest binds the recipe's declared source: data that differ from it are
    an error. Files that the user gave are other data by right; it holds for them only if it was frozen from the same.

    Raises:
        BenchError: the data differ from the manifest (names the first differing document), or the split is too small.
        MissingSplit: there is no such split.
    """
    entries = read(recipe, split, data_files)
    path = _path(recipe, stream_name(split, documents, index))
    if path.exists():
        manifest = _read(path)
        if split not in data_files or manifest.source == stream_hash(entries):
            return _thaw(recipe, path, manifest, entries)
    return _drawn(recipe, split, documents, index, entries)


def draw(
    entries: Sequence[Entry],
    dataset: str,
    split: str,
    documents: int | None,
    index: int,
    policy: StreamPolicy,
) -> tuple[Entry, ...]:
    """The stream number ``index`` of so many documents (None: the whole split in file order).

    The groups of the split (with ``policy.group``; else single documents) are put in hash order and laid end to end,
    and stream k is the k-th run of ``documents`` documents: the streams of one length share no document, and at most
    one group is cut at each border. The run is then ordered by ``policy.order``: ``timestamp`` (ties in file order),
    ``grouped`` (as drawn: groups shuffled, file order within) or ``random`` (hash order of the documents).

    Raises:
        BenchError: the split is too small, or ordering by time meets a document without a timestamp.
    """
    if documents is None:
        if index:
            raise BenchError(
                f"A whole split is one stream: ask for 1 stream of {split!r}, or give a number of documents."
            )
        return tuple(entries)
    if documents < 1 or (index + 1) * documents > len(entries):
        raise BenchError(
            f"{split!r} of {dataset} holds {len(entries)} documents, too few for {index + 1} disjoint stream(s) of "
            f"{documents}: ask for fewer streams or documents (--streams, --documents)."
        )

    def rank(*thing: str | int) -> int:
        return seed_for("stream", dataset, split, documents, *thing)

    groups: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        groups.setdefault((policy.group and entry.group) or entry.document.id, []).append(position)
    line = [position for group in sorted(groups, key=rank) for position in groups[group]]
    chosen = line[index * documents : (index + 1) * documents]
    if policy.order == "timestamp":
        undated = [entries[position].document.id for position in chosen if not entries[position].document.timestamp]
        if undated:
            raise BenchError(f"Document {undated[0]} ({split!r} of {dataset}) has no timestamp to order the stream by.")
        chosen.sort(key=lambda position: (entries[position].document.timestamp, position))
    elif policy.order == "random":
        chosen.sort(key=lambda position: rank(index, entries[position].document.id))
    return tuple(entries[position] for position in chosen)


def build(
    recipe: Recipe, split: str, documents: int | None, count: int, data_files: DataFiles = NO_FILES
) -> list[Path]:
    """Draw streams 0 to ``count`` - 1 and freeze them, replacing earlier manifests of these names.

    Raises:
        BenchError: as :func:`draw`; nothing is written then.
    """
    entries = load_split(recipe, split, data_files)
    source = stream_hash(entries)
    drawn = [_drawn(recipe, split, documents, index, entries) for index in range(count)]
    for stream in drawn:
        manifest = Manifest(
            dataset=recipe.name,
            name=stream.name,
            documents=tuple(entry.document.id for entry in stream.entries),
            contents=tuple(_content(entry) for entry in stream.entries),
            hash=stream.hash,
            source=source,
        )
        write_json(_path(recipe, stream.name), manifest.model_dump(mode="json"))
    return [_path(recipe, stream.name) for stream in drawn]


def build_all(recipe: Recipe, data_files: DataFiles = NO_FILES) -> list[Path]:
    """Freeze the streams of every size that the recipe names (of the splits of ``data_files``, if there are any).

    Raises:
        BenchError: the recipe names no such size; else as :func:`build`.
    """
    sizes = {split: size for split, size in recipe.stream.sizes.items() if not data_files or split in data_files}
    if not sizes:
        raise BenchError(f"{recipe.name} names no stream sizes to freeze: see stream.sizes in datasets/README.md.")
    return [
        path for split, size in sizes.items() for path in build(recipe, split, size.documents, size.count, data_files)
    ]


def verify(recipe: Recipe, data_files: DataFiles = NO_FILES) -> list[str]:
    """Check every manifest of a dataset against its data; one line for each of what was checked.

    Raises:
        BenchError: a manifest is unreadable, its data differ, or two streams of one length share a document.
    """
    report = []
    owners: dict[tuple[str, str], str] = {}
    for path in sorted((recipe.folder / "streams").glob("*.json")):
        manifest = _read(path)
        family = manifest.name.rpartition("-")[0]
        entries = load_split(recipe, family.rpartition("-")[0], data_files)
        stream = _thaw(recipe, path, manifest, entries)
        if manifest.source != stream_hash(entries):
            raise BenchError(
                f"{path}: the documents of the stream are unchanged, but others of its split are not, and placebo "
                f"documents are taken from them. Freeze it again: {_rebuild(recipe)}."
            )
        for document in manifest.documents:
            if (other := owners.setdefault((family, document), manifest.name)) != manifest.name:
                raise BenchError(
                    f"{path}: document {document} is also in {other}. Freeze them again: {_rebuild(recipe)}."
                )
        questions = sum(len(entry.questions) for entry in stream.entries)
        report.append(f"{manifest.name}: {len(stream.entries)} documents, {questions} questions, as frozen")
    return report


def placebo(entries: Sequence[Entry], stream: Stream) -> tuple[Document, ...]:
    """Other documents of the split, one for each position of the stream, as near as possible in length (UTF-8 bytes).

    None is in the stream or of a group that is, so none holds the answers; none comes twice. The choice is greedy in
    stream order.

    Raises:
        BenchError: the split has too few such documents.
    """
    taken = {entry.document.id for entry in stream.entries}
    groups = {entry.group for entry in stream.entries if entry.group}
    pool = [entry.document for entry in entries if entry.document.id not in taken and entry.group not in groups]
    if len(pool) < len(stream.entries):
        raise BenchError(
            f"The placebo arm of {stream.dataset} {stream.name} needs {len(stream.entries)} documents outside the "
            f"stream and its groups, but the split has {len(pool)}: ask for fewer --documents, or leave the arm out."
        )
    rest: list[tuple[int, int, Document]] = []
    for document in pool:
        tie = seed_for("placebo", stream.dataset, stream.name, document.id)
        insort(rest, (len(document.text.encode()), tie, document), key=lambda item: item[:2])
    chosen = []
    for entry in stream.entries:
        size = len(entry.document.text.encode())
        place = bisect_left(rest, size, key=lambda item: item[0])
        if place == len(rest) or (place > 0 and size - rest[place - 1][0] <= rest[place][0] - size):
            place -= 1
        chosen.append(rest.pop(place)[2])
    return tuple(chosen)


def anchor(
    recipe: Recipe, data_files: DataFiles, questions: int, documents: int, read: Reader = load_split
) -> tuple[Entry, ...]:
    """Old knowledge: a fixed sample of documents of the split that the recipe names, with so many questions at most.

    Questions that another one of the split supersedes are left out. Empty where the recipe names no such split, or
    the user's files do not hold it.

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
    chosen = sorted(entries, key=lambda entry: rank(entry.document.id))[:documents]
    current = {gold.question.id for entry in chosen for gold in entry.questions} - old
    kept = set(sorted(current, key=rank)[:questions])
    return tuple(
        replace(entry, questions=tuple(gold for gold in entry.questions if gold.question.id in kept))
        for entry in chosen
    )


def _drawn(recipe: Recipe, split: str, documents: int | None, index: int, entries: Sequence[Entry]) -> Stream:
    name = stream_name(split, documents, index)
    return Stream(recipe.name, name, draw(entries, recipe.name, split, documents, index, recipe.stream))


def _thaw(recipe: Recipe, path: Path, manifest: Manifest, entries: Sequence[Entry]) -> Stream:
    found = {entry.document.id: entry for entry in entries}
    for position, (document, content) in enumerate(zip(manifest.documents, manifest.contents, strict=True)):
        if document not in found:
            problem = "is missing from the data (or its text has changed)"
        elif _content(found[document]) != content:
            problem = "has other questions, answers, title or timestamp in the data"
        else:
            continue
        raise BenchError(
            f"{path}: document {document} (position {position}) {problem}. Restore the data, or freeze the streams "
            f"again: {_rebuild(recipe)} (and delete those of other lengths)."
        )
    stream = Stream(recipe.name, manifest.name, tuple(found[document] for document in manifest.documents))
    if manifest.dataset != recipe.name or manifest.name != path.stem or stream.hash != manifest.hash:
        raise BenchError(f"{path} contradicts itself (dataset, name or hash). Freeze it again: {_rebuild(recipe)}.")
    return stream


def _read(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BenchError(f"{path} is not a stream manifest ({where}: {first['msg']}). Freeze it again.") from None
    if len(manifest.documents) != len(manifest.contents):
        raise BenchError(f"{path} is not a stream manifest (documents and contents differ in number). Freeze it again.")
    return manifest


def _content(entry: Entry) -> str:
    return stream_hash((entry,))[:16]


def _path(recipe: Recipe, name: str) -> Path:
    return recipe.folder / "streams" / f"{name}.json"


def _rebuild(recipe: Recipe) -> str:
    return f"python run_bench.py streams build {recipe.name}"
