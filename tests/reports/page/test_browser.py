"""The page in a browser: no error, no request, and everything that a reader can do. Needs Chromium."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright import sync_api

from reports.board import Board, build
from reports.page import write
from reports.ranks import Standing
from reports.statistics import Estimate
from tests.reports import records_factory as factory

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium (apt-get install chromium)", allow_module_level=True)
sync_api.expect.set_options(timeout=60_000)  # ms: machines may be busy

pytestmark = pytest.mark.slow
Open = Callable[..., Any]
HOSTILE = "<img src=x onerror=\"document.title='attacked'\"></table>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file; by the end there must have been no error and no request for anything else."""
    problems: list[str] = []
    pages: list[Any] = []

    def open_file(path: Path, **settings: Any) -> Any:
        page = browser.new_page(**{"viewport": {"width": 1300, "height": 900}, **settings})
        page.set_default_timeout(60_000)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else problems.append(sent.url))
        page.goto(path.as_uri())
        page.wait_for_selector("table.board tbody tr")
        return page

    yield open_file
    for page in pages:
        page.close()
    assert problems == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two boards, with methods, control arms, tuning, token weights and probes.

    On the second one ``uniform`` has an F1 of 0.9 for 77 seconds, ``lora`` one of about 0.5 for 73 seconds.
    """
    runs = tmp_path_factory.mktemp("runs")
    factory.realistic(runs, streams=2, documents=12, questions=2)
    levels = {"uniform": 0.9, "lora": 0.5, "closed_book": 0.1}
    ids = [
        factory.record(
            runs,
            factory.spec(name, f"test-2-{k}", model="other"),
            [[level], [level + 0.01 * k * (name == "lora")]],
            [level, 2.0],
            costs=factory.costs(10 * level),
        )
        for name, level in levels.items()
        for k in range(3)
    ]
    factory.board(runs, ids, "other", remarks=[HOSTILE])
    return write([build(runs, "demo"), build(runs, "other")], tmp_path_factory.mktemp("out"))


def methods(page: Any, board: int = 0) -> list[str]:
    """The labels in the table of a board, in order, with "Controls" where these begin."""
    cells = page.locator(f"#board-{board} table.board tbody tr > :first-child")
    texts = [text.replace("among the best", "").replace("\u200b", "") for text in cells.all_inner_texts()]
    return [" ".join(text.split()) for text in texts]


def test_columns_sort_and_controls_stay_apart(open_page: Open, made: Path) -> None:
    page = open_page(made)
    by_score = methods(page)
    divider = by_score.index("Controls")
    assert by_score[0].startswith("memory_of_amortized_contexts") and by_score[divider + 1].startswith("gold_in_prompt")
    heading = page.locator("#board-0 table.board th", has_text="method").first
    heading.locator("[role=button]").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#board-0 th[aria-sort=ascending]")
    by_name = methods(page)
    assert by_name != by_score and by_name[:divider] == sorted(by_name[:divider]) and by_name[divider] == "Controls"


def test_a_missing_number_comes_last_in_both_orders(open_page: Open, made: Path) -> None:
    page = open_page(made)
    assert methods(page, 1) == ["uniform", "lora", "Controls", "closed_book"]
    heading = page.locator("#board-1 table.board th", has_text="F1 vs uniform")  # uniform itself has none
    for direction in ("ascending", "descending"):
        heading.locator("[role=button]").click()
        page.wait_for_selector(f"#board-1 th[aria-sort={direction}]")
        assert methods(page, 1) == ["lora", "uniform", "Controls", "closed_book"], direction


def test_error_bars_are_drawn_and_rank_intervals_shown(open_page: Open, made: Path) -> None:
    page = open_page(made)
    first = page.locator("#board-0 table.board tbody tr").first
    assert first.locator("svg.interval .error").count() >= 2 and first.locator(".ranks i").count() == 1
    assert "among the best" not in page.locator("#board-0").inner_text(), "no difference is significant here"
    uniform, lora = page.locator("#board-1 table.board tbody tr").all_inner_texts()[:2]
    assert "among the best" in uniform and "among the best" not in lora


def test_filters_leave_what_they_name(open_page: Open, made: Path) -> None:
    page = open_page(made)
    pick = page.locator("#filters")
    pick.get_by_label("Method").select_option("camels")
    assert {name.split(" ")[0] for name in methods(page)} == {"camels", "Controls"}
    pick.get_by_label("Arm").select_option("placebo")
    assert methods(page) == ["Controls", "camels on placebo"]
    pick.get_by_label("Arm").select_option("")
    pick.get_by_label("Controls").select_option("1")
    assert methods(page) == ["camels"]
    pick.get_by_label("Base").select_option("other")
    assert not page.locator("#board-0").is_visible() and page.locator("#board-1").is_visible()


def test_a_budget_ranks_again_among_what_it_affords(open_page: Open, made: Path) -> None:
    page = open_page(made)
    costs = page.locator("#board-1 .costs")
    ranking = costs.locator(".ranking tbody tr")
    assert costs.locator(".chart svg").count() >= 1 and "no limit" in costs.inner_text() and ranking.count() == 2
    assert costs.locator(".ranking .best").all_inner_texts() == ["uniform"]
    costs.locator("input[type=range]").fill("978")  # 23 * (77 / 23) ** 0.978 = 75 s: a log scale from 69 / 3
    assert costs.locator("output").inner_text() == "at most 75" and ranking.count() == 1
    (only,) = ranking.all_inner_texts()
    assert costs.locator(".ranking .best").count() == 0, "alone it is better than none"
    assert only.split("\t") == ["1", "lora", "0.505 ± 0.012", "1", "73"]


def test_a_row_opens_by_keyboard_to_command_settings_runs_and_trials(open_page: Open, made: Path) -> None:
    page = open_page(made)
    link = page.locator("#board-0 table.board a", has_text="camels").first
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    text = dialog.inner_text()
    for heading in ("Command", "Runs", "Tuning", "Settings", "Scores", "Costs", "Provenance"):
        assert heading in text
    assert "camels-stream-test-12-0-" in text and "trials on the validation streams" in text
    assert dialog.locator("svg").count() >= 2
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    sync_api.expect(page).to_have_url(f"{made.as_uri()}#")


def test_a_question_opens_to_the_answers_of_every_method(open_page: Open, made: Path) -> None:
    page = open_page(made)
    section = page.locator("#board-0 details.section", has_text="Questions and answers")
    section.locator("summary").click()
    section.get_by_label("Search questions").fill("11.1")
    link = section.locator("tbody a").first
    assert link.inner_text() == "11.1"
    link.click()
    text = page.locator("dialog[open]").inner_text()
    assert "at the end" in text
    for method in ("closed_book", "camels", "uniform", "gold_in_prompt"):
        assert method in text.replace("\u200b", "")


def test_a_document_opens_to_its_token_weights_and_losses(open_page: Open, made: Path) -> None:
    page = open_page(made)
    section = page.locator("#board-0 details.section", has_text="Documents and token weights")
    section.locator("summary").click()
    section.locator("select").select_option(index=0)
    section.get_by_role("button", name="Open").click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert dialog.locator("table tbody tr").count() > 0 and "NLL per token" in dialog.inner_text()


def test_texts_are_shown_and_not_run(open_page: Open, made: Path) -> None:
    page = open_page(made)
    assert HOSTILE in page.locator("#board-1").inner_text()
    assert page.locator("img").count() == 0 and page.title().startswith("Leaderboard")


def test_a_stream_s_name_is_shown_and_not_run(open_page: Open, tmp_path: Path) -> None:
    stream = "<style>body{display:none}<style>test-2-0"
    factory.board(
        tmp_path / "runs", [factory.record(tmp_path / "runs", factory.spec("uniform", stream), [[1.0], [0.5]])]
    )
    page = open_page(write([build(tmp_path / "runs")], tmp_path / "out"))
    page.locator("summary", has_text="Questions and answers").click()
    assert page.locator("details.section tbody td:nth-child(3)").first.inner_text() == stream


def test_a_link_opens_what_it_names(open_page: Open, made: Path) -> None:
    page = open_page(made)
    page.evaluate("location.hash = '#row-1-0'")
    page.reload()
    page.locator("dialog[open]").wait_for()
    assert page.locator("#dialog-title").inner_text() == "uniform"


def test_a_link_opens_although_another_one_has_just_been_left(open_page: Open, made: Path) -> None:
    """The browser reports a dialog's end a frame later, when the next one may be open already."""
    page = open_page(made)
    visit(page, "#row-1-0")
    page.evaluate(
        """() => new Promise((ended) => {
            document.getElementById("dialog").addEventListener("close", ended, { once: true });
            addEventListener("hashchange", () => { location.hash = "#row-1-1"; }, { once: true });
            location.hash = "";
        })"""
    )
    sync_api.expect(page.locator("dialog[open] #dialog-title")).to_have_text("lora")
    assert page.evaluate("location.hash") == "#row-1-1"


