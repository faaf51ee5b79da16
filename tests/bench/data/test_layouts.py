"""Published layouts: miniatures of each give the right documents, questions, answers, dates and splits."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from bench.data import recipe
from bench.data.documents import Entry, superseded
from bench.data.layouts import LAYOUTS
from bench.data.reader import read_split
from bench.data.recipe import Recipe
from bench.errors import BenchError


def read(dataset: str, split: str, *files: Path) -> tuple[Entry, ...]:
    return read_split(recipe.find(dataset), split, {split: list(map(str, files))}).entries


def asked(entry: Entry) -> dict[str, Sequence[str]]:
    return {gold.question.text: gold.answers for gold in entry.questions}


def lines(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_every_layout_is_a_format() -> None:
    assert set(get_args(Recipe.model_fields["format"].annotation)) == {"documents", "rows", "squad", "text", *LAYOUTS}


def test_a_row_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "edits.jsonl", {"case_id": 1, "requested_rewrite": {"prompt": "{} is", "subject": "Ada"}})
    with pytest.raises(BenchError, match=r"edits.jsonl, row 1 has no 'target_new', which a row of CounterFact has"):
        read("counterfact", "test", path)
    path = lines(tmp_path / "edits.jsonl", {"case_id": 1, "requested_rewrite": "none"})
    with pytest.raises(BenchError, match=r"edits.jsonl, row 1 is not a row of CounterFact: "):
        read("counterfact", "test", path)


@pytest.mark.parametrize(
    ("dataset", "file", "content", "lacks"),
    [
        ("streamingqa", "test.csv", "question,answers\nWho?,Ada\n", "text"),
        ("archivalqa", "test.csv", "question,answer,doc_id\nWho?,Ada,1\n", "ans_paragraph"),
        ("timeqa", "test.json", '{"idx": "1", "question": "Who?", "targets": ["Ada"]}\n', "context"),
        ("realtimeqa_weekly", "20240705_qa.jsonl", '{"question_id": "1", "question_sentence": "Who?"}\n', "evidence"),
        ("zsre", "test.json", '[{"src": "Who?", "rephrase": "Who is it?"}]', "answers"),
        ("oaks", "test.json", '[{"meta": {"bid": "1"}}]', "data"),
    ],
)
def test_a_file_that_lacks_a_column_or_is_missing_is_named_with_it(
    dataset: str, file: str, content: str, lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAB_ACCEPT", "archivalqa")
    path = tmp_path / file
    with pytest.raises(BenchError, match=f"{file} is not a file: put the data of {dataset} there"):
        read(dataset, "test", path)
    path.write_text(content)
    with pytest.raises(BenchError, match=f"{file}, row 1 has no (column )?'{lacks}'"):
        read(dataset, "test", path)


@pytest.fixture
def weeks(tmp_path: Path) -> Path:
    """A folder of two weeks, with a question without evidence and one whose answer is not in it."""

    def week(date: str, *evidence: str) -> list[dict[str, Any]]:
        return [
            {
                "question_id": f"{date}_{number}",
                "question_date": f"{date[:4]}/{date[4:6]}/{date[6:]}",
                "question_sentence": f"Who won match {number}?",
                "choices": ["Alder", "Birch & Co", "Cedar", "Dogwood"],
                "answer": ["1"],
                "evidence": text,
            }
            for number, text in enumerate(evidence)
        ]

    again = "<p>Each year</p>birch &amp; co win."

    for date in ("20210625", "20240705"):
        (tmp_path / "past" / date[:4]).mkdir(parents=True)
        rows = week(date, "", f"<p>On {date}, <b>birch &amp; co</b>\n won.</p>", "Birch & Cold won.", again, again)
        rows[4]["question_sentence"] = f"Who won <em>again</em> in {date[:4]}?"
        rows[1]["question_date"] = (
            f"{date[:4]}/{date[4:6]}/{int(date[6:]) - 3:02}"  # a quiz has questions of several days
        )
        rows[1]["choices"][1] = "\u201cBirch & Co\u201d"
        rows[3]["question_date"] = "2019/07/05"  # a slip
        lines(tmp_path / "past" / date[:4] / f"{date}_qa.jsonl", *rows)
    (tmp_path / "past" / "2024" / "20240705_dpr.jsonl").write_text("not read")
    return tmp_path


def test_realtimeqa_keeps_questions_whose_evidence_has_the_answer_in_the_period_of_the_split(weeks: Path) -> None:
    [entry] = read("realtimeqa_weekly", "test", weeks)  # the evidence of each year is of the first one
    assert (entry.document.text, entry.document.timestamp) == ("On 20240705, birch & co won.", "2024-07-02")
    assert [(gold.question.id, gold.answers) for gold in entry.questions] == [
        ("20240705_1", ("\u201cBirch & Co\u201d", "Birch & Co"))
    ]
    assert entry.group == "20240705"
    older, yearly = read("realtimeqa_weekly", "qa_train", weeks)
    assert (older.document.timestamp, yearly.document.timestamp) == ("2021-06-22", "2021-06-25")
    assert older.group == yearly.group == "20210625"
    assert yearly.document.text == "Each year birch & co win."
    assert list(asked(yearly)) == ["Who won match 3?", "Who won again in 2021?", "Who won again in 2024?"]
    by_file = sorted(weeks.rglob("*_qa.jsonl"), reverse=True)
    assert read("realtimeqa_weekly", "qa_train", *by_file) == (older, yearly), "files count as their folder does"
    with pytest.raises(BenchError, match="'validation' of realtimeqa_weekly contains no documents of its period"):
        read("realtimeqa_weekly", "validation", weeks)


QUIZ = {
    "question_id": "20240705_1",
    "question_date": "2024/07/04",
    "question_sentence": "Who won?",
    "choices": ["Alder", "Birch", ""],
    "answer": ["0"],
    "evidence": "Alder won.",
}


def quiz(tmp_path: Path, *changes: Mapping[str, Any], name: str = "20240705_qa.jsonl") -> Path:
    return lines(tmp_path / name, *({**QUIZ, "question_id": f"20240705_{n}", **one} for n, one in enumerate(changes)))


def test_what_realtimeqa_leaves_out_is_counted(tmp_path: Path) -> None:
    path = quiz(
        tmp_path,
        {},
        {},
        {"evidence": None},
        {"evidence": ""},
        {"answer": ["1"]},
        {"answer": ["2"]},
        {"question_sentence": "Who else?", "question_date": "2019/07/04"},
    )
    data = read_split(recipe.find("realtimeqa_weekly"), "test", {"test": [str(path)]})
    assert [list(asked(entry)) for entry in data.entries] == [["Who won?", "Who else?"]]
    assert data.remarks[:2] == (
        "Of the 7 questions in the files of test, of whatever period, 2 have no evidence, 2 an answer that does not "
        "stand in it, and 1 were asked before: they are left out.",
        "1 question(s) in the files of test, of whatever period, with a date far from their quiz have its date.",
    )
    with pytest.raises(BenchError, match=r"no documents of its period: name other files\. Of the 7 questions in the"):
        read("realtimeqa_weekly", "qa_train", path)


@pytest.mark.parametrize("names", [("a_qa.jsonl", "b_qa.jsonl"), ("b_qa.jsonl", "a_qa.jsonl")])
def test_what_several_quizzes_ask_is_of_the_first_quiz_in_whatever_file_that_is(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name, week in zip(names, ("20240705", "20250704"), strict=True):
        date = f"{week[:4]}/{week[4:6]}/{int(week[6:])}"  # without a zero
        quiz(tmp_path, {"question_id": f"{week}_0", "question_date": date}, name=name)
    [entry] = read("realtimeqa_weekly", "test", tmp_path)
    assert (entry.document.timestamp, entry.group) == ("2024-07-05", "20240705")


@pytest.mark.parametrize(
    ("answer", "bare", "elsewhere"),
    [
        ('"Alder"', "Alder", "\u201cAlder\u201d"),
        ("\u201cAlder\u201d and \u201cBirch\u201d", "Alder and Birch", '"Alder" and "Birch"'),
        ("\u2018Alder\u2019 the musical", "Alder the musical", '"Alder" the musical'),
        ("'Alder'", "Alder", "Alder"),
        ("rock 'n' roll", "rock n roll", "Rock \u2018n\u2019 roll"),
        ("the Alders'", None, "the Alders'"),
        ("Don't Look", None, "\u201cDon't Look\u201d"),
        ("5 o\u2019clock \u2019til 6", None, "5 o\u2019clock \u2019til 6"),
    ],
)
def test_an_answer_of_realtimeqa_is_also_given_without_quotation_marks(
    tmp_path: Path, answer: str, bare: str | None, elsewhere: str
) -> None:
    for evidence in (answer, bare or answer, elsewhere):
        path = quiz(tmp_path, {"choices": [answer], "evidence": f"They saw {evidence}, all of them."})
        [entry] = read("realtimeqa_weekly", "test", path)
        assert entry.questions[0].answers == ((answer, bare) if bare else (answer,))
        assert evidence in entry.document.text


def test_a_block_of_html_divides_words_and_scripts_are_no_text(tmp_path: Path) -> None:
    html = "<script>if (a < b) x()</script><h2>Alder</h2>They <i>w</i>on.<table><tr><th>Birch<th>9</table>"
    [entry] = read("realtimeqa_weekly", "test", quiz(tmp_path, {"evidence": html}))
    assert entry.document.text == "Alder They won. Birch 9"


def test_all_weekly_files_of_a_folder_count_and_a_folder_without_one_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "20240712_QA.jsonl.gz"
    again = quiz(tmp_path, {"question_id": "20240712_1", "evidence": "Alder again."}, name="20240719_qa.json")
    packed.write_bytes(gzip.compress(again.read_bytes()))
    quiz(tmp_path, {"question_id": "20240719_1"}, name="20240719_qa.json")
    (tmp_path / "._20240719_qa.jsonl").write_bytes(b"\0\xff of macOS")
    assert len(read("realtimeqa_weekly", "test", tmp_path)) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match=r"empty has no weekly file of RealTimeQA, as in 20240705_qa\.jsonl"):
        read("realtimeqa_weekly", "test", tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ["-1"]}, "there is no choice"),
        ({"answer": ["3"]}, "is not a row of RealTimeQA"),
        ({"evidence": ["Alder won."]}, "is not a row of RealTimeQA"),
        ({"question_date": None}, "has no timestamp, by which realtimeqa_weekly is cut"),
        ({"question_date": "5 July"}, "5 July"),
    ],
)
def test_a_row_of_realtimeqa_that_is_wrong_is_named(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=f"20240705_qa.jsonl, row 1.*{message}"):
        read("realtimeqa_weekly", "test", quiz(tmp_path, {"question_id": "1", **change}))


def test_an_index_of_realtimeqa_may_stand_alone_and_a_time_may_have_a_zone(tmp_path: Path) -> None:
    row = {"answer": "0", "question_date": "2024-07-04T10:00:00Z"}
    [entry] = read("realtimeqa_weekly", "test", quiz(tmp_path, row))
    assert (entry.questions[0].answers, entry.document.timestamp[:10]) == (("Alder",), "2024-07-04")


def test_counterfact_asks_the_edit_and_keeps_its_neighbourhood_for_the_anchor_set(tmp_path: Path) -> None:
    case = {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Ada Alder",
            "target_new": {"str": "Finnish", "id": "Q1"},
            "target_true": {"str": "French", "id": "Q2"},
        },
        "paraphrase_prompts": ["It rained. Ada Alder, a native"],
        "neighborhood_prompts": ["The mother tongue of Bo Birch is", "Cy Cedar speaks", "The mother tongue of Di is"],
    }
    other = {**case, "case_id": 8, "requested_rewrite": {**case["requested_rewrite"], "subject": "Di"}}
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([case, {**other, "neighborhood_prompts": []}]))
    [edit, _] = read("counterfact", "test", path)
    assert edit.document.text == "The mother tongue of Ada Alder is Finnish."
    assert [(gold.question.id, gold.question.text, gold.answers) for gold in edit.questions] == [
        ("7", "The mother tongue of Ada Alder is", ("Finnish",)),
        ("7/paraphrase-1", "It rained. Ada Alder, a native", ("Finnish",)),
    ]
    near = read("counterfact", "qa_train", path)
    assert [entry.document.text for entry in near] == [
        "The mother tongue of Bo Birch is French.",
        "Cy Cedar speaks French.",
    ]
    assert asked(near[1]) == {"Cy Cedar speaks": ("French",)}


def test_zsre_asks_the_edit_rephrased_and_questions_beside_it_for_the_anchor_set(tmp_path: Path) -> None:
    row = {
        "subject": "Ada",
        "src": "Where was Ada born?",
        "rephrase": "What is Ada's birthplace?",
        "answers": ["Oslo"],
        "alt": "Bergen",
        "loc": "nq question: who sang the song",
        "loc_ans": "Bo",
    }
    path = tmp_path / "zsre_mend_eval.json"
    path.write_text(json.dumps([row]))
    [edit] = read("zsre", "test", path)
    assert edit.document.text == "Where was Ada born? Oslo"
    assert asked(edit) == {"Where was Ada born?": ("Oslo",), "What is Ada's birthplace?": ("Oslo",)}
    [near] = read("zsre", "qa_train", path)
    assert asked(near) == {"who sang the song?": ("Bo",)}


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [("hall", ["hall"]), ("milk,football", ["milk, football", "football, milk"]), ("n,e", ["n, e"])],
)
def test_a_list_is_an_answer_of_babi_in_any_order_and_a_path_in_its_own(
    tmp_path: Path, answer: str, accepted: list[str]
) -> None:
    path = tmp_path / "qa.txt"
    path.write_text(f"1 Mary took the milk.\n2 What is it?\t{answer}\t1\n")
    (entry,) = read("babi", "test", path)
    assert asked(entry) == {"What is it?": tuple(accepted)}


def test_a_document_of_babi_is_the_story_up_to_a_question(tmp_path: Path) -> None:
    path = tmp_path / "qa1_test.txt"
    path.write_text(
        "1 Mary went to the hall.\n2 Where is Mary? \thall\t1\n3 Mary went to the garden.\n4 Bo went to the hall.\n"
        "5 Where is Bo? \thall\t4\n1 Bo took the milk.\n2 What has Bo? \tmilk\t1\n"
    )
    one, two, three = read("babi", "test", path)
    assert one.document.text == "Mary went to the hall." and asked(one) == {"Where is Mary?": ("hall",)}
    assert two.document.text == "Mary went to the hall.\nMary went to the garden.\nBo went to the hall."
    assert asked(two) == {"Where is Bo?": ("hall",)} and asked(three) == {"What has Bo?": ("milk",)}
    assert one.group == two.group != three.group
    path.write_text("Mary went to the hall.\n")
    with pytest.raises(BenchError, match=r"line 1 is not a line of bAbI: it does not begin with a number"):
        read("babi", "test", path)


def test_a_question_of_oaks_is_asked_anew_when_its_answer_changes(tmp_path: Path) -> None:
    answers = {"0": ["hall"], "1": ["hall"], "2": ["garden", "yard"], "3": ["hall"]}
    text = {
        "meta": {"bid": "OAKSB00", "num_chunks": 4, "num_qas": 1},
        "data": {
            "chunks": {str(chunk): f"Chunk {chunk}." for chunk in range(4)},
            "qas": {"Where is Mary?": {"question_id": "OAKSB00_q0", "chunk_to_answer": answers}},
        },
    }
    path = tmp_path / "oaks.json"
    path.write_text(json.dumps([text]))
    entries = read("oaks", "test", path)
    assert [(entry.document.text, entry.group) for entry in entries] == [(f"Chunk {i}.", "OAKSB00") for i in range(4)]
    golds = [gold for entry in entries for gold in entry.questions]
    assert [(gold.question.id, gold.answers, gold.revises) for gold in golds] == [
        ("OAKSB00_q0@0", ("hall",), None),
        ("OAKSB00_q0@2", ("garden", "yard"), "OAKSB00_q0@0"),
        ("OAKSB00_q0@3", ("hall",), "OAKSB00_q0@2"),
    ]
    assert superseded(golds) == {"OAKSB00_q0@0", "OAKSB00_q0@2"}


def test_an_article_of_wikitext_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "wiki.test.tokens"
    path.write_text(
        " \n = Alder = \n \n The alder . \n \n = = Leaves = = \n \n Green : \n = 1 <unk> = \n \n"
        " = Birch = \n \n White . \n"
    )
    alder, birch = read("wikitext", "test", path)
    assert alder.document.title == "Alder" and birch.document.title == "Birch"
    assert alder.document.text == "= Alder = \n \n The alder . \n \n = = Leaves = = \n \n Green : \n = 1 <unk> ="
    assert not alder.questions


def archive(path: Path, *articles: tuple[str, str]) -> list[str]:
    """Write articles (date, text) as the WMT News Crawl does; returns their sorting keys."""
    keys, written = [], []
    for date, text in articles:
        split, whole = (base64.b64encode(part.encode()).decode() for part in (text, text.replace("\n", " ")))
        written.append(f"{date}\t{split}\t{whole}\n")
        keys.append(f"{date}000000000000\0\1{hashlib.sha256(whole.encode()).hexdigest()}\0\1")
    path.write_bytes(gzip.compress("".join(written).encode()))
    return keys


def test_streamingqa_joins_questions_to_articles_of_the_news_crawl(tmp_path: Path) -> None:
    articles = [("20200105", "Ada won.\nBo lost."), ("20190307", "It rained."), ("20190308", "Not asked about.")]
    news = tmp_path / "news-docs.2020.en.filtered.gz"
    keys = archive(news, *articles)
    rows = [
        {
            "qa_id": f"eval-{number}",
            "question": question,
            "question_ts": 1586649600 + 86400 * number,
            "answers": answers,
            "evidence_id": keys[place],
        }
        for number, (question, answers, place) in enumerate(
            [("Who won?", ["Ada", "Ada A.", "ada"], 0), ("Who lost?", ["Bo"], 0), ("Did it rain?", ["yes"], 1)]
        )
    ]
    questions = lines(tmp_path / "streaminqa_eval.jsonl", *rows)
    data = read_split(recipe.find("streamingqa_upstream"), "test", {"test": [str(questions), str(news)]})
    assert [(entry.document.text, entry.document.timestamp) for entry in data.entries] == [
        ("Ada won.\nBo lost.", "2020-01-05"),
        ("It rained.", "2019-03-07"),
    ]
    assert asked(data.entries[0]) == {"Who won?": ("Ada", "Ada A.", "ada"), "Who lost?": ("Bo",)}
    assert [gold.question.timestamp for gold in data.entries[0].questions] == ["2020-04-12", "2020-04-13"]
    assert data.remarks == ("test of streamingqa_upstream has 3 questions; the published split has 36,378 questions.",)
    with pytest.raises(
        BenchError, match=r"eval\.jsonl, row 1 is a question after documents\. Name the questions first"
    ):
        read("streamingqa_upstream", "test", news, questions)
    with pytest.raises(BenchError, match=r"No row of test has the column 'question', a question\. Name the questions"):
        read("streamingqa_upstream", "test", news)
    archive(news, articles[0])
    data = read_split(recipe.find("streamingqa_upstream"), "test", {"test": [str(questions), str(news)]})
    assert len(data.entries) == 1
    assert data.remarks[0] == "1 of 3 questions of test are left out: their documents are not in the files."
    news.write_bytes(gzip.compress(b"20200105\tno base64\t-\n"))
    with pytest.raises(BenchError, match=r"line 1 is not of the WMT News Crawl"):
        read("streamingqa_upstream", "test", questions, news)


def test_the_tables_of_camels_give_the_shortest_answer(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text("question,answers,text\nWho won?,Ada Alder\\Ada,Ada Alder won.\nWho lost?,Bo,Ada Alder won.\n")
    [entry] = read("streamingqa", "test", path)
    assert asked(entry) == {"Who won?": ("Ada",), "Who lost?": ("Bo",)}


def test_archivalqa_needs_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test.csv"
    path.write_text(
        "question,answer,doc_id,para_num,ans_paragraph,ans_text\nWho won?,Ada,12,3,Ada won.,Ada won. It rained.\n"
    )
    with pytest.raises(BenchError, match=r"needs a licence .* If you have agreed to this, set OAB_ACCEPT=archivalqa\."):
        read("archivalqa", "test", path)
    monkeypatch.setenv("OAB_ACCEPT", "other,archivalqa")
    [entry] = read("archivalqa", "test", path)
    assert (entry.document.text, entry.group, asked(entry)) == ("Ada won.", "12", {"Who won?": ("Ada",)})


def test_archivalqa_as_published_is_cut_by_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAB_ACCEPT", "archivalqa_upstream")
    questions = tmp_path / "ArchivalQA_val.csv"
    questions.write_text(
        "id,question,answer,org_answer,answer_start,para_id,trans_que,trans_ans,source\n"
        "val_0,Who won?,Ada,Ada,0,1_0,0,0,wiki\nval_1,Who lost?,Bo,Bo,0,2_4,0,0,wiki\n"
    )
    paragraphs = lines(
        tmp_path / "paragraphs.jsonl",
        {"para_id": "1_0", "doc_id": "1", "text": "Ada won.", "date": "1990-12-31"},
        {"para_id": "2_4", "doc_id": "2", "text": "Bo lost.", "date": "2004-01-01"},
    )
    cut = (("qa_train", "Who won?", "1", "12,378"), ("test", "Who lost?", "2", "8,743"))
    for split, question, article, published in cut:
        files = {split: [str(questions), str(paragraphs)]}
        data = read_split(recipe.find("archivalqa_upstream"), split, files)
        [entry] = data.entries
        assert (list(asked(entry)), entry.group) == ([question], article)
        has = f"{split} of archivalqa_upstream has 1 questions; the published split has {published} questions."
        assert data.remarks == (has,)


def test_a_part_of_pg19_is_noted(tmp_path: Path) -> None:
    for name in ("10146.txt", "Emma_1815.txt"):
        (tmp_path / name).write_text(f"The book {name}.")
    data = read_split(recipe.find("pg19"), "test", {"test": [str(tmp_path)]})
    assert [(entry.document.title, entry.document.timestamp) for entry in data.entries] == [
        ("10146", ""),
        ("Emma", "1815"),
    ]
    assert data.remarks == ("test of pg19 has 2 documents; the published split has 100 documents.",)


def test_timeqa_leaves_out_what_the_article_does_not_answer(tmp_path: Path) -> None:
    rows = [
        {"idx": "/wiki/Ada#P1#0", "question": "Which club had Ada in 1993?", "context": "Ada.", "targets": ["FC A"]},
        {"idx": "/wiki/Ada#P1#1", "question": "Which club had Ada in 1890?", "context": "Ada.", "targets": [""]},
    ]
    path = tmp_path / "test.hard.json.gzip"
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))
    data = read_split(recipe.find("timeqa"), "test", {"test": [str(path)]})
    assert asked(data.entries[0]) == {"Which club had Ada in 1993?": ("FC A",)}
    assert data.remarks[0].startswith("1 question(s) of test without an answer are left out")
