"""Reading the entries of a split as its recipe declares them: from rows of any format to documents with questions."""

from __future__ import annotations

import ast
import contextlib
import datetime
import decimal
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.data import tables, times
from bench.data.documents import Document, Entry, GoldQuestion, Question, document_id, stream_hash
from bench.data.layouts import LAYOUTS
from bench.data.recipe import SPLITS, Column, Hub, Recipe, find, rows_of
from bench.data.scripts import mostly_unspaced
from bench.data.tables import Number, Row
from bench.errors import BenchError, nearest
from bench.hashing import cached_by_content

DataFiles = Mapping[str, Sequence[str]]
"""Split -> the user's files for it (``--data-files SPLIT=FILE[,FILE...]``)."""

NO_FILES: DataFiles = {}
NO_ANSWER = ("",)
"""The gold answers of a question that the document does not answer, where such questions are kept (SQuAD 2.0)."""
_LISTED = re.compile(r"""\s*(\[\s*(['"\d-]|null|None).*\]|\[\s*\]|\{\s*['"].*\}|(np\.)?array\(.*\))\s*""", re.DOTALL)
"""Text cells that look like a list, mapping or array."""
_ITEM = re.compile(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*"|-?[\d.]+([eE][+-]?\d+)?""", re.DOTALL)
"""An item of a list in a text cell: one string or number."""
_LONGEST_NUMBER = 30
"""Most digits before or after the point with which a number is spelt out."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class MissingSplit(BenchError):
    """The dataset exists, but neither its source nor the user's files contain this split."""


@dataclass(frozen=True)
class SplitData:
    """The entries of a split in file order, and remarks on them for readers of a board."""

    entries: tuple[Entry, ...]
    remarks: tuple[str, ...]


def read_split(recipe: Recipe, split: str, data_files: DataFiles = NO_FILES) -> SplitData:
    """Read a split.

    Rows of equal texts become one entry with the title, time and group of the first row and the questions of all, in
    order; a repeated question counts once. The user's files replace the whole source of the recipe: a split for which
    there are none does not exist.

    Raises:
        MissingSplit: there is no such split; the message says how to provide it.
        BenchError: a file is missing, or a row is wrong; the message names the file, the row (from 1) and the column.
    """
    if recipe.terms and recipe.name not in os.environ.get("OAB_ACCEPT", "").split(","):
        raise BenchError(f"{recipe.name}: {recipe.terms} If you have agreed to this, set OAB_ACCEPT={recipe.name}.")
    for name in {split, *data_files}:
        if name not in SPLITS:
            raise BenchError(f"There is no split {name!r}.{nearest(name, SPLITS)}")
    of_layout: list[str] = []
    if split in data_files:
        rows = _file_rows(recipe, split, [Path(file) for file in data_files[split]], of_layout)
    elif not data_files and recipe.source and split in recipe.declared:
        place = recipe.declared[split]
        if recipe.source.hub:
            rows = _hub_rows(recipe, recipe.source.hub, split, place)
        else:
            source, span = rows_of(place)
            paths = [recipe.folder / name for name in (recipe.source.files or {})[source]]
            rows = itertools.islice(_file_rows(recipe, source, paths, of_layout), span.start, span.stop)
    else:
        limit = f" (--data-files names {', '.join(data_files)} only)" if data_files else ""
        remedy = f"provide it with --data-files {split}=FILE"
        if not data_files and recipe.source is not None:
            remedy = f"add it to the recipe (--data-files {split}=FILE would take the place of all its splits)"
        raise MissingSplit(f"{recipe.name} has no split {split!r}{limit}: {remedy}.")
    rows, left_out = _joined(recipe, split, rows) if recipe.join else (rows, "")
    data = _merge(recipe, split, rows, of_layout)
    if (difference := _unexpected(recipe, split, data.entries)) and split not in data_files:
        raise BenchError(f"{difference} The source has changed, or was not read whole: read it again.")
    return replace(data, remarks=(*data.remarks, *filter(None, [left_out, difference])))


