"""Every format gives the same entries, and every bad row is named by file, row and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data import reader, recipe
from bench.data.documents import Document, Entry, GoldQuestion, Question, document_id
from bench.data.reader import MissingSplit, load_split
from bench.data.recipe import Recipe
from bench.errors import BenchError

Make = Callable[..., Recipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A recipe in a new folder, with these files next to it."""

    def make(files: dict[str, Any] | None = None, **keys: Any) -> Recipe:
        folder = tmp_path / "harbour"
        folder.mkdir(exist_ok=True)
        for name, content in (files or {}).items():
            text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            (folder / name).write_text(text, encoding="utf-8", newline="")
        declared = {
            **dict.fromkeys(("title", "description", "language", "licence", "citation"), "x"),
            "name": "harbour",
            **({"source": {"files": {Path(name).stem: name for name in files}}} if files else {}),
            **keys,
        }
        (folder / "dataset.yaml").write_text(json.dumps(declared), encoding="utf-8")
        return recipe.read(folder)

    return make


PIER = {
    "text": "The ferry leaves from Pier 4.",
    "title": "Ferry",
    "timestamp": "2031-05-02",
    "group": "ferry",
    "facts": [[22, 28]],
    "questions": [{"id": "f2", "question": "Where from?", "answers": ["Pier 4", "4"], "revises": "f1"}],
}
MILL = {"text": "The mill burned.", "questions": []}
PIER_ENTRY = Entry(
    Document(document_id(PIER["text"]), PIER["text"], "Ferry", "2031-05-02"),  # type: ignore[arg-type]
    (GoldQuestion(Question("f2", "Where from?"), ("Pier 4", "4"), "f1"),),
    ((22, 28),),
    "ferry",
)


def test_an_entry_has_every_field_of_its_row(make: Make) -> None:
    entries = load_split(make({"test.jsonl": [PIER, MILL]}, format="documents"), "test")
    assert entries[0] == PIER_ENTRY
    assert entries[1] == Entry(Document(document_id("The mill burned."), "The mill burned."))


def test_columns_are_renamed_as_the_recipe_says(make: Make) -> None:
    row = {"body": "A.", "qs": [{"q": "Q?", "answers": "x", "id": 7}], "when": "2031-01-01"}
    columns = {"text": "body", "questions": "qs", "question": "q", "timestamp": "when"}
    (entry,) = load_split(make({"test.jsonl": [row]}, format="documents", columns=columns), "test")
    assert entry.document.timestamp == "2031-01-01"
    assert entry.questions == (GoldQuestion(Question("7", "Q?"), ("x",)),)


ROWS = [
    {"text": "A.", "question": "Q1?", "answers": "007", "id": "1", "group": "g"},
    {"text": "B.", "question": "Q2?", "answers": "NA", "id": "2", "group": "g"},
    {"text": "A.", "question": " Q3? ", "answers": "2031-05-02", "id": "3", "group": "g"},
]


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[dict[str, str]]) -> None:
    import pandas

    pandas.DataFrame(rows).to_parquet(path)


def write_json_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", write_csv), ("parquet", write_parquet), ("jsonl", write_json_lines)]
)
def test_rows_of_one_document_are_merged_and_no_answer_is_reinterpreted(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, write: Callable[..., None]
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / f"rows.{suffix}"
    write(path, ROWS)
    first, second = load_split(make(format="rows"), "test", {"test": [str(path)]})
    assert [(gold.question.text, gold.answers) for gold in first.questions] == [
        ("Q1?", ("007",)),
        ("Q3?", ("2031-05-02",)),
    ]
    assert (second.document.text, second.questions[0].answers, second.group) == ("B.", ("NA",), "g")


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(min_size=1)).filter(lambda row: all(cell.strip() for cell in row)),
        min_size=1,
    )
)
def test_merging_equals_the_obvious_grouping(rows: list[tuple[str, str]]) -> None:
    entries = [
        Entry(Document(document_id(text), text), (GoldQuestion(Question(f"{text} {question}", question), ("a",)),))
        for text, question in rows
    ]
    merged = reader._merge(("here", entry) for entry in entries)
    texts = list(dict.fromkeys(text for text, _ in rows))
    assert [entry.document.text for entry in merged] == texts
    for entry in merged:
        expected = list(dict.fromkeys(question for text, question in rows if text == entry.document.text))
        assert [gold.question.text for gold in entry.questions] == expected


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Oxygen",
            "paragraphs": [
                {
                    "context": "Oxygen is a gas.",
                    "qas": [{"id": "q", "question": "What?", "answers": [{"text": "a gas"}, {"text": "gas"}]}],
                },
                {"context": "It is light.", "qas": []},
            ],
        }
    ],
}


