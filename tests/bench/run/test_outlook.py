"""What is ahead of a run: cells, those that are there, and what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.records.schema import Failure
from bench.records.store import read_documents, read_run, write_run
from bench.run.executor import Outcome, Task
from bench.run.experiment import Experiment
from bench.run.outlook import Outlook, load
from bench.run.progress import Progress, State
from bench.run.runner import Runner
from tests.world import Inline

TUNED = {"name": "uniform", "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}
BY_F1 = {"documents": 4, "count": 2, "metric": "f1", "trials": 4}


def ahead(experiment: Experiment, runs: Path) -> list[Outlook]:
    return Runner(experiment, runs).look_ahead()


def cells(outlook: Outlook) -> tuple[int, int, int, int]:
    """Cells of tuning to run and there, cells of the board to run and there."""
    return outlook.tuning, outlook.cached_tuning, len(outlook.board), outlook.cached_board


def test_nothing_is_there_before_the_first_run_and_nothing_is_written(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    closed, tuned = ahead(
        plan("closed_book", {**TUNED, "seeds": [0, 1], "arms": ["stream", "placebo"]}, tuning=BY_F1), tmp_path / "runs"
    )
    assert (closed.label, cells(closed)) == ("closed_book", (0, 0, 2, 0))
    # three trials and the floor on 2 of 4 documents of two streams, the best of them and the floor on all, one trial
    assert [len(loads) for loads in tuned.rounds] == [(3 + 1) * 2, (1 + 1) * 2, 1 * 2]
    assert [sorted({load.questions for load in loads}) for loads in tuned.rounds] == [[2], [4], [4]]
    assert all((load.tokens == 0) == (load.arm == "empty") for loads in tuned.rounds for load in loads)
    assert cells(tuned) == (14, 0, 2 * 2 * 2, 0)
    assert {(load.split, load.questions) for load in tuned.board} == {("test", 5)}
    assert len(tuned.after(1)) == 6 + 8 and len(tuned.after(3)) == 8
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("questions", "probes", "number", "arms"),
    [
        ("first", (0.4, 1.0), 2, ["stream", "placebo", "empty", "every_2"]),
        ("seen", (0.4, 1.0), 5, ["stream", "irrelevant_20"]),
        ("seen", (0.2, 0.5), 3, ["stream", "placebo"]),
        ("seen", (0.0,), 0, ["stream"]),
    ],
)
def test_the_size_of_a_cell_is_that_of_its_record(
    plan: Callable[..., Experiment],
    tmp_path: Path,
    questions: str,
    probes: tuple[float, ...],
    number: int,
    arms: list[str],
) -> None:
    method = {"name": "uniform", "space": {}, "arms": arms}
    experiment = plan(method, probes=probes, questions=questions, scoring=True)
    (expected,) = ahead(experiment, tmp_path)
    result = Runner(experiment, tmp_path).run(Inline())
    records = [read_run(tmp_path / cell.id) for cell in result.cells]
    read = [sum(event.tokens for event in read_documents(tmp_path, record.id)) for record in records]
    asked = [record.summary.questions for record in records if record.summary is not None]
    assert [(load.tokens, load.questions) for load in map(load, result.cells)] == list(zip(read, asked, strict=True))
    assert sorted((load.tokens, load.questions) for load in expected.board) == sorted(zip(read, asked, strict=True))
    assert set(asked) == {number} and (0 in read) == ("empty" in arms)


def test_entries_of_a_method_are_told_apart_by_the_settings_that_differ(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    entries = [
        {"name": "mac", "config": {"training": {"steps": 0, "tokens": tokens}}, "space": {}} for tokens in (2, 4)
    ]
    labels = [outlook.label for outlook in ahead(plan("closed_book", *entries), tmp_path)]
    assert labels == ["closed_book", "mac (training.tokens=2)", "mac (training.tokens=4)"]


def test_a_run_that_is_complete_is_all_there(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book", TUNED, tuning=BY_F1)
    assert Runner(experiment, tmp_path).run(executor := Inline()).failures == ()
    closed, tuned = ahead(experiment, tmp_path)
    assert cells(closed) == (0, 0, 0, 2)
    assert cells(tuned) == (0, len(executor.keys) - 4, 0, 2)


def test_a_run_that_was_interrupted_goes_on_from_the_cells_that_are_there(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = plan(TUNED, tuning=BY_F1)
    Runner(experiment, tmp_path).run(executor := Inline())
    first, *_ = executor.keys
    shutil.rmtree(tmp_path / first)
    (tuned,) = ahead(experiment, tmp_path)
    assert [len(loads) for loads in tuned.rounds] == [1, 4, 2], "what comes after a gap is not known to be there"
    assert cells(tuned) == (7, 7, 2, 0)


def test_a_trial_that_failed_does_not_hide_what_came_after_it(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan(TUNED, tuning=BY_F1)
    Runner(experiment, tmp_path).run(executor := Inline())
    chosen = {read_run(tmp_path / key).spec.config["learning_rate"] for key in executor.keys[-2:]}
    trials = [read_run(tmp_path / key) for key in executor.keys]
    worst = next(one for one in trials if one.spec.arm == "stream" and one.spec.config["learning_rate"] not in chosen)
    failure = Failure(kind="out_of_memory", message="No room", traceback="", position=3)
    changes = {"status": "failed", "failure": failure, "summary": None, "costs": None}
    write_run(tmp_path, worst.model_copy(update=changes))
    (tuned,) = ahead(experiment, tmp_path)
    assert (tuned.tuning, len(tuned.board), tuned.cached_board) == (1, 0, 2)
    assert tuned.failed == (f"uniform on {worst.spec.stream} (stream, document 4): No room",)


def test_methods_without_trained_weights_are_named_and_not_run(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book", {"name": "mac", "space": {}})
    with pytest.raises(BenchError, match="mac has no trained weights"):
        Runner(experiment, tmp_path)
    closed, mac = Runner(experiment, tmp_path, look_only=True).look_ahead()
    assert (closed.problem, closed.learning) == ("", "")
    assert mac.problem.startswith("mac has no trained weights") and "run_bench.py train mac" in mac.problem
    assert (mac.learning, cells(mac)) == ("weights missing", (0, 0, 2, 0))


def test_what_is_learned_before_a_stream_is_said(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    untrained = {"name": "mac", "config": {"training": {"steps": 0}}, "space": {}}
    fitted = {"name": "tfidf", "space": {}}
    assert [outlook.learning for outlook in ahead(plan(untrained, fitted), tmp_path)] == [
        "weights there",
        "fits on train",
    ]


@pytest.mark.parametrize("tuning", [BY_F1, {**BY_F1, "trials": 1}, {**BY_F1, "metric": "token_nll"}])
def test_the_progress_of_a_run_counts_every_cell_once(
    plan: Callable[..., Experiment], tmp_path: Path, tuning: dict[str, object]
) -> None:
    states: list[State] = []
    experiment = plan("closed_book", TUNED, {"name": "bm25", "space": {"k": [1, 2]}}, tuning=tuning)
    runner, progress = Runner(experiment, tmp_path), Progress(states.append)
    runner.expect(progress)
    runner.run(executor := Inline(), progress)
    assert [state.done for state in states if state.exact][-1] == states[-1].total == len(set(executor.keys))
    at_the_floor = tuning == BY_F1  # more trials than planned go on to whole streams
    assert (states[0].total >= states[-1].total) != at_the_floor, "the beginning states the most"
    assert states[-1].exact and states[-1].share == 1 and states[-1].left == pytest.approx(0)
    assert {state.total - state.done for state in states[1:]} >= {0}


def test_cells_tell_what_they_do_while_they_run(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    from bench.run.executor import LocalPool, Note

    class Recorder(LocalPool):
        notes: list[Note]

        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome | Note]:
            for item in super().run(tasks):
                if isinstance(item, Note):
                    self.notes.append(item)
                yield item

    states: list[State] = []
    with Recorder(1) as pool:
        pool.notes = []
        result = Runner(plan("closed_book"), tmp_path).run(pool, Progress(states.append))
    moments = [note.content for note in pool.notes]
    assert {note.key for note in pool.notes} == {cell.id for cell in result.cells}
    assert {moment.activity for moment in moments} <= {"starting", "reading", "answering"}
    assert {moment.documents for moment in moments if moment.activity != "starting"} <= {5}
    running = {(job.purpose, job.method, job.stream) for state in states for job, _ in state.running}
    assert running == {("running", "closed_book", f"test-5-{k}") for k in range(2)}