def _joined(recipe: Recipe, split: str, rows: Iterable[Row]) -> tuple[Iterator[Row], str]:
    """The rows of questions, each with the columns of its document, and a remark on those that are left out.

    Rows without a question are documents. They come after the questions, so that only those that are asked about are
    kept in memory.
    """
    assert recipe.join is not None
    on, key, column = recipe.join.question, recipe.join.document, recipe.column("question")
    asked: list[tuple[str, str, Mapping[str, Any]]] = []
    documents: dict[str, Row | None] = {}
    is_document = False
    for where, row in rows:
        name = on if column in row else key
        if not (value := _text(f"{where}, column {name}", row.get(name))):
            raise BenchError(f"{where} has no value of {name!r}, by which questions and documents are joined.")
        if column in row:
            if is_document:
                raise BenchError(f"{where} is a question after documents. {_questions_first(split)}")
            asked.append((where, value, row))
            documents.setdefault(value)
            continue
        is_document = True
        if documents.get(value, row) is None:
            documents[value] = where, row
    if not asked:
        raise BenchError(f"No row of {split} has the column {column!r}, a question. {_questions_first(split)}")
    lost = [(where, value) for where, value, _ in asked if documents[value] is None]
    if lost and (recipe.join.missing is None or len(lost) == len(asked)):
        where, value = lost[0]
        missing = sum(found is None for found in documents.values())
        raise BenchError(
            f"{where}: its document, {key} = {value[:60]!r}, is not there ({missing} of {len(documents)} "
            f"are missing). {_questions_first(split)}"
        )
    remark = f"{len(lost)} of {len(asked)} questions of {split} are left out: their documents are not in the files."
    joined = (
        (f"{where} with {document[0]}", {**document[1], **row})
        for where, value, row in asked
        if (document := documents[value]) is not None
    )
    return joined, remark if lost else ""


def _questions_first(split: str) -> str:
    return f"Name the questions first and then all files of documents: --data-files {split}=QUESTIONS,DOCUMENTS[,...]."


def _unexpected(recipe: Recipe, split: str, entries: Sequence[Entry]) -> str:
    """How the numbers of a split differ from the published ones, in a sentence; "" if they do not."""
    counts = {str(name): value for name, value in recipe.expected.items()}.get(split)
    if counts is None:
        return ""
    found = {"documents": len(entries), "questions": sum(len(entry.questions) for entry in entries)}
    published = {name: value for name, value in counts.model_dump().items() if value is not None}
    if all(found[name] == value for name, value in published.items()):
        return ""
    here, there = (" and ".join(f"{numbers[name]:,} {name}" for name in published) for numbers in (found, published))
    return f"{split} of {recipe.name} has {here}; the published split has {there}."


def load_split(recipe: Recipe, split: str, data_files: DataFiles = NO_FILES) -> tuple[Entry, ...]:
    """The entries of a split, in file order; raises as :func:`read_split`."""
    return read_split(recipe, split, data_files).entries


@cached_by_content(8)
def split_data(dataset: str, split: str, data_files: DataFiles) -> SplitData:
    """A split of ``dataset`` (a name or a folder): :func:`read_split`, with its last results cached."""
    return read_split(find(dataset), split, data_files)


def split_entries(dataset: str, split: str, data_files: DataFiles) -> tuple[Entry, ...]:
    """The entries of a split of ``dataset``, from :func:`split_data`."""
    return split_data(dataset, split, data_files).entries


@cached_by_content(8)
def split_hash(dataset: str, split: str, data_files: DataFiles) -> str:
    """Hash of the entries of a split; "" if the dataset has no such split."""
    try:
        return stream_hash(split_entries(dataset, split, data_files))
    except MissingSplit:
        return ""


def _hub_rows(recipe: Recipe, hub: Hub, split: str, place: str) -> Iterator[Row]:
    try:
        rows = tables.huggingface().load_dataset(hub.id, hub.config, revision=hub.revision, split=place)
    except Exception as error:  # the hub client raises errors of several libraries, all of which mean no data
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise BenchError(
            f"{hub.id} (revision {hub.revision[:8]}) did not load from the hub: {type(error).__name__}: {reason}. "
            f"Without a network, use local files: --data-files {split}=FILE, or for tune-qa and several datasets "
            f"{recipe.name}=FOLDER."
        ) from error
    return ((f"{hub.id} {place}, row {number}", row) for number, row in enumerate(rows, 1))