def visit(page: Any, address: str) -> None:
    """Open what an address names, and nothing else: no dialog for ""."""
    for where in ("", address):
        page.evaluate(f"location.hash = '{where}'")
        page.locator("dialog[open]").wait_for(state="visible" if where else "detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_there_is_no_serious_violation_of_accessibility(open_page: Open, made: Path, scheme: str) -> None:
    page = open_page(made, color_scheme=scheme)
    for address in ("", "#row-0-0", "#question-0-0", "#document-0-0"):
        visit(page, address)
        part, options = "dialog" if address else None, {"resultTypes": ["violations"]}
        found = Axe().run(page, context=part, options=options).response["violations"]
        wrong = [
            (one["id"], one["nodes"][0]["html"][:150]) for one in found if one["impact"] in ("serious", "critical")
        ]
        assert wrong == [], address


def test_a_phone_scrolls_only_inside_tables(open_page: Open, made: Path) -> None:
    page = open_page(made, viewport={"width": 390, "height": 844})
    for address in ("", "#row-0-0", "#question-0-0", "#document-0-0"):
        visit(page, address)
        for name in ("documentElement", "querySelector('dialog')"):
            assert page.evaluate(f"document.{name}.scrollWidth <= innerWidth"), (address, name)


def test_the_theme_changes(open_page: Open, made: Path) -> None:
    page = open_page(made, color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(colour) != light
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(colour) == light


def large(runs: Path, rows: int, questions: int) -> Board:
    """A board with this many questions, and this many rows: copies of one."""
    rng = random.Random(0)
    scores = [[[rng.choice((0.0, 0.5, 1.0)) for _ in range(5)] for _ in range(questions // 10)] for _ in range(2)]
    ids = [
        factory.record(runs, factory.spec(name, f"test-{questions // 10}-{k}"), scores[k], [1.0])
        for name in ("uniform", "closed_book")
        for k in range(2)
    ]
    factory.board(runs, ids)
    board = build(runs)
    like = next(row for row in board.rows if not row.control)
    copies = [
        replace(
            like,
            label=f"copy {i}",
            scores={**like.scores, "f1": (Estimate(rng.random(), 0.02, "SE_stream", 2, 1),)},
            standing=Standing(1 + i // 10, rows),
            costs={**like.costs, "total_seconds": 10 * 1000 ** rng.random()},
            records=(),
        )
        for i in range(rows - len(board.rows))
    ]
    return replace(board, rows=(*board.rows, *copies))


def test_printing_shows_all_rows_and_no_buttons(open_page: Open, tmp_path: Path) -> None:
    page = open_page(write([large(tmp_path, rows=60, questions=20)], tmp_path / "out"))
    page.emulate_media(media="print")
    assert not page.locator("#theme").is_visible() and not page.locator("#filters").is_visible()
    rows = page.locator("table.board tbody tr:not(.divider)")
    for event, count in (("beforeprint", 60), ("afterprint", 50)):
        page.evaluate(f"dispatchEvent(new Event('{event}'))")
        assert rows.count() == count, event


def test_of_five_hundred_rows_and_ten_thousand_questions_only_a_page_is_made(open_page: Open, tmp_path: Path) -> None:
    page = open_page(write([large(tmp_path, rows=500, questions=10_000)], tmp_path / "out"))
    rows, questions = page.locator("#board-0 table.board tbody tr"), page.locator("#board-0 details.section tbody tr")
    assert (rows.count(), questions.count()) == (50, 0), "no question before they are opened"
    page.get_by_label("Search methods").fill("copy 490")
    sync_api.expect(rows).to_have_count(1)
    page.locator("#board-0 summary", has_text="Questions and answers").click()
    sync_api.expect(questions).to_have_count(25)
    page.get_by_label("Search questions").fill("499.4")
    sync_api.expect(questions).to_have_count(2)
    page.locator("#board-0 details.section tbody a").first.click()
    assert "closed_book" in page.locator("dialog[open]").inner_text().replace("\u200b", "")
