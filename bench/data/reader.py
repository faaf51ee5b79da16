"""From a recipe to the entries of a split: every format ends in one list of documents with their questions.

JSON lines and CSV are read with the standard library and not with the builders of Hugging Face ``datasets``, because
those guess a type per column: a date among the answers would come back as a time of day, "007" as 7, "NA" as nothing.
Parquet and the hub carry their types, so ``datasets`` reads them.
"""

from __future__ import annotations

import csv
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from bench.data.documents import Document, Entry, GoldQuestion, Question, document_id
from bench.data.recipe import SPLITS, Column, Hub, Recipe, find, rows_of
from bench.errors import BenchError, nearest

DataFiles = Mapping[str, Sequence[str]]
"""Split -> files that the user gave for it (``--data-files SPLIT=FILE[,FILE...]``)."""

Row = tuple[str, Mapping[str, Any]]
"""Where a row is (for error messages) and its cells by the names of the data."""

NO_FILES: DataFiles = {}
_SURROGATE = re.compile("[\ud800-\udfff]")


class MissingSplit(BenchError):
    """The dataset is known, but neither its source nor the files given hold this split."""


def load_split(recipe: Recipe, split: str, data_files: DataFiles = NO_FILES) -> tuple[Entry, ...]:
    """The documents of a split in file order, equal texts merged (their questions in order, repeats of one id dropped).

    Files given by the user replace the source of the recipe altogether: splits they do not name do not exist then.

    Raises:
        MissingSplit: there is no such split; the message says how to give it.
        BenchError: a file is missing, or a row is wrong (the message names the file, the row from 1 and the column).
    """
    for name in {split, *data_files}:
        if name not in SPLITS:
            raise BenchError(f"There is no split {name!r}.{nearest(name, SPLITS)}")
    if split in data_files:
        rows = _file_rows(recipe, [Path(file) for file in data_files[split]])
    elif not data_files and recipe.source and split in recipe.declared:
        place = recipe.declared[split]
        if recipe.source.hub:
            rows = _hub_rows(recipe, recipe.source.hub, place)
        else:
            source, chosen = rows_of(place)
            path = recipe.folder / (recipe.source.files or {})[source]
            rows = islice(_file_rows(recipe, [path]), chosen.start, chosen.stop)
    else:
        given = f" (files were given for {', '.join(data_files)} only)" if data_files else ""
        raise MissingSplit(f"{recipe.name} has no split {split!r}{given}: give it with --data-files {split}=FILE.")
    entries = _merge((where, _entry(recipe, where, row)) for where, row in rows)
    if not entries:
        raise BenchError(f"The split {split!r} of {recipe.name} holds no documents.")
    return entries


def split_entries(dataset: str, split: str, data_files: DataFiles) -> tuple[Entry, ...]:
    """What :func:`load_split` gives for a data set by name or folder, read once per process."""
    return _read_once(dataset, split, json.dumps({name: list(paths) for name, paths in sorted(data_files.items())}))


@lru_cache(maxsize=8)
def _read_once(dataset: str, split: str, files: str) -> tuple[Entry, ...]:
    return load_split(find(dataset), split, json.loads(files))


def _hub_rows(recipe: Recipe, hub: Hub, place: str) -> Iterator[Row]:
    try:
        rows = _huggingface().load_dataset(hub.id, hub.config, revision=hub.revision, split=place)
    except Exception as error:  # the hub client raises errors of several libraries; all mean that the data did not come
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise BenchError(
            f"{hub.id} (revision {hub.revision[:8]}) did not load from the hub: {type(error).__name__}: {reason}. "
            f"Without a network, give local files: --dataset {recipe.name} --data-files test=FILE."
        ) from error
    return ((f"{hub.id} {place}, row {number}", row) for number, row in enumerate(rows, 1))


def _file_rows(recipe: Recipe, paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        if not path.is_file() and not (recipe.format == "text" and path.is_dir()):
            raise BenchError(
                f"{path} is not a file: put the data of {recipe.name} there, or give others (--data-files)."
            )
        try:
            if recipe.format == "text":
                yield from _texts(path)
            elif recipe.format == "squad" and path.suffix == ".json":
                yield from _squad_paragraphs(path)
            elif path.suffix == ".csv":
                yield from _csv_rows(path)
            elif path.suffix == ".parquet":
                yield from _parquet_rows(path)
            else:
                yield from _json_rows(path)
        except UnicodeDecodeError:
            raise BenchError(f"{path} is not UTF-8 text: convert it first.") from None


def _texts(path: Path) -> Iterator[Row]:
    """Each file is a document, a folder stands for its .txt files; ``Author_Title_1864.txt`` has title and year."""
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        title, year = re.fullmatch(r"(.*?)(?:_(\d{4}))?", file.stem, re.DOTALL).groups()  # type: ignore[union-attr]
        text = file.read_text(encoding="utf-8-sig")
        yield str(file), {"text": text, "title": title.replace("_", " "), "timestamp": year or ""}


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}, row {number}", _json(line, f"{path}, row {number}")


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BenchError(f"{where} is not valid JSON (column {error.colno}: {error.msg}).") from None
    if not isinstance(value, dict):
        raise BenchError(f"{where} is not a JSON object with one key per column.")
    return value


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of more than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        number = 0
        try:
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    header = len(reader.fieldnames or ())
                    raise BenchError(f"{path}, row {number} does not have the {header} cells of the header.")
                yield f"{path}, row {number}", row
        except csv.Error as error:
            raise BenchError(f"{path}, row {number + 1} is not valid CSV: {error}.") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    datasets = _huggingface()
    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        raise BenchError(f"{path} is not readable Parquet: {error.__cause__ or error}.") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _huggingface() -> Any:
    return import_module("datasets")  # by name: a type checker would take the project's own folder for it


