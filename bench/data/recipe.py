"""Recipes: the description and the source of a dataset, declared in ``datasets/<name>/dataset.yaml``.

``datasets/README.md`` documents every key. Reading a recipe reads no data.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import pydantic

from bench import paths
from bench.data.scripts import Segmentation
from bench.data.times import check_format
from bench.errors import BenchError, first_problem, nearest
from bench.files import read_yaml
from bench.settings import Settings

Split = Literal["qa_train", "qa_validation", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Column = Literal[
    "text", "title", "timestamp", "group", "facts", "questions", "id", "question", "answers", "asked", "revises"
]

_RANGE = re.compile(r"(?P<source>[\w.-]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")

_SQUAD: Mapping[Column, str] = {"text": "context", "group": "title", "questions": "qas"}


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class Hub(Settings):
    """A dataset on the Hugging Face hub, pinned to one commit."""

    id: str
    revision: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{40}$")]
    """The commit (40 hexadecimal digits), because a branch or a tag can change."""
    config: str | None = None


class Source(Settings):
    """Source of the data: the hub, or files in the recipe's folder, by source split."""

    hub: Hub | None = None
    files: Mapping[str, Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)]] | None = None
    """A file, or a list of them, for each source split."""

    @pydantic.model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.files is None):
            raise ValueError("give either hub or files")
        return self


class Size(Settings):
    """Number of streams of a split, and of documents in each."""

    documents: pydantic.PositiveInt
    count: pydantic.PositiveInt


class Join(Settings):
    """Questions and documents in different files: the columns of each that are equal if they belong together."""

    question: str
    document: str
    missing: Literal["leave_out"] | None = None
    """Treatment of questions whose document is not there. None: an error."""


class Counts(Settings):
    """Numbers of a published split."""

    documents: pydantic.PositiveInt | None = None
    questions: pydantic.PositiveInt | None = None


class StreamPolicy(Settings):
    """Rule by which streams are drawn (see :func:`bench.data.streams.draw`)."""

    group: bool | Literal["alone"] = False
    """Draw whole groups (an entity, an article) rather than single documents; ``alone``: the beginning of one group,
    for documents that build on those before them."""
    groups: pydantic.PositiveInt = 1
    """Fewest groups in a stream: of each at most its share of the stream's documents is used."""
    order: Literal["timestamp", "grouped", "random"] = "random"
    sizes: Mapping[Split, Annotated[tuple[Size, ...], pydantic.BeforeValidator(_listed)]] = {}
    """Sizes of the streams to freeze; one, or a list."""

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> StreamPolicy:
        if self.order == "grouped" and not self.group:
            raise ValueError("order: grouped needs group: true")
        return self


class Anchor(Settings):
    """Source of the anchor set: old knowledge that adaptation should not destroy."""

    split: Split


