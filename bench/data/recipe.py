"""Recipes: what a dataset is and where its data come from, declared in ``datasets/<name>/dataset.yaml``.

The format is documented field by field in ``datasets/README.md``. Reading a recipe reads no data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic

from bench import paths
from bench.errors import BenchError, nearest

ROOT = paths.DATASETS
"""The folder of the datasets that come with the project."""

FILE = paths.RECIPE

Split = Literal["qa_train", "qa_validation", "train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Column = Literal["text", "title", "timestamp", "group", "facts", "questions", "id", "question", "answers", "revises"]

_RANGE = re.compile(r"(?P<source>[\w.-]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")

_SQUAD: Mapping[Column, str] = {"text": "context", "group": "title", "questions": "qas"}


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}.{nearest(str(key), cls.model_fields)}")
        return value


class Hub(_Strict):
    """A dataset on the Hugging Face hub, pinned to one commit."""

    id: str
    revision: Annotated[str, pydantic.Field(pattern="^[0-9a-f]{40}$")]
    """The commit (40 hexadecimal digits): a branch or a tag can change under a benchmark."""
    config: str | None = None


class Source(_Strict):
    """Where the data come from: the hub, or files in the recipe's folder, named by source split."""

    hub: Hub | None = None
    files: Mapping[str, str] | None = None

    @pydantic.model_validator(mode="after")
    def _one(self) -> Source:
        if (self.hub is None) == (self.files is None):
            raise ValueError("give either hub or files")
        return self


class Size(_Strict):
    """How many streams of how many documents a split is meant for."""

    documents: pydantic.PositiveInt
    count: pydantic.PositiveInt


class StreamPolicy(_Strict):
    """How streams are drawn (see :func:`bench.data.streams.draw`)."""

    group: bool = False
    """Draw whole groups (an entity, an article) instead of single documents."""
    order: Literal["timestamp", "grouped", "random"] = "random"
    sizes: Mapping[Split, Size] = {}

    @pydantic.model_validator(mode="after")
    def _grouped(self) -> StreamPolicy:
        if self.order == "grouped" and not self.group:
            raise ValueError("order: grouped needs group: true")
        return self


class Anchor(_Strict):
    """Where old knowledge comes from, which adaptation should not destroy."""

    split: Split


class Recipe(_Strict):
    """One dataset, as its ``dataset.yaml`` declares it."""

    name: str
    """The name of its folder."""
    title: str
    description: str
    language: str
    licence: str
    citation: str
    source: Source | None = None
    """None: the dataset has no data of its own and lives on ``--data-files``."""
    format: Literal["documents", "rows", "squad", "text"]
    columns: Mapping[Column, str] = {}
    """Our name of a column -> its name in the data, where they differ."""
    answer_separator: str | None = None
    """What separates the answers in a cell that holds them all as one string."""
    splits: Mapping[Split, str] = {}
    """Our split -> source split, whole or a range of its rows (``train[0:1000]``). Default: the same names."""
    gold: Literal["all", "shortest"] = "all"
    """Which reference answers count."""
    stream: StreamPolicy = StreamPolicy()
    anchor: Anchor | None = None

    _folder: Path = pydantic.PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder of the recipe; its files and its frozen streams lie there."""
        return self._folder

    @property
    def declared(self) -> Mapping[str, str]:
        """Our split -> where it is in the declared source; empty without one."""
        files = self.source.files if self.source else None
        return {str(split): place for split, place in self.splits.items()} or {split: split for split in files or {}}

    def column(self, name: Column) -> str:
        """The name of one of our columns in the data."""
        return self.columns.get(name) or (_SQUAD.get(name, name) if self.format == "squad" else name)

    def declares(self, name: Column) -> bool:
        """Whether a row without this (otherwise optional) column is an error."""
        return name in self.columns

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.source is None:
            if self.splits:
                raise ValueError("splits without a source")
            return self
        if self.source.hub and self.format == "text":
            raise ValueError("format: text reads files, not the hub")
        if self.source.hub and not self.splits:
            raise ValueError("a hub source needs splits")
        for split, place in self.declared.items():
            if split not in SPLITS:
                raise ValueError(f"files: unknown split {split!r}.{nearest(split, SPLITS)} Or map it in splits.")
            if (source := rows_of(place)[0]) not in (self.source.files or {source}):
                raise ValueError(f"splits.{split}: no file for {source!r}.{nearest(source, self.source.files or {})}")
        return self


def rows_of(place: str) -> tuple[str, slice]:
    """``train[0:1000]`` -> source split and range of its rows; ``train`` is all of them.

    Raises:
        ValueError: it is written otherwise.
    """
    match = _RANGE.fullmatch(place)
    if match is None:
        raise ValueError(f"{place!r} is not a source split: write train or train[0:1000]")
    start, stop = (int(bound) if bound else None for bound in match.group("start", "stop"))
    return match["source"], slice(start, stop)


def known() -> list[str]:
    """Names of the datasets that come with the project."""
    return paths.datasets()


def find(name: str) -> Recipe:
    """The recipe of a dataset: the name of a folder under ``datasets/``, or the path of any folder with a recipe.

    Raises:
        BenchError: there is no such dataset, or its recipe is wrong (the message names the file and the key).
    """
    for folder in (ROOT / name, Path(name)):
        if (folder / FILE).is_file():
            return read(folder)
    raise BenchError(f"There is no dataset {name!r} (nor a folder of that name with a {FILE}).{nearest(name, known())}")


def read(folder: Path) -> Recipe:
    """Read and check the recipe in a folder.

    Raises:
        BenchError: it is not YAML, or a key is unknown, missing or wrong.
    """
    import yaml

    path = folder / FILE
    try:
        recipe = Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} is not readable YAML: {' '.join(str(error).split())}.") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "top level"
        message = first["msg"].removeprefix("Value error, ")
        raise BenchError(f"{path}, {key}: {message} The format is described in datasets/README.md.") from None
    if recipe.name != folder.resolve().name:
        raise BenchError(f"{path}, name: {recipe.name!r} is not the name of its folder ({folder.resolve().name}).")
    recipe._folder = folder
    return recipe