def _squad_paragraphs(path: Path) -> Iterator[Row]:
    """The nested JSON of SQuAD 1.1, one row per paragraph, counted through all articles."""
    articles: Any = _json(path.read_text(encoding="utf-8-sig"), str(path)).get("data")
    try:
        paragraphs = [
            {**paragraph, "title": article["title"]} for article in articles for paragraph in article["paragraphs"]
        ]
    except (TypeError, KeyError):
        raise BenchError(f"{path} is not SQuAD JSON: it needs data[*].title and data[*].paragraphs[*].") from None
    yield from ((f"{path}, paragraph {number}", row) for number, row in enumerate(paragraphs, 1))


def _entry(recipe: Recipe, where: str, row: Mapping[str, Any]) -> Entry:
    """One row as an entry with all, one or none of its document's questions."""
    text = _cell(recipe, where, row, "text", required=True)
    if not text.strip():
        raise BenchError(f"{where}, column {recipe.column('text')}: the document is empty.")
    document = Document(
        document_id(text),
        text,
        _cell(recipe, where, row, "title"),
        _cell(recipe, where, row, "timestamp"),
    )
    nested = recipe.format == "documents" or (recipe.format == "squad" and recipe.column("questions") in row)
    if recipe.format == "text":
        questions: tuple[GoldQuestion, ...] = ()
    elif nested:
        items = row.get(recipe.column("questions"))
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BenchError(f"{where}, column {recipe.column('questions')}: expected a list of questions.")
        questions = tuple(
            _question(recipe, f"{where}, question {number}", item, document) for number, item in enumerate(items, 1)
        )
    else:
        questions = (_question(recipe, where, row, document),)
    return Entry(document, questions, _facts(recipe, where, row, text), _cell(recipe, where, row, "group"))


def _question(recipe: Recipe, where: str, row: Mapping[str, Any], document: Document) -> GoldQuestion:
    text = _cell(recipe, where, row, "question", required=True).strip()
    if not text:
        raise BenchError(f"{where}, column {recipe.column('question')}: the question is empty.")
    raw = row.get(recipe.column("answers"))
    if isinstance(raw, dict):  # the hub's form of SQuAD: {"text": [...], "answer_start": [...]}
        raw = raw.get("text")
    if isinstance(raw, str) and recipe.answer_separator:
        raw = raw.split(recipe.answer_separator)
    parts = raw if isinstance(raw, list) else [raw]
    spoken = (_plain(part.get("text") if isinstance(part, dict) else part) for part in parts)
    answers = tuple(dict.fromkeys(answer.strip() for answer in spoken if answer and answer.strip()))
    if not answers:
        raise BenchError(f"{where}, column {recipe.column('answers')}: the question has no answer.")
    if recipe.gold == "shortest":
        answers = (min(answers, key=len),)
    identity = _cell(recipe, where, row, "id") or document_id(f"{document.id} {text}")
    return GoldQuestion(Question(identity, text), answers, _cell(recipe, where, row, "revises") or None)


def _facts(recipe: Recipe, where: str, row: Mapping[str, Any], text: str) -> tuple[tuple[int, int], ...]:
    spans = row.get(recipe.column("facts")) or []
    try:
        facts = tuple((int(start), int(end)) for start, end in spans)
    except (TypeError, ValueError):
        facts = ((0, 0),)
    if any(not 0 <= start < end <= len(text) for start, end in facts):
        raise BenchError(
            f"{where}, column {recipe.column('facts')}: expected [start, end] character spans of the text."
        )
    return facts


def _cell(recipe: Recipe, where: str, row: Mapping[str, Any], name: Column, required: bool = False) -> str:
    """A cell as text; "" for an optional one that is empty or that the data do not have."""
    column = recipe.column(name)
    if column not in row:
        if required or recipe.declares(name):
            raise BenchError(f"{where} has no column {column!r} (our {name!r}).{nearest(column, row)}")
        return ""
    text = _plain(row[column])
    if text is not None and _SURROGATE.search(text):
        raise BenchError(f"{where}, column {column}: the text holds half a surrogate pair, which is no character.")
    if text is None:
        raise BenchError(f"{where}, column {column}: expected text, found {type(row[column]).__name__}.")
    return text


def _plain(value: Any) -> str | None:
    """Text, a number, a date or nothing as text (midnight is a date); None for anything else."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return ""  # NaN is how tables say nothing
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else None


def _merge(entries: Iterable[tuple[str, Entry]]) -> tuple[Entry, ...]:
    """Entries of equal documents as one, at the place of the first."""
    documents: dict[str, Entry] = {}
    asked: dict[str, tuple[str, GoldQuestion]] = {}
    for where, entry in entries:
        documents.setdefault(entry.document.id, entry)
        for gold in entry.questions:
            here = (entry.document.id, gold)
            if asked.setdefault(gold.question.id, here) != here:
                raise BenchError(
                    f"{where}: the question id {gold.question.id!r} was already given to another question."
                )
    questions: dict[str, list[GoldQuestion]] = {document: [] for document in documents}
    for document, gold in asked.values():
        questions[document].append(gold)
    return tuple(replace(entry, questions=tuple(questions[document])) for document, entry in documents.items())