class Recipe(Settings):
    """A dataset as its ``dataset.yaml`` declares it."""

    name: str
    """The name of its folder."""
    title: str
    description: str
    language: str
    licence: str
    citation: str
    source: Source | None = None
    """None for a dataset without data, which needs ``--data-files``."""
    format: Literal[
        "documents", "rows", "squad", "text", "realtimeqa", "counterfact", "zsre", "babi", "oaks", "wikitext"
    ]
    """One of ours, or a layout of :mod:`bench.data.layouts`."""
    characters: pydantic.PositiveInt | None = None
    """Number of characters that are read of each file of format ``text``, from its first. None: all."""
    columns: Mapping[Column, str] = {}
    """Our name of a column -> its name in the data, if they differ."""
    timestamp_format: Annotated[str, pydantic.AfterValidator(check_format)] | None = None
    """Format of timestamps that are not ISO 8601 (:mod:`bench.data.times`)."""
    asked_format: Annotated[str, pydantic.AfterValidator(check_format)] | None = None
    """The same for the days on which questions are asked."""
    answer_separator: str | None = None
    """Separator of the answers in a cell that contains all of them as one string."""
    answer_cells: Literal["text", "list"] | None = None
    """Content of an answer cell in brackets: an answer, or a list of answers. None: such a cell is an error."""
    unanswerable: Literal["leave_out", "keep"] | None = None
    """Treatment of questions without an answer. None: left out with format ``squad``, an error with the others."""
    splits: Mapping[Split, str] = {}
    """Our split -> source split, or a range of its rows (``train[0:1000]``). Default: the same names."""
    join: Join | None = None
    periods: Mapping[Split, tuple[datetime.date | None, datetime.date | None]] = {}
    """Our split -> the day from which, and that before which, its documents are; others are left out."""
    expected: Mapping[Split, Counts] = {}
    """What a published split has. Another number is an error from the hub, and a note with the user's files."""
    terms: str | None = None
    """What a user must have agreed to; the environment variable OAB_ACCEPT then names the dataset."""
    gold: Literal["all", "shortest"] = "all"
    """Reference answers that count."""
    segment: Segmentation = "words"
    """Tokens of F1: words, or characters in scripts without spaces."""
    stream: StreamPolicy = StreamPolicy()
    anchor: Anchor | None = None

    _folder: Path = pydantic.PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder of the recipe, which also contains its files and its frozen streams."""
        return self._folder

    @property
    def declared(self) -> Mapping[str, str]:
        """Our split -> source split, or a range of its rows; empty if there is no source."""
        files = self.source.files if self.source else None
        return {str(split): place for split, place in self.splits.items()} or {split: split for split in files or {}}

    def column(self, name: Column) -> str:
        """The name that one of our columns has in the data."""
        return self.columns.get(name) or (_SQUAD.get(name, name) if self.format == "squad" else name)

    def declares(self, name: Column) -> bool:
        """True if the recipe lists this column; then a row without it is an error, even if it is optional."""
        return name in self.columns

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.characters and self.format != "text":
            raise ValueError("characters needs format: text")
        if self.join and self.format != "rows":
            raise ValueError("join needs format: rows")
        if self.answer_separator == "" or (self.answer_separator and self.answer_cells):
            raise ValueError("answer_separator is a text that is not empty, and excludes answer_cells")
        if self.source is None:
            if self.splits:
                raise ValueError("splits without a source")
            return self
        if self.source.hub and self.format not in ("documents", "rows", "squad"):
            raise ValueError(f"format: {self.format} reads files, not the hub")
        if self.source.hub and not self.splits:
            raise ValueError("a hub source needs splits")
        for split, place in self.declared.items():
            if split not in SPLITS:
                raise ValueError(f"files: unknown split {split!r}.{nearest(split, SPLITS)} Or map it in splits.")
            if (source := rows_of(place)[0]) not in (self.source.files or {source}):
                raise ValueError(f"splits.{split}: no file for {source!r}.{nearest(source, self.source.files or {})}")
        return self


def rows_of(place: str) -> tuple[str, slice]:
    """The source split and the range of rows in ``train[0:1000]``; ``train`` alone means all rows.

    Raises:
        ValueError: ``place`` has another form.
    """
    match = _RANGE.fullmatch(place)
    if match is None:
        raise ValueError(f"{place!r} is not a source split: write train or train[0:1000]")
    start, stop = (int(bound) if bound else None for bound in match.group("start", "stop"))
    return match["source"], slice(start, stop)


def find(name: str) -> Recipe:
    """The recipe of a dataset, given the name of a folder under ``datasets/`` or the path of any folder with a recipe.

    Raises:
        BenchError: there is no such dataset, or its recipe is wrong; the message names the file and the key.
    """
    for folder in paths.places(name, paths.DATASETS, paths.datasets()):
        if os.path.isfile(folder / paths.RECIPE):  # False for a name that is too long, too
            return read(folder)
    raise BenchError(
        f"There is no dataset {name!r}, and no folder of that name with a {paths.RECIPE}."
        f"{nearest(name, paths.datasets())}"
    )


def read(folder: Path) -> Recipe:
    """Read and check the recipe in a folder.

    Raises:
        BenchError: the file is not YAML, or a key is unknown, missing or wrong.
    """
    path = folder / paths.RECIPE
    try:
        recipe = Recipe.model_validate(read_yaml(path))
    except pydantic.ValidationError as error:
        problem = first_problem(error, Recipe)
        raise BenchError(f"{path}: {problem} The format is described in datasets/README.md.") from None
    if recipe.name != folder.resolve().name:
        raise BenchError(
            f"{path}: name = {recipe.name!r}: this is not the name of its folder, {folder.resolve().name}."
        )
    recipe._folder = folder
    return recipe