def _file_rows(recipe: Recipe, split: str, paths: Sequence[Path], remarks: list[str]) -> Iterator[Row]:
    for path in paths:
        if not os.path.exists(path):  # False for a name that is too long, too
            raise BenchError(
                f"{path} is not a file: put the data of {recipe.name} there, or name other files with --data-files "
                f"(one --data-files SPLIT=FILE for each file whose name contains a comma)."
            )
    if recipe.format in LAYOUTS:
        yield from LAYOUTS[recipe.format](paths, split, remarks)
        return
    for path in paths:
        if recipe.format == "text":
            if tables.suffix(path) in tables.TABLES:
                raise BenchError(f"{path} is a table, no plain text. Use a recipe with format: rows or documents.")
            yield from tables.texts(path, recipe.characters)
        elif recipe.format == "squad":
            yield from _squad_rows(recipe, path, split)
        else:
            yield from tables.rows(path, split)


def _squad_rows(recipe: Recipe, path: Path, split: str) -> Iterator[Row]:
    """Flat rows as they are; the nested JSON of SQuAD, or its articles, as one row per paragraph."""
    for where, row in tables.rows(path, split):
        if not row.keys() & {"data", "paragraphs"} or recipe.column("text") in row:
            yield where, row
            continue
        try:
            paragraphs = [
                {
                    recipe.column("questions"): None,
                    **({"title": article["title"]} if "title" in article else {}),
                    **paragraph,
                }
                for article in row.get("data", [row])
                for paragraph in article["paragraphs"]
            ]
        except (TypeError, KeyError):
            raise BenchError(f"{path} is not SQuAD JSON: it needs data[*].paragraphs[*], each a mapping.") from None
        within = path if "data" in row else where
        yield from ((f"{within}, paragraph {number}", paragraph) for number, paragraph in enumerate(paragraphs, 1))


def _entry(recipe: Recipe, where: str, row: Mapping[str, Any]) -> Entry:
    """One row as an entry, with all, one or none of the questions about its document."""
    text = _cell(recipe, where, row, "text", required=True)
    if not text.strip():
        raise BenchError(f"{where}, column {recipe.column('text')}: the document is empty.")
    time = _time(recipe, where, row, "timestamp", recipe.timestamp_format)
    document = Document(document_id(text), text, _cell(recipe, where, row, "title"), time)
    nested = recipe.format in ("documents", *LAYOUTS) or (
        recipe.format == "squad" and recipe.column("questions") in row
    )
    questions: tuple[GoldQuestion, ...] = ()
    if nested:
        if recipe.column("questions") not in row:
            raise _no_column(recipe, where, row, "questions")
        items = row[recipe.column("questions")]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise BenchError(
                f"{where}, column {recipe.column('questions')}: expected a list of questions, [] for none."
            )
        questions = tuple(
            _question(recipe, f"{where}, question {number}", item) for number, item in enumerate(items, 1)
        )
    elif recipe.format != "text":
        questions = (_question(recipe, where, row),)
    return Entry(document, questions, _facts(recipe, where, row, text), _cell(recipe, where, row, "group"))


def _question(recipe: Recipe, where: str, row: Mapping[str, Any]) -> GoldQuestion:
    """A question, with the id "" if it has none, and without answers if it has none and is to be left out."""
    text = _cell(recipe, where, row, "question", required=True).strip()
    if not text:
        raise BenchError(f"{where}, column {recipe.column('question')}: the question is empty.")
    answers = _answers(recipe, where, row)
    if recipe.unanswerable == "keep":
        answers = answers or NO_ANSWER
    if recipe.gold == "shortest":
        answers = answers and (min(answers, key=len),)
    asked = _time(recipe, where, row, "asked", recipe.asked_format)
    question = Question(_cell(recipe, where, row, "id"), text, asked)
    return GoldQuestion(question, answers, _cell(recipe, where, row, "revises") or None)


