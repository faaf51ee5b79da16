"""Reading the entries of a split as its recipe declares them: from any format to documents with their questions.

JSON lines and CSV are read with the standard library. The builders of Hugging Face ``datasets`` guess a type for each
column and would turn a date among the answers into a timestamp, "007" into 7 and "NA" into nothing. Parquet files and
the hub carry types, so ``datasets`` reads them.
"""

from __future__ import annotations

import csv
import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from bench.data.documents import Document, Entry, GoldQuestion, Question, document_id, stream_hash
from bench.data.recipe import SPLITS, Column, Hub, Recipe, find, rows_of
from bench.errors import BenchError, nearest
from bench.hashing import cached_by_content

DataFiles = Mapping[str, Sequence[str]]
"""Split -> the user's files for it (``--data-files SPLIT=FILE[,FILE...]``)."""

Row = tuple[str, Mapping[str, Any]]
"""Location of a row (for error messages), and its cells by the column names of the data."""

NO_FILES: DataFiles = {}
_SURROGATE = re.compile("[\ud800-\udfff]")


class MissingSplit(BenchError):
    """The dataset exists, but neither its source nor the user's files contain this split."""


def load_split(recipe: Recipe, split: str, data_files: DataFiles = NO_FILES) -> tuple[Entry, ...]:
    """The entries of a split, in file order.

    Rows of equal texts become one entry with the questions of all, in order; a repeated question counts once. The
    user's files replace the whole source of the recipe: a split for which there are none does not exist.

    Raises:
        MissingSplit: there is no such split; the message says how to provide it.
        BenchError: a file is missing, or a row is wrong; the message names the file, the row (from 1) and the column.
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
            source, span = rows_of(place)
            path = recipe.folder / (recipe.source.files or {})[source]
            rows = islice(_file_rows(recipe, [path]), span.start, span.stop)
    else:
        limit = f" (--data-files names {', '.join(data_files)} only)" if data_files else ""
        raise MissingSplit(f"{recipe.name} has no split {split!r}{limit}: provide it with --data-files {split}=FILE.")
    entries = _merge((where, _entry(recipe, where, row)) for where, row in rows)
    if not entries:
        raise BenchError(f"The split {split!r} of {recipe.name} contains no documents.")
    return entries


@cached_by_content(8)
def split_entries(dataset: str, split: str, data_files: DataFiles) -> tuple[Entry, ...]:
    """The entries of a split of ``dataset`` (a name or a folder): :func:`load_split`, with its last results cached."""
    return load_split(find(dataset), split, data_files)


@cached_by_content(8)
def split_hash(dataset: str, split: str, data_files: DataFiles) -> str:
    """Hash of the entries of a split; "" if the dataset has no such split."""
    try:
        return stream_hash(split_entries(dataset, split, data_files))
    except MissingSplit:
        return ""


def _hub_rows(recipe: Recipe, hub: Hub, place: str) -> Iterator[Row]:
    try:
        rows = _huggingface().load_dataset(hub.id, hub.config, revision=hub.revision, split=place)
    except Exception as error:  # the hub client raises errors of several libraries, all of which mean no data
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise BenchError(
            f"{hub.id} (revision {hub.revision[:8]}) did not load from the hub: {type(error).__name__}: {reason}. "
            f"Without a network, use local files: --dataset {recipe.name} --data-files test=FILE."
        ) from error
    return ((f"{hub.id} {place}, row {number}", row) for number, row in enumerate(rows, 1))


def _file_rows(recipe: Recipe, paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        if not path.is_file() and not (recipe.format == "text" and path.is_dir()):
            raise BenchError(
                f"{path} is not a file: put the data of {recipe.name} there, or name other files with --data-files."
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
    """One document per file; a folder means its .txt files. ``Author_Title_1864.txt`` gives title and year."""
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
    return import_module("datasets")  # by name, because a type checker would find the project's own folder


def _squad_paragraphs(path: Path) -> Iterator[Row]:
    """The nested JSON of SQuAD 1.1, one row per paragraph, numbered across all articles."""
    articles: Any = _json(path.read_text(encoding="utf-8-sig"), str(path)).get("data")
    try:
        paragraphs = [
            {**paragraph, "title": article["title"]} for article in articles for paragraph in article["paragraphs"]
        ]
    except (TypeError, KeyError):
        raise BenchError(f"{path} is not SQuAD JSON: it needs data[*].title and data[*].paragraphs[*].") from None
    yield from ((f"{path}, paragraph {number}", row) for number, row in enumerate(paragraphs, 1))


def _entry(recipe: Recipe, where: str, row: Mapping[str, Any]) -> Entry:
    """One row as an entry, with all, one or none of the questions about its document."""
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
    texts = (_plain(part.get("text") if isinstance(part, dict) else part) for part in parts)
    answers = tuple(dict.fromkeys(answer.strip() for answer in texts if answer and answer.strip()))
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
    """A cell as text; "" for an optional cell that is empty or missing."""
    column = recipe.column(name)
    if column not in row:
        if required or recipe.declares(name):
            raise BenchError(f"{where} has no column {column!r} (our {name!r}).{nearest(column, row)}")
        return ""
    text = _plain(row[column])
    if text is not None and _SURROGATE.search(text):
        raise BenchError(
            f"{where}, column {column}: the text contains half a surrogate pair, which is not a character."
        )
    if text is None:
        raise BenchError(f"{where}, column {column}: expected text, found {type(row[column]).__name__}.")
    return text


def _plain(value: Any) -> str | None:
    """Text, a number, a date or an empty cell as text; None for anything else. A time of midnight is a date."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return ""  # an empty cell of a table is read as NaN
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else None


def _merge(entries: Iterable[tuple[str, Entry]]) -> tuple[Entry, ...]:
    """Merge the entries of equal documents, in the order of their first rows."""
    documents: dict[str, Entry] = {}
    by_id: dict[str, tuple[str, GoldQuestion]] = {}
    for where, entry in entries:
        documents.setdefault(entry.document.id, entry)
        for gold in entry.questions:
            item = (entry.document.id, gold)
            if by_id.setdefault(gold.question.id, item) != item:
                raise BenchError(f"{where}: another question already has the id {gold.question.id!r}.")
    questions: dict[str, list[GoldQuestion]] = {document: [] for document in documents}
    for document, gold in by_id.values():
        questions[document].append(gold)
    return tuple(replace(entry, questions=tuple(questions[document])) for document, entry in documents.items())
