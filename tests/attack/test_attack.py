"""A short part of ``make attack``, and checks that an attack can fail."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.data.documents import Entry
from bench.errors import BenchError
from tests.attack import data_files, kills
from tests.attack.__main__ import ATTACKS, attack
from tests.attack.attacks import Missed


@pytest.mark.parametrize(
    ("kind", "tries"),
    [("data files", 300), ("experiment files", 60), ("command lines", 60), ("records", 40), ("faulty methods", 3)],
)
def test_a_short_attack_is_survived(kind: str, tries: int) -> None:
    made, failures = attack(kind, seconds=0, tries=tries, seed=1)
    assert failures == []
    assert made == tries


def test_a_document_lost_in_silence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load_split = data_files.load_split

    def lose_a_seventh(*arguments: Any) -> tuple[Entry, ...]:
        return load_split(*arguments)[:6]

    monkeypatch.setattr(data_files, "load_split", lose_a_seventh)
    _, failures = attack("data files", seconds=0, tries=1000, seed=1)
    assert any("read (6, " in failure and ", not (7, " in failure for failure in failures)


def test_another_error_than_a_sentence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load_split = data_files.load_split

    def raise_another_error(*arguments: Any) -> tuple[Entry, ...]:
        try:
            return load_split(*arguments)
        except BenchError as error:
            raise KeyError(str(error)) from None

    monkeypatch.setattr(data_files, "load_split", raise_another_error)
    _, failures = attack("data files", seconds=0, tries=50, seed=1)
    assert any("KeyError" in failure for failure in failures)


class Run(kills.Kills):
    """Runs that are one process, which has ended before something is killed or does not end."""

    def __init__(self, where: Path, seconds: float) -> None:
        self.where, self.seconds, self.runs, self.times, self.window = where, seconds, 1, 1, 0.0

    def start(self) -> list[psutil.Popen]:
        run = psutil.Popen(["sleep", str(self.seconds)])
        if not self.seconds:
            run.wait()
        return [run]


def test_a_try_in_which_nothing_was_killed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missed):
        Run(tmp_path / "attacked", 0).attempt(random.Random(0))
    outcomes = iter([Missed, "wrong", Missed, Missed, None])

    def attempt(rng: random.Random) -> str | None:
        outcome = next(outcomes)
        if outcome is Missed:
            raise Missed
        return outcome

    monkeypatch.setitem(ATTACKS, "misses", (lambda folder: attempt, 1))
    assert attack("misses", seconds=0, tries=2, seed=1) == (2, ["try 1: wrong"])


def test_a_run_that_hangs_is_noticed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "LONGEST", 0.1)
    runs = Run(tmp_path, 60)
    [started] = runs.start()
    assert "1 runs had not ended" in str(runs.problem([started], []))
    assert started.wait(10) == -9


def test_a_cell_that_runs_twice_is_noticed_unless_its_process_was_killed(tmp_path: Path) -> None:
    log, own = tmp_path / "log", psutil.Process()
    log.write_text(f"{own.pid} a\n1 b\n2 a\n")
    assert kills.ran_again(log, [own]) is None
    assert f"{{'a': [{own.pid}, 2]}}" in str(kills.ran_again(log, []))
