"""A run on a terminal: the bar, the lines elsewhere, and the plan."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from bench.run import display
from bench.run.cell import Moment
from bench.run.display import Lines, duration, line, screen
from bench.run.experiment import load
from bench.run.outlook import Outlook
from bench.run.pace import Pace, load_of
from bench.run.progress import Job, State
from tests.reports.records_factory import costs, spec

LOAD = load_of(spec("uniform", "test-10-0"), tokens=100, questions=10)
TUNING = Job("tuning", "uniform (learn=embeddings)", "empty", "validation-100-1", LOAD), Moment("answering", 40, 100)
RUNNING = Job("running", "cmt", "stream", "test-100-3", LOAD), Moment("reading", 34, 100)
STATE = State(3, 36, False, (TUNING, RUNNING), 65.0, 700.0, 0.1)


def printed(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return [text.rstrip() for text in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_line_says_what_has_run_what_runs_and_how_long_it_will_take() -> None:
    assert line(STATE) == (
        "0:01:05  3 of about 36 cells, about 12 min left: tuning uniform (learn=embeddings) on empty, "
        "validation-100-1, answering after document 40 of 100; running cmt, test-100-3, document 34 of 100"
    )
    assert line(State(36, 36, True, (), 3700.0, 0.0, 1.0)) == "1:01:40  36 of 36 cells"
    assert line(State(0, 36, True, (), 0.0, None, 0.0)) == "0:00:00  0 of 36 cells"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_fits_and_cuts_nothing(width: int) -> None:
    head, *body = printed(screen(STATE), width)
    assert all(len(text) <= width for text in (head, *body))
    assert head.endswith("3 of about 36 cells, about 12 min left  0:01:05")
    text = " ".join(" ".join(body).split())
    for part in ("tuning uniform", "(learn=embeddings)", "validation-100-1", "running cmt", "document 34 of 100"):
        assert part in text or width == 60
    assert "…" not in text


def test_the_clock_of_the_screen_goes_on_between_states() -> None:
    (head, *_) = printed(screen(STATE, later=100.0), 80)
    assert head.endswith("about 10 min left  0:02:45")


def test_many_workers_are_counted() -> None:
    lines = printed(screen(replace(STATE, running=(RUNNING,) * 11)), 80)
    assert len(lines) == 1 + 8 + 1 and lines[-1] == "and 3 more"


def test_control_characters_of_names_are_not_obeyed() -> None:
    job = Job("running", "evil\x1b[2J", "stream", "test\x9b31m-1-0", LOAD)
    state = replace(STATE, running=((job, Moment("starting")),))
    assert "\x1b" not in line(state) and "\x9b" not in line(state) and "evil␛[2J" in line(state)
    assert not {"\x1b", "\x9b"} & set("".join(printed(screen(state), 80)))


def test_lines_come_at_the_beginning_with_cells_that_end_and_once_a_minute() -> None:
    lines: list[str] = []
    show = Lines(lines.append)
    for elapsed, done in ((0, 0), (1, 0), (2, 1), (5, 2), (7, 2), (9, 3), (64, 3), (65, 3), (66, 3), (67, 36)):
        show(replace(STATE, elapsed=float(elapsed), done=done))
    assert [text.split(" of")[0] for text in lines] == ["0:00:00  0", "0:00:05  2", "0:01:04  3", "0:01:07  36"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "5 s"), (8, "10 s"), (54, "55 s"), (58, "1 min"), (700, "12 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_rounded(seconds: float, words: str) -> None:
    assert duration(seconds) == f"about {words}"


class TestPlan:
    @pytest.fixture
    def pace(self) -> Pace:
        """Cells of ``uniform`` on ten documents that took 5 s to fit and 0.6 s for each document."""
        pace = Pace()
        pace.learn(LOAD, costs())
        return pace

    @pytest.fixture
    def outlooks(self) -> list[Outlook]:
        missing = replace(LOAD, method="mac")
        return [
            Outlook("uniform", "fits on train", ((LOAD, LOAD), (LOAD,)), (LOAD,) * 8, 4, 2),
            Outlook("mac\x1b[2J", "weights missing", (), (missing,), 0, 0, "mac has no trained weights. Train them."),
        ]

    @pytest.mark.parametrize("width", [80, 120])
    def test_each_method_has_its_cells_and_what_they_take(
        self, outlooks: list[Outlook], pace: Pace, width: int
    ) -> None:
        text = printed(display.plan(load("default"), outlooks, pace), width)
        assert text[0] == "default: newsworld, nano" and max(map(len, text)) <= width
        rows = [row.split() for row in text if "fits" in row or "mac" in row]
        assert rows[0][:8] == ["uniform", "7", "4", "10", "2", "2", "min", "0.0"]
        assert rows[1][:7] == ["mac␛[2J", "0", "0", "1", "0", "?", "?"]

    def test_the_totals_say_time_memory_and_what_must_be_trained_first(
        self, outlooks: list[Outlook], pace: Pace
    ) -> None:
        assert display.totals(outlooks, pace, jobs=2) == [
            "About 12 cells to run, 6 done.",
            "Time, by earlier records: about 1 min on 2 workers, without 1 cell(s) of which no records tell it.",
            "Memory, by earlier records: up to 0.0 GB a worker.",
            "Train first: mac has no trained weights. Train them.",
        ]
        assert display.totals(outlooks[1:], Pace(), jobs=1)[1].startswith("Time and memory are unknown")
        done = replace(outlooks[0], rounds=(), board=(), cached_tuning=7, cached_board=10)
        assert display.totals([done], pace, jobs=1) == ["0 cells to run, 17 done."]
        (row,) = [row.split() for row in printed(display.plan(load("default"), [done], pace), 100) if "fits" in row]
        assert row[:8] == ["uniform", "7", "7", "10", "10", "0", "s", "–"]