def _answers(recipe: Recipe, where: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The different answers of a question in order; none if it has none and the recipe allows that."""
    column = recipe.column("answers")
    here = f"{where}, column {column}"
    is_impossible = recipe.format == "squad" and str(row.get("is_impossible")).lower() == "true"
    if column not in row and not is_impossible:
        raise _no_column(recipe, where, row, "answers")
    raw = row.get(column)
    if isinstance(raw, dict) and "text" in raw:  # the hub's form of SQuAD: {"text": [...], "answer_start": [...]}
        raw = raw["text"]
    if is_impossible:
        raw = []
    if isinstance(raw, str) and recipe.answer_separator:
        raw = raw.split(recipe.answer_separator)
    elif isinstance(raw, str) and recipe.answer_cells == "list":
        raw = _listed(here, raw)
    elif isinstance(raw, str) and recipe.answer_cells is None and _LISTED.fullmatch(raw):
        raise BenchError(
            f"{here}: {raw[:60]} looks like a list in a text cell. Set answer_cells in the recipe: "
            f"list (a list of answers) or text (an answer in brackets)."
        )
    parts = raw if isinstance(raw, list) else [raw]
    texts = [part["text"] if isinstance(part, dict) and "text" in part else part for part in parts]
    answers = [answer.strip() for text in texts for answer in _spellings(here, text)]
    answers = list(dict.fromkeys(filter(None, answers)))
    if not answers and not recipe.unanswerable and not (recipe.format == "squad" and raw == []):
        raise BenchError(
            f"{here}: the question has no answer. If that is meant, set unanswerable: leave_out or keep in the recipe."
        )
    return tuple(answers)


def _listed(where: str, cell: str) -> list[Any]:
    """The items of a list that stands in a text cell as JSON or Python writes it; numbers as they are written."""
    text = cell.strip()
    if not text:
        return []
    with contextlib.suppress(BenchError):
        value = tables.parse_json(text, where)
        if isinstance(value, list):
            return value
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
        warnings.simplefilter("error")  # of an escape that Python does not know, so that it did not write this
        node = ast.parse(text, mode="eval").body
        sources = [ast.get_source_segment(text, item) or "" for item in getattr(node, "elts", [node])]
        if isinstance(node, ast.List) and all(map(_ITEM.fullmatch, sources)):
            return [Number(source) if source[-1] not in "'\"" else ast.literal_eval(source) for source in sources]
    raise BenchError(
        f'{where}: {cell[:60]} is not a list of texts such as ["Cologne", "Köln"]. (NumPy arrays have no commas: '
        f"convert them with tolist() first.)"
    )


def _spellings(where: str, value: Any) -> list[str]:
    """A gold answer as text; a number as it is written and without zeros at its end, so that 3.0 accepts "3"."""
    text = _text(where, value)
    if not text or not isinstance(value, Number | float | decimal.Decimal):
        return [text]
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        return [text]
    if not number.is_finite() or abs(number.adjusted()) > _LONGEST_NUMBER:
        return [text]
    plain = f"{number:f}"
    return [text, plain.rstrip("0").rstrip(".") if "." in plain else plain]


def _facts(recipe: Recipe, where: str, row: Mapping[str, Any], text: str) -> tuple[tuple[int, int], ...]:
    try:
        facts = tuple((_whole(start), _whole(end)) for start, end in row.get(recipe.column("facts")) or [])
    except (TypeError, ValueError):
        facts = ((0, 0),)
    if any(not 0 <= start < end <= len(text) for start, end in facts):
        raise BenchError(
            f"{where}, column {recipe.column('facts')}: expected [start, end] character spans of the text."
        )
    return facts


def _whole(value: Any) -> int:
    if isinstance(value, Number):
        value = float(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value % 1:
        raise ValueError
    return int(value)


def _time(recipe: Recipe, where: str, row: Mapping[str, Any], name: Column, declared: str | None) -> str:
    """A time as ISO 8601, whose format the recipe may have ``declared``; "" if there is none."""
    text = _cell(recipe, where, row, name).strip()
    if not text:
        return ""
    value = row[recipe.column(name)]
    native = value if isinstance(value, datetime.date) else text
    try:
        return times.to_iso(native, declared)
    except ValueError as error:
        key = "asked_format" if name == "asked" else "timestamp_format"
        remedy = (
            f'Write 2031-05-02, or declare its format in the recipe, e.g. {key}: "%d.%m.%Y" or epoch_milliseconds.'
            if declared is None
            else f"The recipe declares {key}: {declared}."
        )
        raise BenchError(f"{where}, column {recipe.column(name)}: {error}. {remedy}") from None


def _cell(recipe: Recipe, where: str, row: Mapping[str, Any], name: Column, required: bool = False) -> str:
    """A cell as text; "" for an optional cell that is empty or missing."""
    column = recipe.column(name)
    if column not in row:
        if required or recipe.declares(name):
            raise _no_column(recipe, where, row, name)
        return ""
    return _text(f"{where}, column {column}", row[column])


def _no_column(recipe: Recipe, where: str, row: Mapping[str, Any], name: Column) -> BenchError:
    column = recipe.column(name)
    nested = isinstance(row.get("data"), list) and recipe.format != "squad"
    hint = " The file is nested like SQuAD: use format: squad." if nested else nearest(column, row)
    if "question_sentence" in row:
        hint = " This is a weekly file of RealTimeQA: use --dataset realtimeqa_weekly."
    return BenchError(f"{where} has no column {column!r} (our {name!r}).{hint}")


def _text(where: str, value: Any) -> str:
    """Text, a number, a date or an empty cell as text. A time of midnight is a date.

    Raises:
        BenchError: the value is of another type, or the text is not one.
    """
    if value is None or (isinstance(value, float | decimal.Decimal) and value != value):
        return ""  # an empty cell of a table is read as NaN
    if isinstance(value, datetime.date):
        return times.to_iso(value, None)
    if isinstance(value, bool) or not isinstance(value, str | int | float | decimal.Decimal):
        raise BenchError(f"{where}: expected text, found {type(value).__name__}.")
    text = str(value)
    if _SURROGATE.search(text):
        raise BenchError(f"{where}: the text contains half a surrogate pair, which is not a character.")
    return text


def _merge(recipe: Recipe, split: str, rows: Iterable[Row], of_layout: Sequence[str]) -> SplitData:
    """Merge the entries of equal documents, in the order of their first rows; remarks ``of_layout`` come first."""
    documents: dict[str, Entry] = {}
    golds: dict[str, tuple[str, GoldQuestion]] = {}  # by question id, with the document's id
    places: dict[str, str] = {}
    differing = repeated = 0
    for where, row in rows:
        entry = _entry(recipe, where, row)
        if not _within(recipe, split, where, entry.document.timestamp):
            continue
        first = documents.setdefault(entry.document.id, entry)
        differing += (first.document, first.group) != (entry.document, entry.group)
        for gold in entry.questions:
            gold = gold if gold.question.id else _with_id(gold, entry.document.id, golds)
            item = (entry.document.id, gold)
            repeated += gold.question.id in golds
            if golds.setdefault(gold.question.id, item) != item:
                raise BenchError(
                    f"{where}: another question already has the id {gold.question.id!r}. Ids are unique in a split: "
                    f"change one, or leave the ids out."
                )
            places.setdefault(gold.question.id, where)
    questions: dict[str, list[GoldQuestion]] = {document: [] for document in documents}
    for document, gold in golds.values():
        questions[document].append(gold)
    entries = tuple(replace(entry, questions=tuple(questions[document])) for document, entry in documents.items())
    if not entries:
        within = " of its period" if recipe.periods else ""
        none = f"The split {split!r} of {recipe.name} contains no documents{within}: name other files."
        raise BenchError(" ".join([none, *of_layout]))
    _check_revisions(recipe, entries, places)
    revises = {identity: gold.revises for identity, (_, gold) in golds.items()}
    asked = tuple(
        replace(entry, questions=tuple(_with_chain(gold, revises) for gold in entry.questions if gold.answers))
        for entry in entries
    )
    left_out = sum(not gold.answers for _, gold in golds.values())
    return SplitData(asked, (*of_layout, *_remarks(recipe, split, asked, left_out, differing, repeated)))


def _within(recipe: Recipe, split: str, where: str, timestamp: str) -> bool:
    """True if a document belongs to the period of its split."""
    start, stop = {str(name): period for name, period in recipe.periods.items()}.get(split, (None, None))
    if start is None and stop is None:
        return True
    if not timestamp:
        raise BenchError(f"{where} has no {recipe.column('timestamp')}, by which {recipe.name} is cut into splits.")
    day = times.parse(timestamp).astimezone(datetime.UTC).date()  # as streams are ordered
    return (start is None or start <= day) and (stop is None or day < stop)


def _with_id(gold: GoldQuestion, document: str, taken: Mapping[str, tuple[str, GoldQuestion]]) -> GoldQuestion:
    """The question with an id made from its document and its text; with other answers, a second one gets another id."""
    for repetition in itertools.count():
        identity = document_id(f"{document} {gold.question.text}{f' {repetition}' if repetition else ''}")
        named = replace(gold, question=replace(gold.question, id=identity))
        if taken.get(identity, (document, named)) == (document, named):
            break
    return named


def _with_chain(gold: GoldQuestion, revises: Mapping[str, str | None]) -> GoldQuestion:
    """The question with the ids of those that the one it revises superseded."""
    chain: list[str] = []
    older = gold.revises
    while older is not None:
        chain.append(older)
        older = revises[older]
    return replace(gold, before=tuple(chain[1:])) if len(chain) > 1 else gold


def _check_revisions(recipe: Recipe, entries: Sequence[Entry], places: Mapping[str, str]) -> None:
    """Check that each revised question comes before the one that revises it, so that there are no cycles.

    Streams that are ordered by time, of documents that all have one, decide by time and then by the order of the file.
    """
    by_time = recipe.stream.order == "timestamp" and all(entry.document.timestamp for entry in entries)
    order = list(entries)
    if by_time:
        order.sort(key=lambda entry: times.parse(entry.document.timestamp))
    earlier: set[str] = set()
    for gold in (gold for entry in order for gold in entry.questions):
        if gold.revises is not None and gold.revises not in earlier:
            problem = "comes later" if gold.revises in places else "is not in the split"
            if gold.revises == gold.question.id:
                problem = "is the question itself"
            order_by = "timestamp" if by_time else "row; by timestamp with stream.order: timestamp, if no row lacks one"
            raise BenchError(
                f"{places[gold.question.id]}, question {gold.question.id!r}: it revises {gold.revises!r}, which "
                f"{problem}. A question revises an earlier one of its split (by {order_by})."
            )
        earlier.add(gold.question.id)


def _remarks(
    recipe: Recipe, split: str, entries: Sequence[Entry], left_out: int, differing: int, repeated: int
) -> Iterator[str]:
    golds = [gold for entry in entries for gold in entry.questions]
    if repeated:
        yield f"{repeated} question(s) of {split} repeat an earlier one, with its document and answers: it counts once."
    if left_out:
        yield (
            f"{left_out} question(s) of {split} without an answer are left out "
            f"(`unanswerable: keep` in the recipe scores them)."
        )
    if unanswerable := sum(gold.answers == NO_ANSWER for gold in golds):
        yield f"{unanswerable} of {len(golds)} questions of {split} have no answer: the right answer is none."
    asked = {(entry.document.id, g.question.text, g.answers, g.revises) for entry in entries for g in entry.questions}
    if others := len(golds) - len(asked):
        yield f"{others} question(s) of {split} are asked again about the same document, under another id: all count."
    if recipe.stream.group and (alone := sum(not entry.group for entry in entries)):
        yield (
            f"{alone} document(s) of {split} have no {recipe.column('group')}, by which streams are drawn: each is a "
            f"group of its own."
        )
    if differing:
        yield (
            f"{differing} row(s) of {split} repeat a document with another title, timestamp or group: its first row "
            f"counts."
        )
    if recipe.segment == "characters":
        yield "Scores of answers compare characters in scripts without spaces, as in MLQA (`segment: characters`)."
    elif mostly_unspaced(gold.answers[0] for gold in golds if gold.answers != NO_ANSWER):
        yield (
            f"Most answers of {split} are in a script without spaces, where F1 by words is exact match: "
            f"`segment: characters` in the recipe compares characters."
        )
