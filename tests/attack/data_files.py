"""Mutated data files: what is read must be what an independent reading of the same file gives, or be refused."""

from __future__ import annotations

import csv
import io
import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.data.reader import load_split
from bench.data.recipe import find
from bench.errors import BenchError
from tests.attack.attacks import Try, mutate_text, mutate_value

RECIPE = "name: {}\ntitle: Attacked\ndescription: none\nlanguage: en\nlicence: CC0-1.0\ncitation: none\nformat: {}\n"


def _rows() -> list[dict[str, Any]]:
    return [
        {
            "text": f"The mill of keeper {number} burned down in {1900 + number}.",
            "title": f"Report {number}",
            "timestamp": f"2031-01-{number + 1:02}",
            "questions": [
                {
                    "id": f"q{number}-{k}",
                    "question": f"When did mill {number} burn ({k})?",
                    "answers": [str(1900 + number)],
                }
                for k in range(1 + number % 2)
            ],
        }
        for number in range(6)
    ]


def _flat_rows() -> list[dict[str, Any]]:
    return [
        {"text": row["text"], "id": question["id"], "question": question["question"], "answers": question["answers"][0]}
        for row in _rows()
        for question in row["questions"]
    ]


def _squad() -> dict[str, Any]:
    paragraphs = [
        {
            "context": row["text"],
            "qas": [
                {
                    "id": q["id"],
                    "question": q["question"],
                    "answers": [{"text": a, "answer_start": 0} for a in q["answers"]],
                }
                for q in row["questions"]
            ],
        }
        for row in _rows()
    ]
    return {"version": "1.1", "data": [{"title": f"Mill {i}", "paragraphs": [p]} for i, p in enumerate(paragraphs)]}


def _jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


Counts = tuple[int, int]
"""Different documents, and different questions about them."""


def _count(pairs: Iterator[tuple[Any, Any]]) -> Counts:
    seen = list(pairs)
    return len({text for text, _ in seen}), len({(text, question) for text, question in seen if question is not None})


def _documents_in(text: str) -> Counts:
    def pairs() -> Iterator[tuple[Any, Any]]:
        for line in text.removeprefix("\ufeff").split("\n"):
            if line.strip():
                row = json.loads(line)
                yield row["text"], None
                yield from ((row["text"], question.get("id") or question["question"]) for question in row["questions"])

    return _count(pairs())


def _rows_in(text: str) -> Counts:
    rows = (json.loads(line) for line in text.removeprefix("\ufeff").split("\n") if line.strip())
    return _count((row["text"], row.get("id") or row["question"]) for row in rows)


def _csv_in(text: str) -> Counts:
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=delimiter)
    return _count((row["text"], row.get("id") or row["question"]) for row in rows)


def _squad_in(text: str) -> Counts:
    def pairs() -> Iterator[tuple[Any, Any]]:
        content = json.loads(text.removeprefix("\ufeff"))
        for article in content if isinstance(content, list) else content.get("data", [content]):
            for paragraph in article["paragraphs"]:
                yield paragraph["context"], None
                for question in paragraph["qas"]:
                    if question["answers"] != []:  # unanswerable (SQuAD 2.0): left out, with a remark
                        yield paragraph["context"], question.get("id") or question["question"]

    return _count(pairs())


FORMATS: tuple[tuple[str, str, Callable[[Any], str], Callable[[], Any], Callable[[str], Counts]], ...] = (
    ("documents", "jsonl", _jsonl, _rows, _documents_in),
    ("rows", "jsonl", _jsonl, _flat_rows, _rows_in),
    ("rows", "csv", _csv, _flat_rows, _csv_in),
    ("rows", "tsv", lambda rows: _csv(rows, "\t"), _flat_rows, _csv_in),
    ("squad", "json", lambda data: json.dumps(data), _squad, _squad_in),
)
"""Format of the recipe, suffix, writer, valid content, and the independent count."""


def prepare(folder: Path) -> Try:
    """Mutated files of every text format, read as the test split of a recipe."""
    recipes = {}
    for format_ in {format_ for format_, *_ in FORMATS}:
        (folder / format_).mkdir()
        (folder / format_ / "dataset.yaml").write_text(RECIPE.format(format_, format_))
        recipes[format_] = find(str(folder / format_))

    def counts_of(format_: str, suffix: str, text: str) -> Counts:
        file = folder / f"data.{suffix}"
        file.write_bytes(text.encode(errors="surrogatepass"))
        entries = load_split(recipes[format_], "test", {"test": [str(file)]})
        assert not any(unicodedata.category(c) == "Cs" for entry in entries for c in entry.document.text)
        return len(entries), sum(len(entry.questions) for entry in entries)

    for format_, suffix, write, content, count in FORMATS:
        assert counts_of(format_, suffix, write(content())) == count(write(content())) == (6, 9)

    def attempt(rng: random.Random) -> str | None:
        format_, suffix, write, content, count = rng.choice(FORMATS)
        value = content()
        if rng.random() < 0.6:
            value = mutate_value(value, rng)
        try:
            text = write(value)
        except Exception:
            return None  # the mutation left nothing that this format can write
        if rng.random() < 0.5:
            text = mutate_text(text, rng)
        try:
            counts = counts_of(format_, suffix, text)
        except BenchError:
            return None
        except Exception as error:
            return f"{format_}.{suffix}: {type(error).__name__}: {error} on {text[:300]!r}"
        try:
            expected: object = count(text)
        except Exception as error:
            expected = f"{type(error).__name__}: {error}"
        return None if counts == expected else f"{format_}.{suffix}: read {counts}, not {expected}, on {text[:300]!r}"

    return attempt