def test_nested_squad_and_its_flat_rows_give_the_same_entry(make: Make) -> None:
    flat = {"context": "Oxygen is a gas.", "title": "Oxygen", "id": "q", "question": "What?"}
    flat_row = {**flat, "answers": {"text": ["a gas", "gas", "gas"], "answer_start": [10, 12, 12]}}
    harbour = make({"test.json": json.dumps(SQUAD), "train.jsonl": [flat_row]}, format="squad")
    nested = load_split(harbour, "test")
    assert nested[:1] == load_split(harbour, "train")
    assert nested[0].questions[0].answers == ("a gas", "gas")
    assert [entry.group for entry in nested] == ["Oxygen", "Oxygen"]


def test_only_the_shortest_answer_counts_when_the_recipe_says_so(make: Make) -> None:
    (entry, _) = load_split(make({"test.json": json.dumps(SQUAD)}, format="squad", gold="shortest"), "test")
    assert entry.questions[0].answers == ("gas",)


def test_answers_in_one_cell_are_split_at_the_separator(make: Make) -> None:
    row = {"text": "A.", "question": "Q?", "answers": "one | two|"}
    (entry,) = load_split(make({"test.jsonl": [row]}, format="rows", answer_separator="|"), "test")
    assert entry.questions[0].answers == ("one", "two")


def test_a_question_without_an_id_gets_a_unique_one(make: Make) -> None:
    rows = [{"text": text, "question": "Q?", "answers": "a"} for text in ("A.", "B.", "A.")]
    first, second = load_split(make({"test.jsonl": rows}, format="rows"), "test")
    assert len(first.questions) == len(second.questions) == 1
    assert first.questions[0].question.id != second.questions[0].question.id


