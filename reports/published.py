"""Values that papers print, each with where and how it was read. A value without its provenance is refused.

``published.csv`` holds facts only. ``paper`` is a key of ``CITATIONS.bib``; ``base`` is the base model, or "" if the
paper names none; ``copy_of`` names the value that a paper has taken over from another one, which is one measurement.
"""

from __future__ import annotations

import csv
import datetime
import io
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import pydantic
import regex

from bench.errors import BenchError, first_problem
from bench.settings import Settings

FILE = Path(__file__).with_name("published.csv")

Text = Annotated[str, pydantic.StringConstraints(pattern=r"\S")]


class Value(Settings):
    """A value as a paper prints it, or as it was read off a figure."""

    paper: Text
    arxiv: Text
    version: Text
    table_or_figure: Text
    dataset: Text
    base: str
    row: Text
    column: Text
    value: Annotated[str, pydantic.StringConstraints(pattern=r"^-?\d+(\.\d+)?$")]
    """The number with the digits with which it was read."""
    unit: Text
    precision: Text
    """How exactly: "2 decimals", or how it was read off a figure, with "±0.5" if that can be said."""
    read_from: Annotated[str, pydantic.StringConstraints(pattern=r"^(image of (table|figure)|text|second hand: .+)$")]
    """An image of the table or of the figure, the paper's text, or second hand: what was read instead."""
    address: Text
    read_on: datetime.date
    copy_of: str
    """Paper, table and dataset of the value that this one repeats, or ""."""
    note: str

    @pydantic.model_validator(mode="after")
    def _no_more_digits_than_it_was_read_with(self) -> Value:
        stated = regex.search(r"(\d+) decimals", self.precision)
        limit = int(stated[1]) if stated else self.decimals
        if self.decimals > limit:
            raise ValueError(f"{self.value} has more decimals than it was read with ({self.precision})")
        return self

    @property
    def number(self) -> float:
        """The value as a number, in its unit."""
        return float(self.value)

    @property
    def decimals(self) -> int:
        """Decimals with which the value was read."""
        return len(self.value.partition(".")[2])

    @property
    def reading_error(self) -> float:
        """The most by which the value can be off: as the precision states, or half a unit of the last decimal."""
        stated = regex.search(r"±(\d+(\.\d+)?)", self.precision)
        return float(stated[1]) if stated else 0.5 * 10.0**-self.decimals

    @property
    def name(self) -> str:
        """The row, the base model and the column."""
        return ", ".join(part for part in (self.row, self.base, self.column) if part)

    def __str__(self) -> str:
        from reports.statistics import show_number

        return show_number(self.number, self.decimals)


@lru_cache(maxsize=4)
def load(path: Path = FILE) -> tuple[Value, ...]:
    """The values of a file.

    Raises:
        BenchError: a column is missing or unknown, a value lacks its provenance, was not read (but remembered, say), is
            no number or has more digits than it was read with, a value is there twice, or a copy differs from what it
            repeats. The message names the line and the row.
    """
    values: list[Value] = []
    lines: dict[tuple[str, ...], int] = {}
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
    if [*(reader.fieldnames or ())] != [*Value.model_fields]:
        raise BenchError(f"{path.name}, line 1: the columns must be {', '.join(Value.model_fields)}.")
    for cells in reader:
        named = ", ".join(str(cells[key]) for key in ("paper", "row", "base", "column") if cells[key])
        where = f"{path.name}, line {reader.line_num} ({named})"
        try:
            value = Value.model_validate({str(key): cell for key, cell in cells.items()})
        except pydantic.ValidationError as error:
            raise BenchError(f"{where}: {_problem(error)}") from None
        if _key(value) in lines:
            raise BenchError(f"{where}: line {lines[_key(value)]} has this value, too: delete one of them.")
        lines[_key(value)] = reader.line_num
        values.append(value)
    _check_copies(path, values, lines)
    return tuple(values)


def _problem(error: pydantic.ValidationError) -> str:
    empty = [problem for problem in error.errors() if problem["loc"] and problem["input"] in ("", None)]
    if empty:
        return (
            f"{empty[0]['loc'][0]} is empty. A value is used only with its whole provenance: add it, or delete the row."
        )
    if error.errors()[0]["loc"] == ("read_from",):
        return (
            f"read_from is {error.errors()[0]['input']!r}: write image of table, image of figure, text or second hand: "
            "WHAT. A value that was not read does not belong here."
        )
    return first_problem(error, Value)


def _key(value: Value) -> tuple[str, ...]:
    return value.paper, value.table_or_figure, value.dataset, value.base, value.row, value.column


def _check_copies(path: Path, values: list[Value], lines: dict[tuple[str, ...], int]) -> None:
    originals = {(", ".join(_key(value)[:3]), *_key(value)[3:]): value for value in values}
    for value in filter(lambda value: value.copy_of, values):
        original = originals.get((value.copy_of, *_key(value)[3:]))
        if original is None or original.value != value.value:
            found = "there is no such value" if original is None else f"that is {original.value}, not {value.value}"
            raise BenchError(
                f"{path.name}, line {lines[_key(value)]} ({value.paper}, {value.name}): copy_of names "
                f"{value.copy_of}, but {found}."
            )
