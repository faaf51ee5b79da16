"""Rows of data files, whatever their format: JSON, CSV as programs and spreadsheets write it, Parquet, saved datasets.

Nothing is reinterpreted. The builders of Hugging Face ``datasets`` guess a type for each column of a text file and
would turn a date among the answers into a timestamp, "007" into 7 and "NA" into nothing; here a cell of CSV is text,
and a number of JSON is the text that stands in the file (:class:`Number`). Parquet and saved datasets carry types.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from bench.errors import BenchError

Row = tuple[str, Mapping[str, Any]]
"""Location of a row (for error messages), and its cells by the column names of the data."""

JSON, CSV, ARCHIVE = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv"), ".filtered"
TABLES = (*JSON, *CSV, ".parquet")
GZIP = (".gz", ".gzip")
KINDS = ".jsonl, .json, .csv or .tsv (also .gz), .parquet, or a folder written by save_to_disk"


class Number(str):
    """A number as it is written in JSON."""


def rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a file, or of a folder written by ``save_to_disk``; of its splits, the one named ``split``.

    Raises:
        BenchError: the file is missing, cut short, or of another kind than its suffix says; or a row is wrong. The
            message names the file and the row (from 1).
    """
    kind = suffix(path)
    if path.is_dir():
        return _saved_rows(path, split)
    if kind in CSV:
        return _csv_rows(path, "\t" if kind == ".tsv" else None)
    if kind == ".parquet":
        return _parquet_rows(path)
    if kind in JSON:
        return _json_rows(path)
    if kind == ARCHIVE:
        return _archive_rows(path)
    raise BenchError(f"{path} is of a kind that is not read, or lacks a suffix. Kinds that are read: {KINDS}.")


def texts(path: Path, characters: int | None = None) -> Iterator[Row]:
    """One row per plain text file, with its first ``characters``; a folder means its .txt files, also packed ones.

    ``Author_Title_1864.txt`` gives title and year.

    Raises:
        BenchError: the file is missing or not UTF-8.
    """
    files = sorted(file for file in path.iterdir() if suffix(file) == ".txt") if path.is_dir() else [path]
    for file in files:
        stem = _unpacked(file).stem
        title, year = re.fullmatch(r"(.*?)(?:_(?!0000)(\d{4}))?", stem, re.DOTALL).groups()  # type: ignore[union-attr]
        with open_text(file) as lines:
            text = lines.read(-1 if characters is None else characters)
        yield str(file), {"text": text, "title": title.replace("_", " "), "timestamp": year or ""}


def parse_json(text: str, where: str) -> Any:
    """A value of JSON, with each number as a :class:`Number`.

    Raises:
        BenchError: it is not JSON, or an object has a key twice.
    """
    try:
        return _DECODER.decode(text.rstrip())
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.rstrip() else ""
        raise BenchError(f"{where} is not valid JSON ({line}column {error.colno}: {error.msg}).") from None
    except _Repeated as error:
        _check_unique(error.keys, where)
        raise
    except RecursionError:
        raise BenchError(f"{where} is nested too deeply.") from None


class _Repeated(Exception):
    def __init__(self, keys: list[str]) -> None:
        self.keys = keys


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise _Repeated([key for key, _ in pairs])
    return mapping


def _constant(name: str) -> float | Number:
    return math.nan if name == "NaN" else Number(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_mapping, parse_int=Number, parse_float=Number, parse_constant=_constant)


def suffix(path: Path) -> str:
    """The suffix in lower case, without that of gzip."""
    return _unpacked(path).suffix.lower()


