"""The same rows come out of every kind of file, and a file that cannot be read is named with the cause."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data import tables
from bench.errors import BenchError

CASES = Path(__file__).parents[2] / "cases" / "data"
COLOGNE = {"context": "The tower is in Cologne.", "question": "Where?", "answers": "Cologne"}
TURM = {"context": "Der Turm steht.", "question": "Wo?", "answers": "Köln"}
AB = {"context": "A b.", "question": "q?", "answers": ["b"]}
SQUAD_ROW = {**COLOGNE, "id": "1", "title": "T", "answers": {"text": ["Cologne"], "answer_start": [16]}}


def read(path: Path, split: str = "test") -> list[Mapping[str, Any]]:
    return [row for _, row in tables.rows(path, split)]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("array.json", [AB]),
        ("pretty.json", [AB]),
        ("rows.jsonl.gz", [AB]),
        ("t.tsv", [COLOGNE]),
        ("upper.CSV", [COLOGNE]),
        ("excel_semicolon.csv", [{**TURM, "context": "Der Turm; er steht in Köln.", "question": "Wo steht der Turm?"}]),
        ("excel_sep.csv", [TURM]),
        ("excel_utf16.csv", [{**TURM, "context": "Der Turm in Köln."}]),
    ],
)
def test_files_as_programs_write_them_are_read(name: str, rows: list[dict[str, Any]]) -> None:
    assert read(CASES / name) == rows


@pytest.mark.parametrize("name", ["saved_dataset", "saved_dict", "saved_dict/test"])
def test_folders_of_save_to_disk_are_read(name: str) -> None:
    assert read(CASES / name) == [SQUAD_ROW]


ROWS = [{"text": "Der Turm; in Köln.", "answers": "Köln, Cologne"}, {"text": 'The "lock"\tat Deel.', "answers": "007"}]
WRITTEN = {
    "lines.JSONL": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines.ndjson": "\n\n".join(json.dumps(row) for row in ROWS),
    "lines.json": "\r\n".join(json.dumps(row) for row in ROWS),
    "array.json": json.dumps(ROWS, ensure_ascii=False),
    "array.jsonl": "\n" + json.dumps(ROWS, indent=2),
    "comma.csv": 'text,answers\n"Der Turm; in Köln.","Köln, Cologne"\n"The ""lock""\tat Deel.",007\n',
    "quoted.csv": 'text;"answers"\r\n"Der Turm; in Köln.";Köln, Cologne\r\n"The ""lock""\tat Deel.";007\r\n',
    "tabs.csv": 'text\tanswers\nDer Turm; in Köln.\tKöln, Cologne\n"The ""lock""\tat Deel."\t007\n',
    "bar.CSV": 'SEP=|\ntext|answers\nDer Turm; in Köln.|Köln, Cologne\n"The ""lock""\tat Deel."|007\n',
    "below.csv": '\n\ntext,answers\n"Der Turm; in Köln.","Köln, Cologne"\n"The ""lock""\tat Deel.",007\n',
    "tabs.TSV": 'text\tanswers\nDer Turm; in Köln.\tKöln, Cologne\n"The ""lock""\tat Deel."\t007\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
@pytest.mark.parametrize("name", WRITTEN)
def test_every_way_to_write_the_same_rows_gives_the_same_rows(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / (f"{name}.gz" if encoding == "gzip" else name)
    content = WRITTEN[name].encode("utf-8" if encoding == "gzip" else encoding)
    path.write_bytes(gzip.compress(content) if encoding == "gzip" else content)
    assert read(path) == ROWS


def test_typed_tables_give_the_same_rows(tmp_path: Path) -> None:
    import pandas

    import datasets

    pandas.DataFrame(ROWS).to_parquet(tmp_path / "rows.PARQUET")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved.select([1]), "test": saved}).save_to_disk(tmp_path / "splits")
    for name in ("rows.PARQUET", "saved", "splits", "splits/test"):
        assert read(tmp_path / name) == ROWS
    assert read(tmp_path / "splits", "train") == ROWS[1:]


def test_parquet_is_read_anew_when_its_content_changes(tmp_path: Path) -> None:
    import os

    import pandas

    path = tmp_path / "rows.parquet"
    for answer in ("a", "b"):
        pandas.DataFrame([{"answers": answer}]).to_parquet(path)
        os.utime(path, (0, 0))  # as cp -p leaves it
        assert read(path) == [{"answers": answer}]


@given(st.lists(st.fixed_dictionaries({"x": st.text(), "y": st.integers() | st.none()}), min_size=1))
def test_json_lines_and_arrays_agree_on_any_text(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "x.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "x.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    texts = [{"x": row["x"], "y": None if row["y"] is None else str(row["y"])} for row in rows]
    assert read(folder / "x.jsonl") == read(folder / "x.json") == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a"\n', r"x\.jsonl, row 2 is not valid JSON \(column 5"),
        ("x.json", b'{\n "a": 1,\n}', r"x\.json is not valid JSON \(line 3, column 1"),
        ("x.json", b'[{"a": 1}, 2]', r"x\.json, row 2 is not a JSON object"),
        ("x.json", b'{"a": 1}{"a": 2}', r"x\.json, row 1 is not valid JSON .*Extra data"),
        ("x.json", b'[{"a": 1, "a": 2}]', r"x\.json has the column 'a' twice"),
        ("x.json", b"3", r"x\.json, row 1 is not a JSON object"),
        ("x.csv", b"a;b\n1;2;3\n", r"x\.csv, row 1 does not have the 2 cells of the header .*separated by ';'"),
        ("x.csv", b"a,b,a\n1,2,3\n", r"x\.csv, header, has the column 'a' twice"),
        ("x.tsv", b'a\tb\n1\t"2\n', r"x\.tsv, row 1 is not valid CSV"),
        ("x.csv", "a,b\né,2\n".encode("latin-1"), r"x\.csv is not UTF-8 text: convert it first \(Excel"),
        ("x.csv", "a,b\n".encode("utf-16-le"), r"x\.csv is not UTF-8 text"),
        ("x.csv", gzip.compress(b"a,b\n", mtime=0), r"x\.csv is packed by gzip: add \.gz to its name"),
        ("x.csv", "a,b\n".encode("utf-32"), r"x\.csv is not UTF-8 text"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16")[:-1], r"x\.csv is not UTF-8 text"),
        ("x.jsonl.gz", b'{"a": 1}', r"x\.jsonl\.gz is cut short, damaged or not a gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-9], r"x\.jsonl\.gz is cut short"),
        ("x.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-8] + bytes(8), r"x\.csv\.gz is cut short"),
        ("x.parquet", b"no parquet", r"x\.parquet is not readable Parquet"),
        ("x.xlsx", b"PK", r"x\.xlsx is of a kind that is not read, .*: \.jsonl"),
        ("x.zip", b"PK", r"x\.zip is of a kind that is not read"),
        ("x.pkl", b"\x80", r"x\.pkl is of a kind that is not read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_cause(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchError, match=message):
        read(tmp_path / name)


def test_a_folder_that_holds_no_such_split_names_those_that_it_holds(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"saved_dict has the splits test, but no 'train': .*saved_dict/test"):
        read(CASES / "saved_dict", "train")
    with pytest.raises(BenchError, match=r"save_to_disk did not write"):
        read(CASES / "listcsv")
    with pytest.raises(BenchError, match=r"save_to_disk did not write"):
        read(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(BenchError, match=r"save_to_disk did not write"):
        read(tmp_path)


def test_plain_text_files_have_any_case_and_line_end(tmp_path: Path) -> None:
    (tmp_path / "Dane_Salt_1864.TXT").write_bytes(b"One.\r\nTwo.")
    (tmp_path / "Old_0000.txt").write_text("Three.")
    (tmp_path / "notes.md").write_text("Not read.")
    assert [row for _, row in tables.texts(tmp_path)] == [
        {"text": "One.\nTwo.", "title": "Dane Salt", "timestamp": "1864"},
        {"text": "Three.", "title": "Old 0000", "timestamp": ""},
    ]


@pytest.mark.parametrize("position", [0, 40, 900, 1008, 1100, 1200, 1300, -300, -8])
def test_a_damaged_saved_dataset_is_read_or_refused(tmp_path: Path, position: int) -> None:
    folder = shutil.copytree(CASES / "saved_dataset", tmp_path / "saved")
    file = folder / "data-00000-of-00001.arrow"
    content = bytearray(file.read_bytes())
    position %= len(content)
    content[position : position + 8] = b"\xff\x7f" * 4
    file.write_bytes(content)
    with contextlib.suppress(BenchError):
        assert len(read(folder)) <= 1
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BenchError, match="did not write, or it is damaged"):
        read(folder)
