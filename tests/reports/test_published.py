"""Published values: none without its provenance, none with more digits than it was read with, copies once."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import regex

from bench.errors import BenchError
from bench.help import citations
from reports.published import FILE, load

PROVENANCE = ("arxiv", "version", "table_or_figure", "dataset", "unit", "precision", "read_from", "address", "read_on")
LINES = list(csv.DictReader(FILE.open(encoding="utf-8", newline="")))


def written(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "published.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("column", PROVENANCE)
def test_a_value_without_provenance_is_refused_with_its_name_and_line(column: str, tmp_path: Path) -> None:
    place = next(i for i, row in enumerate(LINES) if row["paper"] == "tack2024mac")
    path = written(tmp_path, [LINES[place], {**LINES[place + 2], column: " "}])
    with pytest.raises(BenchError) as error:
        load(path)
    row = LINES[place + 2]
    assert str(error.value).startswith(
        f"published.csv, line 3 (tack2024mac, {row['row']}, {row['base']}, {row['column']})"
    )
    assert column in str(error.value)


@pytest.mark.parametrize("wrong", ["recollection", "[MEM]", "second hand", "image of the table"])
def test_a_value_that_was_not_read_is_refused(wrong: str, tmp_path: Path) -> None:
    row = next(row for row in LINES if row["paper"] == "tack2024mac")
    with pytest.raises(
        BenchError, match=r"line 2 \(tack2024mac.*read_from is .*: write image of table, image of figure"
    ):
        load(written(tmp_path, [{**row, "read_from": wrong}]))


def test_an_empty_cell_is_named_with_the_remedy(tmp_path: Path) -> None:
    row = next(row for row in LINES if row["paper"] == "tack2024mac")
    with pytest.raises(BenchError, match="address is empty"):
        load(written(tmp_path, [{**row, "address": ""}]))


def test_no_value_is_printed_with_more_digits_than_it_was_read_with() -> None:
    for value, row in zip(load(), LINES, strict=True):
        assert str(value) == row["value"]
        if stated := regex.search(r"(\d+) decimals", row["precision"]):
            assert len(str(value).partition(".")[2]) <= int(stated[1])


def test_more_digits_than_the_stated_precision_are_refused(tmp_path: Path) -> None:
    row = next(row for row in LINES if row["precision"].startswith("2 decimals") and not row["copy_of"])
    with pytest.raises(BenchError, match=r"1.234 has more decimals than it was read with \(2 decimals"):
        load(written(tmp_path, [{**row, "value": "1.234"}]))


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    row = next(row for row in LINES if not row["copy_of"])
    for wrong in ("about 5", "nan", "128+", ""):
        with pytest.raises(BenchError, match="line 2"):
            load(written(tmp_path, [{**row, "value": wrong}]))


def test_a_value_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    row = next(row for row in LINES if not row["copy_of"])
    with pytest.raises(BenchError, match=r"line 3 .*: line 2 has this value, too"):
        load(written(tmp_path, [row, {**row, "value": "1"}]))


def test_a_copy_has_the_digits_of_its_original(tmp_path: Path) -> None:
    copies = [value for value in load() if value.copy_of]
    assert len(copies) == 90 and {value.paper for value in copies} == {"li2025cmt"}, "MAC's table in that of CMT"
    copy = next(row for row in LINES if row["copy_of"])
    with pytest.raises(BenchError, match="there is no such value"):
        load(written(tmp_path, [copy]))
    original = next(
        row
        for row in LINES
        if copy["copy_of"] == f"{row['paper']}, {row['table_or_figure']}, {row['dataset']}"
        and all(row[key] == copy[key] for key in ("base", "row", "column"))
    )
    with pytest.raises(BenchError, match=f"that is {original['value']}, not 99"):
        load(written(tmp_path, [original, {**copy, "value": "99"}]))


def test_missing_columns_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="line 1: the columns must be paper, arxiv"):
        load(written(tmp_path, [{"paper": "x"}]))


def test_how_far_a_value_can_be_off_is_as_it_was_read() -> None:
    values = {value.precision: value for value in load()}
    assert values["read off markers, ±0.5"].reading_error == 0.5
    assert values["read off markers, ±1"].reading_error == 1
    assert values["2 decimals"].reading_error == pytest.approx(0.005)


def test_papers_are_those_of_the_bibliography_and_second_hand_values_say_so() -> None:
    papers = citations.read()
    for value in load():
        assert papers[value.paper].fields["eprint"] == value.arxiv
    assert {value.paper for value in load() if value.read_from.startswith("second hand")} == {"chen2024generative"}
