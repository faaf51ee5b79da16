"""The page holds what the records hold, as data; its policy allows nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import reports
from bench.records import published
from bench.records.schema import Tally
from bench.records.store import read_answers
from reports import plots, tables
from reports.board import Board, build
from reports.page import across, boards, document, write
from reports.page.texts import texts
from tests.reports import records_factory as factory
from tests.reports.page.parsing import Page

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)></table>\u2028'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    factory.realistic(folder, streams=4, documents=12, questions=2)
    return folder


@pytest.fixture(scope="module")
def board(runs: Path) -> Board:
    return build(runs)


@pytest.fixture(scope="module")
def page(runs: Path, board: Board, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write([board], tmp_path_factory.mktemp("out")))


def test_the_same_records_give_the_same_bytes(runs: Path, board: Board, tmp_path: Path) -> None:
    first, second = (write([one], tmp_path / str(i)).read_bytes() for i, one in enumerate((board, build(runs))))
    assert first == second


def test_the_policy_allows_the_scripts_of_the_file_and_nothing_from_outside(page: Page) -> None:
    directives = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in page.scripts}
    assert directives["default-src"] == "'none'" and directives["img-src"] == "data:"
    assert set(directives["script-src"].split()) == hashes and len(hashes) == 4
    assert not {"iframe", "object", "embed", "img"} & set(page.tags)
    assert "http" not in page.policy and "unsafe-eval" not in page.policy


def test_the_table_has_the_cells_numbers_and_errors_of_the_other_formats(page: Page, board: Board) -> None:
    (shown,) = page.blocks["boards"]
    headings = [column["heading"] for column in shown["columns"]]
    assert len(shown["rows"]) == len(board.rows) > 10
    assert [row["best"] for row in shown["rows"]] == [row.is_bold for row in board.rows]
    for row, facts in zip(shown["rows"], (tables.fields(row, board) for row in board.rows), strict=True):
        place = headings.index("F1")
        assert (row["numbers"][place], row["halves"][place]) == (facts["f1"], facts["f1_ci95"])
        assert (row["ranks"] or [None, None]) == [facts["rank_low"], facts["rank_high"]]
        assert (row["control"], row["arm"]) == (facts["control"], facts["arm"])
        assert row["costs"]["total seconds"] == facts["total_seconds"]
        assert row["costs"]["offline share of the seconds"] == facts["offline_seconds"] / facts["total_seconds"]


def test_where_text_alone_is_scored_the_totals_are_with_scoring_and_say_so(tmp_path: Path) -> None:
    ids = [factory.record(tmp_path, factory.spec(method, "test-1-0"), nll=[2.0]) for method in ("closed_book", "lora")]
    factory.board(tmp_path, ids)
    own = build(tmp_path)
    for row, shown in zip(own.rows, boards.facts(own)["rows"], strict=True):
        seconds = row.costs["total_seconds"] + 1.0  # of scoring
        assert shown["costs"]["total seconds, with scoring"] == seconds and "total seconds" not in shown["costs"]
        assert shown["costs"]["offline share of the seconds"] == row.costs["offline_seconds"] / seconds


def test_the_rows_that_are_worse_are_those_of_the_tests(page: Page, board: Board) -> None:
    for row, shown in zip(board.rows, page.blocks["boards"][0]["rows"], strict=True):
        expected = row.standing.worse if row.standing else set()
        assert {board.rows[place].label for place in shown["worse"]} == expected


def test_every_answer_of_the_records_is_on_the_page_once(page: Page, board: Board, runs: Path) -> None:
    questions, (shown,) = page.blocks["questions-0"], page.blocks["boards"]
    found = sorted(
        (row.label, shown["streams"][run["stream"]], probe["probe"], questions[place]["id"], prediction, f1)
        for row, of_row in zip(board.rows, page.blocks["answers-0"], strict=True)
        for run in of_row
        for probe in run["probes"]
        for place, prediction, f1 in zip(probe["question"], probe["prediction"], probe["f1"], strict=True)
    )
    expected = sorted(
        (row.label, record.spec.stream, event.probe, event.question_id, event.prediction, round(event.f1, 3))
        for row in board.rows
        for record in row.records
        for event in read_answers(runs, record.id)
        if event.set == "stream"
    )
    assert found == expected and len(found) > 1000


def test_a_row_opens_to_its_settings_trials_runs_and_provenance(page: Page, board: Board) -> None:
    place = next(i for i, row in enumerate(board.rows) if (row.method, row.arm) == ("camels", "stream"))
    details = page.blocks[f"row-0-{place}"]
    assert details["settings"] == [["learning_rate", 0.01, "tuned"]]
    tried = [(trial["values"], trial["score"]) for trial in details["tuning"]["trials"]]
    assert [values for values, _ in tried] == [[0.001], [0.01], [0.1], [1.0]]
    assert tried[-1][1] is None and details["tuning"]["chosen"] == 1
    records = {record.id: record for record in board.rows[place].records}
    assert {run["id"] for run in details["runs"]} == set(records) and len(records) == 4
    for run in details["runs"]:
        summary = records[run["id"]].summary
        assert summary is not None and run["scores"]["f1"] == summary.f1


def test_a_score_stands_beside_its_cost_as_in_the_table(tmp_path: Path) -> None:
    shown = Page(write([make_board(tmp_path, {"uniform": 0.4}, "demo")], tmp_path / "out")).blocks["boards"][0]
    (row,) = shown["rows"]
    assert row["score"][2] == "0.400 ± <0.001" and row["score"][2] in row["cells"]


def test_a_row_that_is_cheaper_only_at_first_says_until_when(tmp_path: Path) -> None:
    dear = factory.costs(2.0)  # 60 + 5 seconds offline, 2 + 3 for the document and its question
    cheap = factory.costs(3.0).model_copy(update={"fit": Tally(seconds=0, flops=0, peak_bytes=0)})  # 60, 3 + 3
    runs = {"uniform": dear, "lora": cheap}
    ids = [factory.record(tmp_path, factory.spec(name, "test-1-0"), [[0.5]], costs=of) for name, of in runs.items()]
    factory.board(tmp_path, ids)
    blocks = Page(write([build(tmp_path)], tmp_path / "out")).blocks
    (shown,) = blocks["boards"]
    place = [column["heading"] for column in shown["columns"]].index("break-even")
    assert [(row["label"], row["cells"][place]) for row in shown["rows"]] == [("lora", "until 5"), ("uniform", "")]
    assert ["break_even_until", 5.0] in blocks["row-0-0"]["prices"]


def test_a_row_opens_to_the_remarks_that_name_it(tmp_path: Path) -> None:
    cells = [factory.spec("lora", "test-1-0", arm) for arm in ("stream", "placebo")]
    cells += [factory.spec("lora_fit", "test-1-0", config={"rank": rank}) for rank in (4, 8)]
    trials = "1 of 8 tuning trials of lora_fit (rank={}) diverged."
    two = "Over half of the answers are empty: lora (63%), lora_fit (rank=8) (51%)."
    placebo = "As good as on the stream: lora on placebo (F1 +0.200)."
    named = {
        "lora": [two],
        "lora on placebo": [placebo],
        "lora_fit (rank=4)": [trials.format(4)],
        "lora_fit (rank=8)": [two],
    }
    remarks = [two, placebo, trials.format(4), trials.format(16), "The weights of lora_fits_all are others."]
    factory.board(tmp_path, [factory.record(tmp_path, cell, [[1.0]], [1.0]) for cell in cells], remarks=remarks)
    board = build(tmp_path)
    blocks = Page(write([board], tmp_path / "out")).blocks
    shown = {row.label: blocks[f"row-0-{place}"]["remarks"] for place, row in enumerate(board.rows)}
    assert {label: [one for one in of if one in remarks] for label, of in shown.items()} == named


def test_the_mean_f1_of_a_question_weighs_complete_methods_equally(tmp_path: Path) -> None:
    streams = ("test-1-0", "test-1-1")
    runs = [(factory.spec("uniform", stream), 1.0) for stream in streams]
    runs += [(factory.spec("lora", stream, seed=seed), seed / 4) for stream in streams for seed in (0, 1, 2)]
    runs += [(factory.spec("mac", "test-1-0"), 1.0), *((factory.spec("closed_book", one), 0.0) for one in streams)]
    factory.board(tmp_path, [factory.record(tmp_path, cell, [[f1]]) for cell, f1 in runs])
    questions = Page(write([build(tmp_path)], tmp_path / "out")).blocks["questions-0"]
    assert [question["share"] for question in questions] == [0.625, 0.625], "(1 + (0 + 1/4 + 2/4) / 3) / 2"


def test_documents_are_held_against_ones_own_closed_book(tmp_path: Path) -> None:
    built = make_board(tmp_path, {"uniform": 0.4, "closed_book": 0.1}, "demo")
    assert built.floor is not None
    theirs = factory.imported(built.floor)
    for number, rows in enumerate(((theirs, *built.rows), (theirs, built.rows[0]), (built.rows[0],))):
        (shown,) = Page(write([replace(built, rows=rows)], tmp_path / str(number))).blocks["boards"]
        assert shown["floor"] == (2, 0, None)[number]


def test_a_row_names_its_commands_with_the_commit(tmp_path: Path) -> None:
    provenance = {"commit": "abc123", "command": ["run_bench.py", "run", "my board"], "packages": {"torch": "2"}}
    cells = [factory.spec("uniform", f"test-1-{k}") for k in range(2)]
    ids = [factory.record(tmp_path, cell, [[1.0]], [1.0], provenance=provenance) for cell in cells]
    factory.board(tmp_path, ids)
    details = Page(write([build(tmp_path)], tmp_path / "out")).blocks["row-0-0"]
    assert details["commands"] == ["git checkout abc123\npython run_bench.py run 'my board'"]
    assert ["torch", "2"] in details["provenance"] and ["commit", "abc123"] in details["provenance"]


def test_texts_of_documents_and_models_are_data(tmp_path: Path) -> None:
    cell = factory.spec("uniform", "test-1-0", config={"k": HOSTILE})
    event = factory.answer(0.5, HOSTILE, HOSTILE, prediction=HOSTILE, answers=(HOSTILE,))
    token = factory.token_event(0, "a b", (1.0, 2.0)).model_copy(update={"pieces": (HOSTILE, "b")})
    run = factory.record(tmp_path, cell, [[1.0]], [1.0], tokens=[token])
    _replace_answers(tmp_path, run, [event])
    factory.board(tmp_path, [run], remarks=[HOSTILE])
    page = Page(write([build(tmp_path)], tmp_path / "out"))
    assert page.tags.count("img") == 0 and len(page.scripts) == 4
    assert page.blocks["answers-0"][0][0]["probes"][0]["prediction"] == [HOSTILE]
    assert page.blocks["questions-0"][0]["gold"] == [HOSTILE]
    assert HOSTILE in page.blocks["boards"][0]["remarks"]
    assert next(iter(page.blocks["tokens-0"]["0"].values()))["pieces"][0] == HOSTILE


def _replace_answers(runs: Path, run_id: str, answers: list[object]) -> None:
    """Write a run again with other answers."""
    from bench.records.store import read_documents, read_run, read_tokens, write_run
    from bench.records.summary import summarize

    record, documents = read_run(runs / run_id), read_documents(runs, run_id)
    changed = record.model_copy(update={"summary": summarize(documents, answers)})  # type: ignore[arg-type]
    write_run(runs, changed, documents, answers, read_tokens(runs, run_id))  # type: ignore[arg-type]


def test_published_records_give_a_page_without_texts(runs: Path, tmp_path: Path) -> None:
    packed = published.publish(runs, "demo", tmp_path).parent
    page = Page(write([build(packed)], tmp_path / "out"))
    assert {tuple(question["gold"]) for question in page.blocks["questions-0"]} == {()}
    assert all(not of["pieces"] for row in page.blocks["tokens-0"].values() for of in row.values())


def test_texts_come_from_the_data_sets_in_the_project() -> None:
    found = texts("newsworld", "test")
    (document_id, question), text = next(iter(found.questions.items()))
    assert hashlib.sha256(found.documents[document_id].text.encode()).hexdigest().startswith(document_id)
    assert question.startswith("test-") and text.endswith("?")
    for dataset, split in (("squad", "test"), ("no such dataset", "test"), ("newsworld", "no such split")):
        assert texts(dataset, split) == ({}, {})


def make_board(folder: Path, levels: dict[str, float], dataset: str, noise: float = 0.0) -> Board:
    """A board on four streams, on which the methods have these scores, or with noise about these, on all questions."""
    cells = [
        (factory.spec(name, f"test-2-{k}", dataset=dataset), round(level * (1 + noise * k), 3))
        for name, level in levels.items()
        for k in range(4)
    ]
    factory.board(folder, [factory.record(folder, cell, [[level], [level]]) for cell, level in cells], dataset)
    return build(folder, dataset)


def test_win_rates_and_inversions_across_boards(tmp_path: Path) -> None:
    one = make_board(tmp_path, {"uniform": 0.2, "lora": 0.4, "mac": 0.4}, "one", 0.05)
    two = make_board(tmp_path, {"uniform": 0.5, "lora": 0.1}, "two", 0.05)
    rates = {rate.label: rate for rate in across.win_rates([one, two])}
    assert rates["lora"].ranks == (1, 2) and rates["mac"].ranks == (1, None) and rates["uniform"].ranks == (3, 1)
    assert rates["mac"].rate == 0.75, "it beats one of two rivals and ties with the other"
    assert rates["lora"].rate == (0.75 + 0) / 2 and rates["uniform"].rate == (0 + 1) / 2
    assert rates["lora"].significant == (0.5 + 0) / 2, "it ties with mac"
    facts = across.facts([one, two])
    assert facts is not None and across.facts([one]) is None
    (pair,) = facts["pairs"]
    (inversion,) = pair["inversions"]
    assert (inversion["better_on_first"], inversion["better_on_other"]) == ("lora", "uniform")
    assert inversion["significant"] and pair["methods"] == 2


def test_one_page_holds_several_boards_with_their_own_keys(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_board(tmp_path, {"uniform": 0.2, "lora": 0.4}, name)
    page = Page(reports.write_page(tmp_path, tmp_path / "out", ["two", "one"]))
    shown = page.blocks["boards"]
    assert [board["experiment"] for board in shown] == ["two", "one"]
    assert shown[0]["comparability"] != shown[1]["comparability"]


def test_a_report_writes_the_page_and_knows_when_it_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "PARTS", ())  # pictures take long, and are no part of the page
    make_board(tmp_path, {"uniform": 0.2, "lora": 0.4}, "demo")
    out = tmp_path / "out"
    reports.write_all(tmp_path, out)
    assert reports.stale(tmp_path, out) == []
    (out / "leaderboard.html").write_text("old")
    assert reports.stale(tmp_path, out) == ["leaderboard.html"]


def test_the_libraries_are_the_released_files() -> None:
    folder = document.HERE / "libraries"
    listed = dict(
        reversed(line.split()) for line in re.findall(r"^[0-9a-f]{64}  .*$", (folder / "README.md").read_text(), re.M)
    )
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.min.*")}
    assert set(document.LIBRARIES) < set(listed)


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError):
        document.render("t", {"x": float("nan")})
    assert json.loads(document._json({"a": "<&>\u2028"})) == {"a": "<&>\u2028"}