def test_text_files_are_documents_with_title_and_year(make: Make, tmp_path: Path) -> None:
    for name, text in (("Dane_Salt_Road_1864", "Once."), ("notes", "Twice."), ("copy", "Once.")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    harbour = make(format="text")
    entries = load_split(harbour, "test", {"test": [str(tmp_path)]})
    assert [(e.document.title, e.document.timestamp, e.document.text) for e in entries] == [
        ("Dane Salt Road", "1864", "Once."),
        ("notes", "", "Twice."),
    ]
    assert load_split(harbour, "test", {"test": [str(tmp_path / "notes.txt")]})[0].document.text == "Twice."


def test_a_split_can_be_a_range_of_rows(make: Make) -> None:
    rows = [{"text": f"{number}.", "questions": []} for number in range(5)]
    splits = {"train": "all[:2]", "test": "all[3:]"}
    harbour = make({"all.jsonl": rows}, format="documents", splits=splits)
    assert [entry.document.text for entry in load_split(harbour, "train")] == ["0.", "1."]
    assert [entry.document.text for entry in load_split(harbour, "test")] == ["3.", "4."]


def row(**changes: Any) -> str:
    good = {"text": "A.", "questions": [{"id": "1", "question": "Q?", "answers": ["a"]}]}
    return json.dumps({key: value for key, value in {**good, **changes}.items() if value is not ...}) + "\n"


def asking(**changes: Any) -> str:
    good = {"id": "2", "question": "Q?", "answers": ["a"]}
    return row(text="B.", questions=[{key: v for key, v in {**good, **changes}.items() if v is not ...}])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"text": "A."\n', r"test\.jsonl, row 2 is not valid JSON \(column"),
        ("[1]\n", r"test\.jsonl, row 2 is not a JSON object"),
        (row(text=...), r"test\.jsonl, row 2 has no column 'text'"),
        (row(text=" \n"), r"test\.jsonl, row 2, column text: the document is empty"),
        (row(text=["A."]), r"test\.jsonl, row 2, column text: expected text, found list"),
        (row(questions=...), r"test\.jsonl, row 2, column questions: expected a list of questions"),
        (row(facts=[[0, 9]]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (row(facts=[5]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (asking(question=...), r"row 2, question 1 has no column 'question'"),
        (asking(question=" "), r"row 2, question 1, column question: the question is empty"),
        (asking(answers=...), r"row 2, question 1, column answers: the question has no answer"),
        (asking(answers=[" "]), r"row 2, question 1, column answers: the question has no answer"),
        (asking(id="1"), r"row 2: another question already has the id '1'"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(make: Make, second: str, message: str) -> None:
    harbour = make({"test.jsonl": row() + second}, format="documents")
    with pytest.raises(BenchError, match=message):
        load_split(harbour, "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.csv", "text,question,answers\nA.,Q?\n", r"test\.csv, row 1 does not have the 3 cells"),
        ("test.csv", "text,question,answers\nA.,Q?,a,b\n", r"test\.csv, row 1 does not have the 3 cells"),
        ("test.csv", 'text,question,answers\nA.,"Q"?,a\n', r"test\.csv, row 1 is not valid CSV"),
        ("test.csv", "txt,question,answers\nA.,Q?,a\n", r"test\.csv, row 1 has no column 'text'.*Did you mean txt\?"),
        ("test.json", '{"data": [{"title": "x"}]}', r"test\.json is not SQuAD JSON"),
        ("test.json", "{", r"test\.json is not valid JSON"),
        ("test.parquet", "no parquet", r"test\.parquet is not readable Parquet"),
        ("test.jsonl", "\n", r"The split 'test' of harbour contains no documents"),
    ],
)
def test_a_file_of_another_format_is_named(make: Make, name: str, content: str, message: str) -> None:
    columns = {"text": "text"}
    with pytest.raises(BenchError, match=message):
        load_split(make({name: content}, format="squad", columns=columns), "test")


def test_a_declared_column_must_be_there(make: Make) -> None:
    harbour = make({"test.jsonl": row()}, format="documents", columns={"timestamp": "date"})
    with pytest.raises(BenchError, match=r"row 1 has no column 'date' \(our 'timestamp'\)"):
        load_split(harbour, "test")


def test_bytes_that_are_not_utf8_are_an_error(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("é".encode("latin-1"))
    with pytest.raises(BenchError, match=r"latin\.txt is not UTF-8 text: convert"):
        load_split(make(format="text"), "test", {"test": [str(path)]})


def test_a_missing_file_is_named(make: Make) -> None:
    with pytest.raises(BenchError, match=r"nowhere\.jsonl is not a file"):
        load_split(make({"test.jsonl": row()}, format="documents"), "test", {"test": ["nowhere.jsonl"]})


def test_files_of_the_user_replace_the_whole_source(make: Make, tmp_path: Path) -> None:
    harbour = make({"train.jsonl": row(), "test.jsonl": row()}, format="documents")
    other = tmp_path / "other.jsonl"
    other.write_text(asking(), encoding="utf-8")
    assert load_split(harbour, "test", {"test": [str(other)]})[0].document.text == "B."
    with pytest.raises(
        MissingSplit, match=r"no split 'train' \(--data-files names test only\).*--data-files train=FILE"
    ):
        load_split(harbour, "train", {"test": [str(other)]})


def test_the_error_on_a_missing_split_says_how_to_provide_it(make: Make) -> None:
    with pytest.raises(MissingSplit, match=r"harbour has no split 'train': provide it with --data-files train=FILE"):
        load_split(make({"test.jsonl": row()}, format="documents"), "train")
    with pytest.raises(MissingSplit, match="no split 'test'"):
        load_split(make(format="text"), "test")


@pytest.mark.parametrize(("split", "files"), [("tets", {}), ("test", {"tets": ["x"]})])
def test_a_mistyped_split_names_the_nearest(make: Make, split: str, files: dict[str, list[str]]) -> None:
    with pytest.raises(BenchError, match=r"no split 'tets'\. Did you mean test\?"):
        load_split(make({"test.jsonl": row()}, format="documents"), split, files)


HUB = {"source": {"hub": {"id": "owner/set", "revision": "0" * 40}}, "splits": {"test": "train[0:2]"}}


def test_the_pinned_rows_are_loaded_from_the_hub(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*where: Any, **what: Any) -> list[dict[str, Any]]:
        calls.append((where, what))
        return [{"context": "A.", "title": "t", "id": "1", "question": "Q?", "answers": {"text": ["a"]}}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (entry,) = load_split(make(format="squad", **HUB), "test")
    assert calls == [(("owner/set", None), {"revision": "0" * 40, "split": "train[0:2]"})]
    assert (entry.document.text, entry.questions[0].answers) == ("A.", ("a",))


def test_without_a_network_the_hub_id_and_the_remedy_are_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(*where: Any, **what: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BenchError, match=r"owner/set .*ConnectionError: no route\. .*--data-files test=FILE"):
        load_split(make(format="squad", **HUB), "test")


@pytest.mark.real_data
def test_real_squad_has_the_known_numbers_of_paragraphs_and_questions(real_data: Path) -> None:
    path = real_data / "squad" / "squad_v1.1_38_articles.json"
    entries = load_split(recipe.find("squad"), "test", {"test": [str(path)]})
    assert len(entries) == 1647
    assert sum(len(entry.questions) for entry in entries) == 8357
    assert len({entry.group for entry in entries}) == 38
    assert entries[0].questions[0].answers == ("October 1973", "October", "1973")


@pytest.mark.real_data
def test_real_novels_have_their_years(real_data: Path) -> None:
    novels = real_data / "novels"
    entries = load_split(recipe.find("text"), "test", {"test": [str(novels)]})
    assert len(entries) == len(list(novels.glob("*.txt"))) > 0
    assert all(entry.document.timestamp.isdigit() and not entry.questions for entry in entries)
