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

from bench.data import recipe, streams
from bench.data.documents import Document, Entry, GoldQuestion, Question, document_id
from bench.data.reader import MissingSplit, load_split, read_split
from bench.data.recipe import SPLITS, Recipe
from bench.errors import BenchError

Make = Callable[..., Recipe]


CASES = Path(__file__).parents[2] / "cases" / "data"


def recipe_of(**keys: Any) -> Recipe:
    """A recipe without a source."""
    texts = dict.fromkeys(("title", "description", "language", "licence", "citation"), "x")
    return Recipe.model_validate({"name": "harbour", **texts, **keys})


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
MILL = {"text": "The mill burned.", "questions": [{"id": "f1", "question": "Where from?", "answers": ["the mill"]}]}
PIER_ENTRY = Entry(
    Document(document_id(PIER["text"]), PIER["text"], "Ferry", "2031-05-02"),  # type: ignore[arg-type]
    (GoldQuestion(Question("f2", "Where from?"), ("Pier 4", "4"), "f1"),),
    ((22, 28),),
    "ferry",
)


def test_an_entry_has_every_field_of_its_row(make: Make) -> None:
    entries = load_split(make({"test.jsonl": [MILL, PIER]}, format="documents"), "test")
    assert entries[0].document == Document(document_id("The mill burned."), "The mill burned.")
    assert entries[1] == PIER_ENTRY


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
    make: Make, tmp_path: Path, suffix: str, write: Callable[..., None]
) -> None:
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
def test_merging_equals_the_obvious_grouping(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "merging.jsonl"
    write_json_lines(path, [{"text": text, "question": question, "answers": "a"} for text, question in rows])
    merged = load_split(recipe_of(format="rows"), "test", {"test": [str(path)]})
    texts = list(dict.fromkeys(text for text, _ in rows))
    assert [entry.document.text for entry in merged] == texts
    for entry in merged:
        expected = list(dict.fromkeys(question.strip() for text, question in rows if text == entry.document.text))
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


def test_questions_join_the_first_document_with_their_value_in_whatever_type(make: Make, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    harbour = make(format="rows", join={"question": "at", "document": "key"})
    (tmp_path / "questions.csv").write_text("question,answers,at\nWhere from?,Pier 4,5\n")
    documents = tmp_path / "documents.parquet"
    parquet.write_table(pyarrow.table({"key": [4, 5, 5], "text": ["No.", PIER["text"], "Later."]}), documents)
    [entry] = load_split(harbour, "test", {"test": [str(tmp_path / "questions.csv"), str(documents)]})
    assert entry.document.text == PIER["text"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"row 1 has no value of 'at', by which questions and documents are joined"),
        ([5], r"row 1, column at: expected text, found list"),
    ],
)
def test_a_value_that_joins_nothing_is_refused(make: Make, value: Any, message: str) -> None:
    rows = [{"question": "Where from?", "answers": ["Pier 4"], "at": value}, {"key": None, "text": "Pier 4."}]
    harbour = make({"test.jsonl": rows}, format="rows", join={"question": "at", "document": "key"})
    with pytest.raises(BenchError, match=message):
        load_split(harbour, "test")


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
    (beginning,) = load_split(make(format="text", characters=3), "test", {"test": [str(tmp_path / "notes.txt")]})
    assert beginning.document.text == "Twi"


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
        (row(questions=...), r"test\.jsonl, row 2 has no column 'questions'"),
        (row(questions=None), r"test\.jsonl, row 2, column questions: expected a list of questions, \[\] for none"),
        (row(facts=[[0, 9]]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (row(facts=[5]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (asking(question=...), r"row 2, question 1 has no column 'question'"),
        (asking(question=" "), r"row 2, question 1, column question: the question is empty"),
        (asking(answers=...), r"row 2, question 1 has no column 'answers'"),
        (asking(answers=..., answer="a"), r"no column 'answers'.*Did you mean answer\?"),
        (asking(answers=[" "]), r"row 2, question 1, column answers: the question has no answer"),
        (asking(id="1"), r"row 2: another question already has the id '1'"),
        (row(questions=[], facts=[[0, 1.5]]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (row(questions=[], facts=[["0", "1"]]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (row(questions=[], facts=[[0, True]]), r"test\.jsonl, row 2, column facts: expected \[start, end\]"),
        (asking(answers=True), r"row 2, question 1, column answers: expected text, found bool"),
        (asking(answers=["a", False]), r"row 2, question 1, column answers: expected text, found bool"),
        (asking(answers=[["a"]]), r"row 2, question 1, column answers: expected text, found list"),
        (asking(answers={"spans": ["a"]}), r"row 2, question 1, column answers: expected text, found dict"),
        (asking(answers=[{"text": {"a": 1}}]), r"row 2, question 1, column answers: expected text, found dict"),
        (asking(answers={"text": ["a \ud83d"]}), r"row 2, question 1, column answers: .* half a surrogate pair"),
        (asking(question="Where \udc00?"), r"row 2, question 1, column question: .* half a surrogate pair"),
        (asking(id="\ud800"), r"row 2, question 1, column id: .* half a surrogate pair"),
        (asking(revises="\ud800"), r"row 2, question 1, column revises: .* half a surrogate pair"),
        (row(text="B \udfff"), r"row 2, column text: .* half a surrogate pair"),
        (row(title="\ud800"), r"row 2, column title: .* half a surrogate pair"),
        (row(timestamp="2031 \ud800"), r"row 2, column timestamp: .* half a surrogate pair"),
        ('{"text": "B.", "text": "C.", "questions": []}\n', r"row 2 has the column 'text' twice"),
        ('{"text": "B.", "questions": [{"question": "Q?", "answers": "a", "answers": "b"}]}\n', r"'answers' twice"),
        ('{"text": ' + "[" * 100_000 + "\n", r"row 2 is nested too deeply"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(make: Make, second: str, message: str) -> None:
    harbour = make({"test.jsonl": row() + second}, format="documents")
    with pytest.raises(BenchError, match=message):
        load_split(harbour, "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.csv", "text,question,answers,text\nA.,Q?,a,B.\n", r"test\.csv, header, has the column 'text' twice"),
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
    path.write_bytes("é".encode("latin-1"))  # as Excel's plain CSV is
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
    with pytest.raises(MissingSplit, match=r"harbour has no split 'train': add it to the recipe \(--data-files train"):
        load_split(make({"test.jsonl": row()}, format="documents"), "train")
    with pytest.raises(MissingSplit, match="no split 'test': provide it with --data-files test=FILE"):
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
    with pytest.raises(BenchError, match=r"owner/set .*: no route\. .*--data-files test=FILE, or .* harbour=FOLDER"):
        load_split(make(format="squad", **HUB), "test")


def reading(file: Path, **keys: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    """Timestamp of the document, question and answers, for each question of a file."""
    entries = load_split(recipe_of(**keys), "test", {"test": [str(file)]})
    return [(e.document.timestamp, gold.question.text, gold.answers) for e in entries for gold in e.questions]


ROWS_OF_CASES = {"format": "rows", "columns": {"text": "context"}}


# Timestamps


@pytest.mark.parametrize(
    ("name", "value", "keys"),
    [
        ("dates_US.jsonl", "'12/31/2019'", ROWS_OF_CASES),
        ("dates_day.month.jsonl", "'02.01.2020'", ROWS_OF_CASES),
        ("dates_epoch_ms.jsonl", "'1577836800000'", ROWS_OF_CASES),
        ("dates_words.jsonl", "'May 3, 2020'", ROWS_OF_CASES),
        ("dated_epoch/notes.jsonl", "'1577836800000'", ROWS_OF_CASES),
        ("mixed_dates.jsonl", "'5 May 2031'", {"format": "documents"}),
    ],
)
def test_a_time_that_is_not_iso_8601_is_named_with_the_remedy(name: str, value: str, keys: dict[str, Any]) -> None:
    number = 2 if name == "mixed_dates.jsonl" else 1
    with pytest.raises(BenchError, match=rf"row {number}, column timestamp: {value} is not .* timestamp_format"):
        reading(CASES / name, **keys)


@pytest.mark.parametrize(
    ("name", "declared", "expected"),
    [
        ("dates_US.jsonl", "%m/%d/%Y", ["2019-12-31", "2020-01-02"]),
        ("dates_day.month.jsonl", "%d.%m.%Y", ["2020-01-02", "2019-03-01", "2018-12-15"]),
        ("dates_epoch_ms.jsonl", "epoch_milliseconds", ["2020-01-01", "2000-01-01", "1969-12-31"]),
        ("dates_words.jsonl", "%B %d, %Y", ["2020-05-03", "2021-04-07", "2022-01-01"]),
    ],
)
def test_a_declared_format_is_read(name: str, declared: str, expected: list[str]) -> None:
    read = reading(CASES / name, timestamp_format=declared, **ROWS_OF_CASES)
    assert [time for time, _, _ in read] == expected


def test_numbers_of_milliseconds_order_a_stream_by_time() -> None:
    declared = recipe.find(str(CASES / "dated_epoch")).model_copy(update={"timestamp_format": "epoch_milliseconds"})
    declared._folder = CASES / "dated_epoch"
    stream = streams.load(declared, "test", 3, 0)
    assert [entry.document.timestamp for entry in stream.entries] == ["1969-12-31", "1999-05-01", "2020-01-01"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2020-01-02", "does not match format"),
        ("31.02.2020", "day is out of range"),
        (20200102, "does not match format"),
    ],
)
def test_a_time_without_the_declared_format_is_named(make: Make, value: Any, message: str) -> None:
    harbour = make({"test.jsonl": row(timestamp=value)}, format="documents", timestamp_format="%d.%m.%Y")
    with pytest.raises(BenchError, match=rf"row 1, column timestamp: .*{message}.*timestamp_format: %d\.%m\.%Y"):
        load_split(harbour, "test")


def test_times_of_typed_columns_need_no_format(tmp_path: Path) -> None:
    import pandas

    times = pandas.to_datetime(["2031-05-02", "2031-05-02 13:07", None], format="ISO8601")
    rows = pandas.DataFrame({"text": ["A.", "B.", "C."], "question": "Q?", "answers": "a", "timestamp": times})
    rows.to_parquet(tmp_path / "rows.parquet")
    read = reading(tmp_path / "rows.parquet", format="rows", timestamp_format="%d.%m.%Y")
    assert [time for time, _, _ in read] == ["2031-05-02", "2031-05-02T13:07:00", ""]


# Answers


@pytest.mark.parametrize("name", ["pandas_list.csv", "listcsv/rows.csv"])
def test_a_list_in_a_text_cell_is_split_only_if_the_recipe_says_so(name: str) -> None:
    with pytest.raises(
        BenchError, match=r"row 1, column answers: \['Cologne', 'Köln'\] looks like a list.*answer_cells"
    ):
        reading(CASES / name, **ROWS_OF_CASES)
    (split,) = reading(CASES / name, answer_cells="list", **ROWS_OF_CASES)
    (whole,) = reading(CASES / name, answer_cells="text", **ROWS_OF_CASES)
    assert split[2] == ("Cologne", "Köln")
    assert whole[2] == ("['Cologne', 'Köln']",)


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ('["Cologne", "Köln"]', ("Cologne", "Köln")),
        ("""['it\\'s', "the 'Dom'", ' a, b ']""", ("it's", "the 'Dom'", "a, b")),
        ("[3, 4.50, '007']", ("3", "4.50", "4.5", "007")),
        (r'["a\/b", "\ud83d\ude00", null]', ("a/b", "😀")),
        (r"['a\tb\u00e9']", ("a\tbé",)),
        (" ['one'] ", ("one",)),
    ],
)
def test_lists_of_python_and_json_are_split(make: Make, cell: str, answers: tuple[str, ...]) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": cell}]
    (entry,) = load_split(make({"test.jsonl": rows}, format="rows", answer_cells="list"), "test")
    assert entry.questions[0].answers == answers


@pytest.mark.parametrize(
    "cell",
    [
        "['Cologne' 'Köln']",  # how NumPy prints an array of two texts
        "array(['Cologne', 'Köln'], dtype=object)",
        "{'text': array(['Cologne'], dtype=object), 'answer_start': array([16])}",
        "['Cologne', None]",
        "['Cologne', ['Köln']]",
        "[a for a in 'ab']",
        r"['a\/b']",
        "['Cologne'",
        "Cologne",
    ],
)
def test_a_cell_that_is_not_a_list_of_texts_is_named(make: Make, cell: str) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": cell}]
    with pytest.raises(BenchError, match=r"row 1, column answers: .* is not a list of texts"):
        load_split(make({"test.jsonl": rows}, format="rows", answer_cells="list"), "test")


@pytest.mark.parametrize("cell", ["['Cologne' 'Köln']", "[3, 4]", "array(['a'])", "{'text': ['a']}", '["a"]', "[]"])
def test_what_looks_like_a_list_is_not_taken_as_text(make: Make, cell: str) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": cell}]
    with pytest.raises(BenchError, match="looks like a list"):
        load_split(make({"test.jsonl": rows}, format="rows"), "test")


@pytest.mark.parametrize("cell", ["[sic]", "(3, 4]", "a [b]", "{x}", "3, 4"])
def test_other_brackets_are_text(make: Make, cell: str) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": cell}]
    assert load_split(make({"test.jsonl": rows}, format="rows"), "test")[0].questions[0].answers == (cell,)


@pytest.mark.parametrize(
    ("number", "answers"),
    [
        ("3.0", ("3.0", "3")),
        ("12.50", ("12.50", "12.5")),
        ("-0.25", ("-0.25",)),
        ("1e3", ("1e3", "1000")),
        ("1E400", ("1E400",)),
        ("7", ("7",)),
        ("9" * 5000, ("9" * 5000,)),
        ('"3.0"', ("3.0",)),
        ("NaN, 7", ("7",)),
    ],
)
def test_a_number_is_the_text_that_is_written(make: Make, number: str, answers: tuple[str, ...]) -> None:
    line = f'{{"text": "A.", "question": "Q?", "answers": [{number}]}}\n'
    assert load_split(make({"test.jsonl": line}, format="rows"), "test")[0].questions[0].answers == answers


def test_numbers_of_the_cases_are_text() -> None:
    assert reading(CASES / "float_answers.jsonl", format="documents")[0][2] == ("3.0", "3")
    assert reading(CASES / "decimal.parquet", **ROWS_OF_CASES)[0][2] == ("12.50", "12.5")
    (entry,) = load_split(recipe_of(format="documents"), "test", {"test": [str(CASES / "huge_int.jsonl")]})
    assert set(entry.document.text) == {"9"} and len(entry.document.text) > 4300


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("bool.jsonl", ROWS_OF_CASES, "row 1, column answers: expected text, found bool"),
        (
            "answers_mixed.jsonl",
            {"format": "documents"},
            "row 1, question 1, column answers: expected text, found list",
        ),
        ("facts_inf.jsonl", {"format": "documents"}, r"row 1, column facts: expected \[start, end\]"),
        ("surrogate_answer.jsonl", {"format": "documents"}, "row 3, question 1, column answers: .* half a surrogate"),
        (
            "revises_itself.jsonl",
            {"format": "documents"},
            "row 1, question 'q0': it revises 'q0', which is the question",
        ),
    ],
)
def test_a_case_is_refused_by_the_name_of_its_fault(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        reading(CASES / name, **keys)


def test_a_repeated_column_of_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    text = pyarrow.array(["A."])
    parquet.write_table(pyarrow.table([text, text, text], names=["text", "answers", "text"]), tmp_path / "x.parquet")
    with pytest.raises(BenchError, match=r"x\.parquet has the column 'text' twice"):
        reading(tmp_path / "x.parquet", format="rows")


# Revisions


def revising(*links: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Documents with one question each, from (id, id of the revised question, date)."""
    return [
        {
            "text": f"Note {name}.",
            "timestamp": date,
            "questions": [{"id": name, "question": "Where?", "answers": [name], "revises": revised}],
        }
        for name, revised, date in links
    ]


@pytest.mark.parametrize(
    ("order", "links", "message"),
    [
        ("random", [("a", "", ""), ("b", "c", "")], "question 'b': it revises 'c', which is not in the split"),
        ("random", [("a", "b", ""), ("b", "", "")], "question 'a': it revises 'b', which comes later"),
        ("random", [("a", "b", "2032"), ("b", "", "2031")], "which comes later.* with stream.order: timestamp"),
        ("random", [("a", "b", ""), ("b", "c", ""), ("c", "a", "")], "which comes later"),
        ("timestamp", [("a", "", "2032"), ("b", "a", "2031-06")], r"which comes later.*by timestamp"),
        ("timestamp", [("a", "b", "2031-05-01T23:00-05:00"), ("b", "", "2031-05-02T05:00Z")], "which comes later"),
        ("timestamp", [("a", "b", "2031"), ("b", "a", "2031")], "which comes later"),
        ("timestamp", [("a", "a", "2031")], "which is the question itself"),
    ],
)
def test_a_question_revises_an_earlier_one(make: Make, order: str, links: Any, message: str) -> None:
    harbour = make({"test.jsonl": revising(*links)}, format="documents", stream={"order": order})
    with pytest.raises(BenchError, match=message):
        load_split(harbour, "test")


@pytest.mark.parametrize(
    ("order", "links"),
    [
        ("random", [("a", "", ""), ("b", "a", ""), ("c", "b", ""), ("d", "a", "")]),
        ("timestamp", [("b", "a", "2032"), ("a", "", "2031")]),
        ("timestamp", [("a", "", "2031"), ("b", "a", "2031")]),
        ("timestamp", [("a", "", ""), ("b", "a", "2031")]),
    ],
)
def test_chains_of_revisions_are_read(make: Make, order: str, links: Any) -> None:
    harbour = make({"test.jsonl": revising(*links)}, format="documents", stream={"order": order})
    golds = [gold for entry in load_split(harbour, "test") for gold in entry.questions]
    assert [(gold.question.id, gold.revises or "") for gold in golds] == [(name, revised) for name, revised, _ in links]


def test_a_question_knows_all_that_it_supersedes_even_those_left_out(make: Make) -> None:
    rows = revising(("a", "", ""), ("b", "a", ""), ("c", "b", ""), ("d", "a", ""))
    rows[1]["questions"][0]["answers"] = []
    harbour = make({"test.jsonl": rows}, format="documents", unanswerable="leave_out")
    golds = {gold.question.id: gold.supersedes for e in load_split(harbour, "test") for gold in e.questions}
    assert golds == {"a": (), "c": ("b", "a"), "d": ("a",)}


# Questions without an answer, without an id, without a title


HUB_ROW = {"context": "A.", "title": "t", "question": "Who?", "answers": {"text": [], "answer_start": []}}
NESTED = {
    "context": "A.",
    "qas": [
        {"question": "Who?", "answers": [], "is_impossible": True},
        {"question": "Why?", "answers": [{"text": "a"}], "is_impossible": True},
    ],
}


@pytest.mark.parametrize(
    ("file", "left_out", "answers"),
    [
        (CASES / "squad_v2.json", 1, [("Ana Roos",), ("",)]),
        (CASES / "squad_v2_rows.jsonl", 1, [("",)]),
        ([HUB_ROW], 1, [("",)]),
        ([HUB_ROW, {**HUB_ROW, "question": "When?", "answers": {"text": ["1871"]}}], 1, [("",), ("1871",)]),
        ([{"data": [{"paragraphs": [NESTED]}]}], 2, [("",), ("",)]),
        ([{**HUB_ROW, "answers": "a", "is_impossible": "True"}], 1, [("",)]),
    ],
)
def test_unanswerable_questions_of_squad_are_left_out_or_kept(
    make: Make, tmp_path: Path, file: Any, left_out: int, answers: list[tuple[str, ...]]
) -> None:
    if isinstance(file, list):
        write_json_lines(tmp_path / "rows.jsonl", file)
        file = tmp_path / "rows.jsonl"
    data = read_split(recipe_of(format="squad"), "test", {"test": [str(file)]})
    assert [gold.answers for e in data.entries for gold in e.questions] == [
        texts for texts in answers if texts != ("",)
    ]
    assert data.remarks == (
        f"{left_out} question(s) of test without an answer are left out "
        f"(`unanswerable: keep` in the recipe scores them).",
    )
    kept = read_split(recipe_of(format="squad", unanswerable="keep"), "test", {"test": [str(file)]})
    assert [gold.answers for e in kept.entries for gold in e.questions] == answers
    assert kept.remarks == (
        f"{left_out} of {len(answers)} questions of test have no answer: the right answer is none.",
    )


@pytest.mark.parametrize("answers", [[], "", None, {"text": []}, float("nan"), [" "]])
def test_other_formats_declare_that_questions_may_lack_an_answer(make: Make, answers: Any) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": answers}]
    with pytest.raises(BenchError, match=r"row 1, column answers: the question has no answer.*unanswerable"):
        load_split(make({"test.jsonl": rows}, format="rows"), "test")
    (left_out,) = load_split(make({"test.jsonl": rows}, format="rows", unanswerable="leave_out"), "test")
    (kept,) = load_split(make({"test.jsonl": rows}, format="rows", unanswerable="keep"), "test")
    assert left_out.questions == () and kept.questions[0].answers == ("",)


@pytest.mark.parametrize("unanswerable", ["leave_out", "keep"])
def test_a_misspelt_column_of_answers_is_no_lack_of_answers(make: Make, unanswerable: str) -> None:
    rows = [{"text": "A.", "question": "Q?", "answer": ["a"]}]
    with pytest.raises(BenchError, match=r"no column 'answers'.*Did you mean answer\?"):
        load_split(make({"test.jsonl": rows}, format="rows", unanswerable=unanswerable), "test")


def test_a_table_is_no_plain_text(tmp_path: Path) -> None:
    (tmp_path / "news.jsonl").write_text('{"text": "A."}\n')
    with pytest.raises(BenchError, match=r"news\.jsonl is a table, no plain text\. Use a recipe with format"):
        load_split(recipe_of(format="text"), "test", {"test": [str(tmp_path / "news.jsonl")]})


def test_a_question_may_revise_one_that_is_left_out(make: Make) -> None:
    rows = revising(("a", "", ""), ("b", "a", ""))
    rows[0]["questions"][0]["answers"] = []
    harbour = make({"test.jsonl": rows}, format="documents", unanswerable="leave_out")
    assert [[gold.question.id for gold in e.questions] for e in load_split(harbour, "test")] == [[], ["b"]]


def test_repeated_questions_without_ids_are_different_if_their_answers_are() -> None:
    read = reading(CASES / "no_ids_same_question.json", format="squad")
    assert [answers for _, _, answers in read] == [("the red gate",), ("the blue gate",)]
    (entry,) = load_split(recipe_of(format="squad"), "test", {"test": [str(CASES / "no_ids_same_question.json")]})
    assert len({gold.question.id for gold in entry.questions}) == 2
    assert len(reading(CASES / "noid.jsonl", format="documents")) == 180


@pytest.mark.parametrize(
    ("answers", "expected"),
    [("aba", "ab"), ("abcab", "abc"), ("aaaa", "a")],
)
def test_a_question_that_is_repeated_with_its_answers_counts_once(make: Make, answers: str, expected: str) -> None:
    rows = [{"text": "A.", "question": "Q?", "answers": answer} for answer in answers]
    (entry,) = load_split(make({"test.jsonl": rows}, format="rows"), "test")
    assert [gold.answers for gold in entry.questions] == [(answer,) for answer in expected]
    assert len({gold.question.id for gold in entry.questions}) == len(expected)


def test_a_source_that_has_other_numbers_than_the_published_ones_is_refused(make: Make) -> None:
    files = {"test.jsonl": [MILL, PIER]}
    assert len(load_split(make(files, format="documents", expected={"test": {"documents": 2}}), "test")) == 2
    changed = make(files, format="documents", expected={"test": {"documents": 2, "questions": 3}})
    with pytest.raises(BenchError, match=r"2 documents and 2 questions; .* 2 documents and 3 .* was not read whole"):
        load_split(changed, "test")
    given = read_split(changed, "test", {"test": [str(changed.folder / "test.jsonl")]})
    assert given.remarks == (
        "test of harbour has 2 documents and 2 questions; the published split has 2 documents and 3 questions.",
    )


def test_rows_that_contradict_each_other_about_a_document_are_counted() -> None:
    data = read_split(recipe_of(**ROWS_OF_CASES), "test", {"test": [str(CASES / "same_text.jsonl")]})
    assert [(e.document.timestamp, e.document.title, len(e.questions)) for e in data.entries] == [
        ("2020-01-01", "x", 2)
    ]
    (remark,) = data.remarks
    assert remark.startswith("1 row(s) of test repeat a document with another title, timestamp or group")


def test_questions_that_are_there_again_count_once_and_are_counted(make: Make) -> None:
    question = {"question": "Who?", "answers": ["Li"]}
    rows = [
        {"text": "Li.", "questions": [{**question, "id": "a"}, {**question, "id": "a"}, question]},
        {"text": "Li.", "questions": [question, {**question, "answers": ["li"]}]},
    ]
    data = read_split(make({"test.jsonl": rows}, format="documents"), "test")
    assert [len(entry.questions) for entry in data.entries] == [3]
    repeated, _ = data.remarks
    assert repeated == "2 question(s) of test repeat an earlier one, with its document and answers: it counts once."


def test_articles_of_squad_are_read_as_those_of_its_file_are(make: Make) -> None:
    paragraph = {"context": "Li won.", "qas": [{"id": "a", "question": "Who?", "answers": [{"text": "Li"}]}]}
    articles = [
        {"title": "Li", "paragraphs": [paragraph]},
        {"title": "Bo", "paragraphs": [{"context": "Bo.", "qas": []}]},
    ]
    whole, bare = ({"data": articles}, articles)
    files = {"test.json": [whole], "train.jsonl": bare}
    squad = make(files, format="squad", source={"files": {name.partition(".")[0]: [name] for name in files}})
    assert load_split(squad, "test") == load_split(squad, "train")
    broken = make({"test.jsonl": [{"paragraphs": [{"context": ""}]}]}, format="squad")
    with pytest.raises(BenchError, match=r"test\.jsonl, row 1, paragraph 1, column context: the document is empty"):
        load_split(broken, "test")


def test_a_weekly_file_of_realtimeqa_among_prepared_ones_is_pointed_to_its_dataset(make: Make) -> None:
    weekly = make({"test.jsonl": [{"question_sentence": "Who?", "evidence": "Li."}]}, format="documents")
    with pytest.raises(BenchError, match=r"no column 'text' .* use --dataset realtimeqa_weekly"):
        load_split(weekly, "test")


def test_what_is_wrong_with_a_joined_document_is_said_with_its_place(make: Make) -> None:
    files = {
        "asked.jsonl": [{"question": "Where from?", "answers": ["Pier 4"], "at": 5}],
        "documents.jsonl": [{"key": 4, "text": "Pier 3."}, {"key": 5, "text": ""}],
    }
    source = {"files": {"test": list(files)}}
    harbour = make(files, format="rows", join={"question": "at", "document": "key"}, source=source)
    with pytest.raises(BenchError, match=r"asked\.jsonl, row 1 with .*documents\.jsonl, row 2, column text: .* empty"):
        load_split(harbour, "test")


def test_questions_that_are_asked_again_and_documents_without_a_group_are_counted(make: Make) -> None:
    again = [{"id": identity, "question": "Who?", "answers": ["Li"]} for identity in ("a", "b", "c")]
    other = {"text": "Li, too.", "group": "Li", "questions": [{**again[0], "id": "d"}]}
    rows = [{"text": "Li.", "questions": again}, other]
    harbour = make({"test.jsonl": rows}, format="documents", stream={"group": True})
    data = read_split(harbour, "test")
    assert sum(len(entry.questions) for entry in data.entries) == 4
    assert data.remarks == (
        "2 question(s) of test are asked again about the same document, under another id: all count.",
        "1 document(s) of test have no group, by which streams are drawn: each is a group of its own.",
    )


def test_questions_and_documents_may_be_in_two_files_of_the_recipe(make: Make) -> None:
    files = {
        "asked.jsonl": [{"question": "Where from?", "answers": ["Pier 4"], "at": 5}],
        "documents.jsonl": [{"key": 5, "text": PIER["text"]}],
    }
    source = {"files": {"test": list(files)}}
    harbour = make(files, format="rows", join={"question": "at", "document": "key"}, source=source)
    assert load_split(harbour, "test")[0].document.text == PIER["text"]


def test_a_paragraph_of_squad_without_questions_says_so(make: Make) -> None:
    articles = [{"title": "A", "paragraphs": [{"context": "Note 1."}]}]
    with pytest.raises(BenchError, match=r"paragraph 1, column qas: expected a list of questions, \[\] for none"):
        load_split(make({"test.json": json.dumps({"data": articles})}, format="squad"), "test")


def test_squad_needs_no_titles(make: Make) -> None:
    file = CASES / "chinese_no_title.json"
    assert reading(file, format="squad") == [("", "灯塔由谁设计？", ("李安",))]
    articles = [
        {"title": title, "paragraphs": [{"context": f"Note {number}.", "qas": []} for number in (first, first + 1)]}
        for title, first in (("A", 0), ("", 2))
    ]
    articles.append({"paragraphs": [{"context": "Note 4.", "qas": [], "title": "own"}]})
    entries = load_split(make({"test.json": json.dumps({"data": articles})}, format="squad"), "test")
    assert [(entry.document.title, entry.group) for entry in entries] == [(t, t) for t in ("A", "A", "", "", "own")]


@pytest.mark.parametrize(
    ("name", "segment", "remark"),
    [
        ("zh_six.json", "words", "Most answers of test are in a script without spaces"),
        ("chinese_no_title.json", "words", "Most answers of test are in a script without spaces"),
        ("zh_six.json", "characters", "Scores of answers compare characters"),
        ("hi_six.json", "words", ""),
        ("long_question.json", "words", ""),
    ],
)
def test_scripts_without_spaces_are_remarked_on(name: str, segment: str, remark: str) -> None:
    data = read_split(recipe_of(format="squad", segment=segment), "test", {"test": [str(CASES / name)]})
    assert len(data.remarks) == bool(remark) and all(text.startswith(remark) for text in data.remarks)


@pytest.mark.real_data
def test_real_squad_has_the_known_numbers_of_paragraphs_and_questions(real_data: Path) -> None:
    path = real_data / "squad" / "squad_v1.1_38_articles.json"
    entries = load_split(recipe.find("squad"), "test", {"test": [str(path)]})
    assert len(entries) == 1647
    assert sum(len(entry.questions) for entry in entries) == 8357
    assert len({entry.group for entry in entries}) == 38
    assert entries[0].questions[0].answers == ("October 1973", "October", "1973")


@pytest.mark.real_data
@pytest.mark.parametrize("split", SPLITS)
def test_real_splits_have_the_documents_and_questions_that_a_count_of_their_files_gives(
    real_data: Path, split: str
) -> None:
    squad, news = real_data / "squad" / f"{split}.json", real_data / "realtimeqa" / f"{split}.jsonl"
    paragraphs = [one for article in json.loads(squad.read_text())["data"] for one in article["paragraphs"]]
    rows = [json.loads(line) for line in news.read_text().splitlines()]  # some repeat a question
    for dataset, path, expected in (
        ("squad", squad, [(one["context"], [qa["id"] for qa in one["qas"]]) for one in paragraphs]),
        ("realtimeqa", news, [(row["text"], list({one["id"]: 0 for one in row["questions"]})) for row in rows]),
    ):
        entries = load_split(recipe.find(dataset), split, {split: [str(path)]})
        assert [(one.document.text, [gold.question.id for gold in one.questions]) for one in entries] == expected


@pytest.mark.real_data
def test_real_novels_have_their_years(real_data: Path) -> None:
    novels = real_data / "novels"
    entries = load_split(recipe.find("text"), "test", {"test": [str(novels)]})
    assert len(entries) == len(list(novels.glob("*.txt"))) > 0
    assert all(entry.document.timestamp.isdigit() and not entry.questions for entry in entries)