def _unpacked(path: Path) -> Path:
    return Path(path.stem) if path.suffix.lower() in GZIP else Path(path.name)


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, unpacked if its name ends in .gz or .gzip, in UTF-8 or, if its byte order mark says so, UTF-16."""
    try:
        with gzip.open(path) if path.name.lower().endswith(GZIP) else path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            is_utf16 = start[:2] in (b"\xff\xfe", b"\xfe\xff") and start[2:] != b"\0\0"
            if start[:2] == b"\x1f\x8b":
                raise BenchError(f"{path} is packed by gzip: add .gz to its name.")
            if b"\0" in start and not is_utf16:
                raise UnicodeError
            yield io.TextIOWrapper(file, "utf-16" if is_utf16 else "utf-8-sig", newline=newline)
    except UnicodeError:
        raise BenchError(f"{path} is not UTF-8 text: convert it first (Excel: save as CSV UTF-8).") from None
    except IsADirectoryError:
        raise BenchError(f"{path} is a folder: name the files in it.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BenchError(f"{path} is cut short, damaged or not a gzip file: {error}.") from None


def _check_unique(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BenchError(f"{where} has the column {twice[0]!r} twice: rename or remove one of them.")


def _json_rows(path: Path) -> Iterator[Row]:
    """Lines of JSON, or one JSON value on one or more lines: an array of rows, or a single row."""
    with open_text(path) as file:
        lines = enumerate(file, 1)
        first = next((item for item in lines if item[1].strip()), None)
        if first is None:
            return
        number, line = first
        if line.lstrip().startswith("{") and line.rstrip().endswith("}"):
            for number, line in itertools.chain([first], lines):
                if line.strip():
                    yield _object(f"{path}, row {number}", parse_json(line, f"{path}, row {number}"))
            return
        value = parse_json("\n" * (number - 1) + line + file.read(), str(path))
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield _object(f"{path}, row {number}", item)
    else:
        yield _object(f"{path}, row 1", value)


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise BenchError(f"{where} is not a JSON object with one key per column.")
    return where, value


def _csv_rows(path: Path, delimiter: str | None) -> Iterator[Row]:
    """The rows below the header. Without a delimiter, it is that of Excel's ``sep=`` line, or of the header."""
    csv.field_size_limit(2**31 - 1)  # the default refuses documents of more than 128 KiB
    with open_text(path, newline="") as file:
        line = next((line for line in file if line.strip()), "")
        if declared := re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE):
            delimiter, line = declared[1], file.readline()
        delimiter = delimiter or max(",;\t", key=lambda mark: len(next(csv.reader([line], delimiter=mark), [])))
        reader = csv.DictReader(itertools.chain([line], file), strict=True, delimiter=delimiter)
        number = 0
        try:
            _check_unique([name for name in reader.fieldnames or [] if name], f"{path}, header,")
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    header = len(reader.fieldnames or ())
                    raise BenchError(
                        f"{path}, row {number} does not have the {header} cells of the header "
                        f"(columns are separated by {delimiter!r})."
                    )
                yield f"{path}, row {number}", row
        except csv.Error as error:
            raise BenchError(f"{path}, row {number + 1} is not valid CSV: {error}.") from None


def _archive_rows(path: Path) -> Iterator[Row]:
    """WMT News Crawl by document: a date, and the text with and without sentences split, both in Base64, on a line.

    ``sorting_key`` names the document as StreamingQA does: by its date and the hash of the second text (its README).
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                date, text, whole = line.strip().split("\t")
                day = datetime.strptime(date, "%Y%m%d").date()
                content = base64.b64decode(text, validate=True).decode(errors="replace")
            except ValueError:  # of all three
                raise BenchError(f"{where} is not of the WMT News Crawl: a date and two texts in Base64.") from None
            key = f"{day:%Y%m%d}{'0' * 12}", hashlib.sha256(whole.encode()).hexdigest(), ""
            yield where, {"sorting_key": "\0\1".join(key), "timestamp": day.isoformat(), "text": content}


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            _check_unique(file.schema_arrow.names, str(path))
            batches = (batch.to_pylist() for batch in file.iter_batches())
            for number, row in enumerate(itertools.chain.from_iterable(batches), 1):
                yield f"{path}, row {number}", row
    except (ValueError, OSError) as error:  # pyarrow's own errors are among them
        raise BenchError(f"{path} is not readable Parquet: {str(error).rstrip('.')}.") from error


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    datasets = huggingface()
    try:
        saved = datasets.load_from_disk(str(path))
        names = list(map(str, saved)) if isinstance(saved, datasets.DatasetDict) else []
        saved = saved[split] if split in names else saved
        rows = []
        if not isinstance(saved, datasets.DatasetDict):
            saved.data.validate(full=True)  # Arrow does not check a file that it maps, and crashes if it is damaged
            rows = saved.to_list()
    except Exception as error:  # the library raises errors of many kinds, all of which mean no data
        raise BenchError(
            f"{path} is a folder that save_to_disk did not write, or it is damaged ({type(error).__name__}). "
            f"Name files, or another folder. Kinds that are read: {KINDS}."
        ) from None
    if names and split not in names:
        raise BenchError(
            f"{path} has the splits {', '.join(names)}, but no {split!r}: name the folder of one of them, e.g. "
            f"{path / names[0]}."
        )
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def huggingface() -> Any:
    """The library ``datasets``: by name, because a type checker would find the project's own folder."""
    return import_module("datasets")
