"""Where a run stands, and the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.records.schema import RunRecord
from bench.records.store import read_run
from bench.run.cell import Moment
from bench.run.pace import Load, Pace, load_of
from bench.run.progress import NOTE_SECONDS, SETTLE_SECONDS, Job, Progress, State
from tests.reports.records_factory import record, spec

JOBS = 2


class Follower:
    """A progress whose clock stands still unless it is set, and the states that it shows."""

    def __init__(self, pace: Pace | None = None) -> None:
        self.states: list[State] = []
        self.now = 100.0
        self.progress = Progress(self.states.append, JOBS, pace or Pace(), lambda: self.now)


def load(method: str = "lora", documents: int = 10) -> Load:
    return load_of(spec(method, f"test-{documents}-0"), 10 * documents, documents)


def job(method: str = "lora", documents: int = 10) -> Job:
    return Job("running", method, "stream", f"test-{documents}-0", load(method, documents))


@pytest.fixture
def ran(tmp_path: Path) -> RunRecord:
    """A cell of ``lora`` on 10 documents that took 5 s to fit and 0.6 s for each document: 11 s."""
    return read_run(tmp_path / record(tmp_path, spec("lora", "test-10-0"), [[0.5]] * 10))


@pytest.fixture
def known(ran: RunRecord) -> Pace:
    pace = Pace()
    pace.learn(load(), ran.costs)
    return pace


def test_the_plan_counts_from_the_beginning(known: Pace) -> None:
    follower = Follower(known)
    follower.progress.expect("lora", [load(), load()])
    follower.progress.expect("mac", [load("mac")])
    follower.progress.begin({"a": job(), "b": job()})
    (state,) = follower.states
    assert (state.done, state.total, state.exact, state.share, state.running) == (0, 5, False, 0.0, ())
    assert state.left == pytest.approx(5 * 11 / JOBS), "mac, of which there is no record, counts as the mean of all"


def test_expectations_are_replaced_by_cells(known: Pace, ran: RunRecord) -> None:
    follower = Follower(known)
    follower.progress.expect("lora", [load()] * 4)
    follower.progress.begin({"a": job()})
    follower.progress.expect("lora", [load()])
    follower.progress.end("a", ran)
    follower.progress.expect("lora", [])
    follower.progress.begin({"b": job(), "c": job()})
    assert [(state.done, state.total, state.exact) for state in follower.states] == [
        (0, 5, False), (1, 2, False), (1, 3, True)
    ]  # fmt: skip


def test_the_time_left_starts_from_records_and_goes_over_to_the_measured_speed(known: Pace, ran: RunRecord) -> None:
    follower = Follower(known)
    follower.progress.begin({str(i): job() for i in range(100)})
    assert follower.states[-1].left == pytest.approx(100 * 11 / JOBS)
    for i in range(50):
        follower.now += 22  # a fourth of the speed of two workers by the records
        follower.progress.end(str(i), ran)
    elapsed, work, rest = 50 * 22, 50 * 11, 50 * 11
    left = follower.states[-1].left
    assert left == pytest.approx(rest * (elapsed + SETTLE_SECONDS) / (work + JOBS * SETTLE_SECONDS))
    assert left == pytest.approx(50 * 22, rel=0.1)
    assert follower.states[-1].share == pytest.approx(0.5)
    assert follower.states[-1].elapsed == elapsed


def test_without_records_nothing_is_claimed_until_a_cell_has_run(ran: RunRecord) -> None:
    follower = Follower()
    follower.progress.begin({"a": job(), "b": job(), "c": job("mac", documents=20)})
    assert follower.states[-1].left is None
    follower.progress.end("a", ran)
    rest = 11 + (5 + 20 * 0.6)
    assert follower.states[-1].left == pytest.approx(rest * SETTLE_SECONDS / (11 + JOBS * SETTLE_SECONDS))


def test_what_runs_now_is_shown_and_counts_in_part(known: Pace, ran: RunRecord) -> None:
    follower = Follower(known)
    follower.progress.begin({"a": job(), "b": job()})
    follower.progress.note("a", Moment("starting"))
    follower.now += NOTE_SECONDS
    follower.progress.note("a", Moment("reading", 6, 10))
    follower.progress.note("a", Moment("reading", 7, 10))  # too soon to be shown
    *_, begun, starting, reading = follower.states[-3:]
    assert begun.running == () and [moment.activity for _, moment in starting.running] == ["starting"]
    assert reading.running == ((job(), Moment("reading", 6, 10)),)
    assert reading.share == pytest.approx(5 / 20)
    follower.progress.end("a", ran)
    assert follower.states[-1].running == () and follower.states[-1].share == pytest.approx(0.5)


def test_a_cell_without_results_teaches_nothing(tmp_path: Path) -> None:
    diverged = read_run(tmp_path / record(tmp_path, spec("lora", "test-10-0"), status="diverged"))
    follower = Follower()
    follower.progress.begin({"a": job(), "b": job()})
    follower.progress.end("a", diverged)
    assert (follower.states[-1].done, follower.states[-1].left, follower.states[-1].share) == (1, None, 0.5)
