"""Experiments: tuning, keys of cells, what is run again and what is not, and records of failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from bench import PROTOCOL
from bench.conformance import suite
from bench.contract import registry
from bench.data.prompt_format import PromptFormat
from bench.errors import BenchError, RunError
from bench.lm.base_model import BaseModel
from bench.records.check import check_board
from bench.records.schema import Tally, mean
from bench.records.store import (
    read_answers,
    read_board,
    read_documents,
    read_run,
    read_tokens,
    read_tuning,
    write_run,
)
from bench.run.cell import Cell, load_base
from bench.run.executor import LocalPool, Outcome, Task, TaskError
from bench.run.experiment import Experiment
from bench.run.inputs import inputs_of
from bench.run.planner import Planner
from bench.run.progress import Progress
from bench.run.runner import Runner, _base
from bench.run.search import explore
from tests.conftest import ROOT, make_checkpoint
from tests.tiny_models import tiny_base
from tests.world import PLUGIN, Inline, make_dataset, make_experiment

UNIFORM = {"name": "uniform", "space": {"learning_rate": [0.0, 1e-3, 1e-2]}}


BY_F1 = {"documents": 4, "count": 1, "metric": "f1", "trials": 3}
"""A tuning plan."""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "failures.py"
    path.write_text(PLUGIN)
    return str(path)


def scores(runs: Path) -> dict[str, Any]:
    """All numbers of the records but measurements of time."""
    return {
        record.id: (
            record.summary,
            [event.model_dump(exclude={"observe_seconds"}) for event in read_documents(runs, record.id)],
            read_answers(runs, record.id),
        )
        for record in (read_run(path.parent) for path in sorted(runs.glob("[!.]*/run.json")))
    }


def test_a_second_run_runs_nothing(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book", UNIFORM)
    first, second = Inline(), Inline()
    result = Runner(experiment, tmp_path).run(first)
    assert len(first.keys) == 2 + (2 + 1 + 1) + 2, (
        "closed book on two streams; two trials on the first part of one, the better and the last one on all of it; "
        "and the tuned method on two"
    )
    again = Runner(experiment, tmp_path).run(second)
    assert second.keys == []
    assert again.cells == result.cells
    assert read_board(tmp_path).runs == [cell.id for cell in result.cells]


def test_the_experiment_of_the_caller_is_not_changed(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "one.txt"
    text.write_text("The lighthouse opened in 1983. " * 20)
    optional = {"name": "dynamic_evaluation", "config": {"statistics": "train"}, "optional": True}
    files = {"test": [str(text)]}
    experiment = make_experiment(
        Path("text"), llama, ["closed_book", optional], data_files=files, tuning=None, anchor={}
    )
    before = experiment.model_copy(deep=True)
    runner = Runner(experiment, tmp_path / "runs")
    assert experiment == before
    assert runner.experiment.streams.count == 1, "the runner joins the files to one stream"
    assert [entry.name for entry in runner.experiment.methods] == ["closed_book"], "and leaves out the optional method"


def test_only_what_is_missing_is_run_again(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book")
    result = Runner(experiment, tmp_path).run(Inline())
    before = scores(tmp_path)
    shutil.rmtree(tmp_path / result.cells[1].id)
    (tmp_path / ".partial-leftover").mkdir()
    again = Inline()
    Runner(experiment, tmp_path).run(again)
    assert again.keys == [result.cells[1].id]
    assert scores(tmp_path) == before


def test_cells_that_took_long_begin_first(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    uniform = {"name": "uniform", "config": {"steps_per_document": 5}, "space": {}}
    experiment = plan("closed_book", uniform, tuning=None)
    first = Runner(experiment, tmp_path).run(Inline())
    for cell in first.cells:
        record = read_run(tmp_path / cell.id)
        assert record.costs is not None
        seconds = {"closed_book": 1.0, "uniform": 9.0}[cell.spec.method]
        costs = record.costs.model_copy(update={"observe": Tally(seconds=seconds, flops=1, peak_bytes=1)})
        events = read_documents(tmp_path, cell.id), read_answers(tmp_path, cell.id)
        write_run(tmp_path, record.model_copy(update={"costs": costs}), *events)
        if cell.spec.stream.endswith("1"):
            shutil.rmtree(tmp_path / cell.id)
    runner, executor, progress = Runner(experiment, tmp_path), Inline(), Progress()
    progress.pace.read(tmp_path, ["closed_book", "uniform"], {runner.planner.base_in_use})
    runner.expect(progress)
    runner.run(executor, progress)
    assert [key.partition("-")[0] for key in executor.keys] == ["uniform", "closed_book"]


def test_the_best_trial_on_validation_is_chosen_and_every_trial_is_kept(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    result = Runner(plan(UNIFORM), tmp_path).run(Inline())
    (tuning,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    rates = [trial["config"]["learning_rate"] for trial in tuning.trials]
    assert len(set(rates)) == 3
    runs = [[read_run(tmp_path / run) for run in trial["runs"]] for trial in tuning.trials]
    assert [[run.spec.prefix for run in of_trial] for of_trial in runs].count([2]) == 1, "one trial was stopped"
    assert [trial["score"] for trial in tuning.trials] == [run[-1].summary.token_nll for run in runs]  # type: ignore[union-attr]
    assert [(trial["documents"], trial["whole"]) for trial in tuning.trials].count((4, True)) == 2
    scores = {t["config"]["learning_rate"]: t["score"] for t in tuning.trials if t["whole"]}
    best = min(scores, key=scores.__getitem__)
    assert best != 0.0, "learning the text must help to predict it"
    assert (tuning.floor, tuning.runs, tuning.space) == (None, [], UNIFORM["space"])
    assert tuning.chosen["learning_rate"] == best
    assert {cell.spec.config["learning_rate"] for cell in result.cells} == {best}
    assert all(cell.spec.stream.startswith("test-5-") for cell in result.cells)


def test_tuning_by_f1_also_runs_the_method_without_documents(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan(UNIFORM, tuning={**BY_F1, "trials": 2, "count": 2}, scoring=False)
    executor = Inline()
    Runner(experiment, tmp_path).run(executor)
    (tuning,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    floor = [read_run(tmp_path / run) for run in tuning.runs]
    assert {(run.spec.arm, run.spec.stream, run.spec.prefix) for run in floor} == {
        ("empty", f"validation-4-{k}", None) for k in range(2)
    }, "of one trial each, either part runs on whole streams at once"
    assert tuning.floor == mean([run.summary.f1 for run in floor if run.summary and run.summary.f1 is not None])
    trials = [run for trial in tuning.trials for run in trial["runs"]]
    board = read_board(tmp_path)
    assert sorted(executor.keys) == sorted({*tuning.runs, *trials, *board.runs})
    assert len(tuning.trials) == 2 and len(trials) == 4
    check_board(tmp_path, board)


def test_a_first_part_without_questions_is_not_tried_alone(llama: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "keepers")
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    with (folder / "validation.jsonl").open("w") as file:
        for i, row in enumerate(rows[:4]):
            file.write(json.dumps({**row, "questions": row["questions"] if i == 3 else []}) + "\n")
    Runner(make_experiment(folder, llama, [UNIFORM], tuning=BY_F1, scoring=False), tmp_path / "runs").run(Inline())
    (tuning,) = read_tuning(tmp_path / "runs", read_board(tmp_path / "runs").tuning)
    assert all(trial["whole"] and trial["score"] is not None for trial in tuning.trials)


def test_no_method_waits_for_the_tuning_of_another(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    class PrefersUniform(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            while rest := [task for task in tasks if task.key not in self.keys]:
                yield from super().run([min(rest, key=lambda task: not task.key.startswith("uniform"))])

    executor = PrefersUniform()
    result = Runner(plan("uniform", "lora"), tmp_path).run(executor)
    methods = [key.split("-")[0] for key in executor.keys]
    assert methods == sorted(methods, reverse=True) and set(methods) == {"uniform", "lora"}
    assert {cell.id for cell in result.cells} < set(executor.keys)


def test_tuning_that_was_interrupted_continues_and_runs_nothing_twice(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    class Interrupted(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            for outcome in super().run(tasks):
                if len(self.keys) > 1:
                    raise KeyboardInterrupt
                yield outcome

    experiment = plan(UNIFORM)
    whole = Inline()
    Runner(experiment, tmp_path / "whole").run(whole)
    ran: list[str] = []
    for _ in range(2):
        executor = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            Runner(experiment, tmp_path / "parts").run(executor)
        ran += executor.keys
    rest = Inline()
    Runner(experiment, tmp_path / "parts").run(rest)
    keys = [*ran, *rest.keys]
    assert sorted(keys) == sorted(whole.keys)
    trials, trials_of_whole = ([key for key in run if "-validation-" in key] for run in (keys, whole.keys))
    assert trials == trials_of_whole, "cells of the board come in the order of what is known of their costs"
    boards = [read_board(tmp_path / part) for part in ("whole", "parts")]
    assert boards[0] == boards[1]


def test_choices_count_as_the_config_has_them(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    entry = {"name": "uniform", "space": {"learning_rate": ["1e-3", 1], "optimizer": ["sgd"]}}
    runner = Runner(plan(entry), tmp_path)
    space = runner.tuner.search_space(runner.experiment.methods[0])
    assert space == {"learning_rate": [0.001, 1.0], "optimizer": ["sgd"]}, "YAML reads 1e-3 as a text"


def test_the_board_says_what_was_tuned_and_what_was_set_by_hand(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    mac = {"name": "mac", "config": {"training": {"steps": 0}}, "space": {}}
    lora = {"name": "lora", "config": {"rank": 1, "targets": "mlp"}, "space": {"learning_rate": [1e-3, 1e-2]}}
    experiment = plan("closed_book", lora, mac)
    experiment.set("lora.alpha=2")
    result = Runner(experiment, tmp_path).run(Inline())
    closed, tuned, trained = read_board(tmp_path).entries
    assert (closed.method, closed.tuning, closed.hand_set) == ("closed_book", None, [])
    assert (tuned.method, tuned.hand_set) == ("lora", ["rank", "targets", "alpha"])
    assert tuned.tuning is not None and tuned.tuning.startswith("lora-")
    assert (trained.tuning, trained.hand_set) == (None, ["training.steps"])
    assert [*closed.runs, *tuned.runs, *trained.runs] == [cell.id for cell in result.cells]
    assert [read_run(tmp_path / entry.runs[0]).tunable for entry in (closed, tuned)] == [False, True]


def test_seeds_and_orders_are_cells_of_their_own_on_one_board(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    entry = {"name": "uniform", "space": {}, "seeds": [3, 1]}
    experiment = plan(
        "closed_book", entry, seeds=[0, 7], orders=2, streams={"split": "test", "documents": 5, "count": 1}
    )
    runner = Runner(experiment, tmp_path)
    closed, uniform = (runner.planner.cells(plan, plan.config) for plan in runner.experiment.methods)
    assert [(cell.spec.seed, cell.spec.order) for cell in closed] == [(0, 0), (0, 1), (7, 0), (7, 1)]
    assert [(cell.spec.seed, cell.spec.order) for cell in uniform] == [(3, 0), (3, 1), (1, 0), (1, 1)]
    cells = [*closed, *uniform]
    assert len({cell.key for cell in cells}) == len(cells)
    assert len({cell.comparability_key for cell in cells}) == 1
    assert len({cell.spec.stream_hash for cell in cells}) == 2, "an order is a stream of its own"
    result = runner.run(Inline())
    orders = [[e.document_id for e in read_documents(tmp_path, c.id)] for c in result.cells[:2]]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    asked = [{e.question_id for e in read_answers(tmp_path, c.id) if e.set == "stream"} for c in result.cells[:2]]
    assert asked[0] == asked[1]


def test_trials_have_the_first_seed_and_the_order_of_the_stream(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = plan({**UNIFORM, "seeds": [5, 2]}, orders=2, streams={"split": "test", "documents": 2, "count": 1})
    Runner(experiment, tmp_path).run(Inline())
    (tuning,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    specs = [read_run(tmp_path / run).spec for trial in tuning.trials for run in trial["runs"]]
    assert {(spec.seed, spec.order) for spec in specs} == {(5, 0)}


def test_with_equal_compute_nothing_over_the_limit_is_chosen(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    tuned = {"name": "lora", "config": {"learning_rate": 1e-3}, "space": {"steps_per_document": [1, 8, 9]}}
    over = {"name": "uniform", "config": {"steps_per_document": 6}, "space": {}}
    never = {"name": "tfidf", "space": {"steps_per_document": [6, 7]}}
    experiment = plan(
        {"name": "uniform", "space": {"steps_per_document": [1, 2, 3]}},
        tuned,
        over,
        never,
        tuning=BY_F1,
        equal_compute={"method": "uniform", "steps": 2},
        streams={"split": "test", "documents": 3, "count": 1},
        scoring=False,
        anchor={},
    )
    executor = Inline()
    result = Runner(experiment, tmp_path).run(executor)
    assert [cell.spec.config["steps_per_document"] for cell in result.cells if cell.spec.method == "tfidf"] == [1]
    rest = [cell for cell in result.cells if cell.spec.method != "tfidf"]
    assert [cell.spec.config["steps_per_document"] <= 2 for cell in rest] == [True, True, False]
    assert (
        "tfidf has no candidate within the limit on operations: its settings are untuned, and may be over the limit."
        in read_board(tmp_path).remarks
    )
    limit = read_run(tmp_path / executor.keys[0])
    assert (limit.spec.method, limit.spec.config["steps_per_document"], limit.spec.prefix) == ("uniform", 2, 20)
    assert limit.costs is not None
    tokens = sum(event.tokens for event in read_documents(tmp_path, limit.id))
    remark = (
        f"Methods may observe a token with {limit.costs.observe.flops / tokens:.3g} operations, as uniform at 2 steps."
    )
    assert read_board(tmp_path).remarks[-2:] == [remark, "Over this limit: uniform."]
    for tuning in read_tuning(tmp_path, read_board(tmp_path).tuning):
        assert all(trial["config"]["steps_per_document"] <= 2 for trial in tuning.trials)
        dropped = [read_run(tmp_path / run).spec for run in tuning.runs]
        assert all(s.arm == "empty" or s.config["steps_per_document"] > 2 for s in dropped)
    check_board(tmp_path, read_board(tmp_path))


def test_a_shard_runs_its_part_of_the_cells_of_every_method_and_no_more(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    streams = {"split": "test", "documents": 2, "count": 3}
    experiment = plan("closed_book", {"name": "bm25", "space": {"k": [1, 2]}}, streams=streams)
    executor = Inline()
    result = Runner(experiment, tmp_path, shard=(1, 2)).run(executor)
    own = [(cell.spec.method, cell.spec.stream) for cell in result.cells if cell.id in executor.keys]
    assert own == [("closed_book", "test-2-0"), ("closed_book", "test-2-2"), ("bm25", "test-2-1")]
    assert result.missing == 3
    ahead = Runner(experiment, tmp_path / "none", look_only=True, shard=(1, 2)).look_ahead()
    assert [len(outlook.board) for outlook in ahead] == [2, 1]
    for place, rest in ((1, [(0, 2), (0, 1)]), (2, [(1, 0), (2, 0)])):
        ahead = Runner(experiment, tmp_path, look_only=True, shard=(place, 2)).look_ahead()
        assert [(len(outlook.board), outlook.cached_board) for outlook in ahead] == rest


def test_a_record_that_was_written_where_it_is_not_seen_is_an_error(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    class Elsewhere(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield from (Outcome(task.key, value="complete") for task in tasks)

    with pytest.raises(RunError, match="is on another machine, which this one does not see"):
        Runner(plan("closed_book"), tmp_path).run(Elsewhere())


def test_without_a_limit_the_reason_is_that_of_its_cell(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    diverges = {"name": "uniform", "config": {"learning_rate": 1e30}, "space": {"steps_per_document": [1, 2]}}
    experiment = plan(diverges, tuning=BY_F1, equal_compute={"method": "uniform", "steps": 2}, scoring=False, anchor={})
    with pytest.raises(RunError, match=r"^The limit on .* measured: uniform on validation-\d+-0 \(stream, doc.*\): ."):
        Runner(experiment, tmp_path).run(Inline())


def test_shards_measure_the_limit_of_equal_compute_and_the_last_one_checks_it(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    tuned = {"name": "uniform", "space": {"steps_per_document": [1, 2]}}
    experiment = plan(
        "closed_book",
        tuned,
        tuning={**BY_F1, "trials": 1},
        equal_compute={"method": "uniform", "steps": 2},
        streams={"split": "test", "documents": 2, "count": 1},
        scoring=False,
        anchor={},
    )
    missing = [Runner(experiment, tmp_path, shard=(place, 2)).run(Inline()).missing for place in (1, 2)]
    assert missing == [1, 0]
    assert read_board(tmp_path).remarks[-1].startswith("Methods may observe a token with")


def test_a_setting_fixed_by_the_user_is_not_tuned(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan(UNIFORM)
    experiment.set("uniform.learning_rate=0.005")
    result = Runner(experiment, tmp_path).run(Inline())
    assert {cell.spec.config["learning_rate"] for cell in result.cells} == {0.005}
    assert read_board(tmp_path).tuning == []


def test_without_a_validation_split_defaults_run_and_the_board_says_so(
    plan: Callable[..., Experiment], keepers: Path, tmp_path: Path
) -> None:
    experiment = plan(UNIFORM, data_files={"test": [str(keepers / "test.jsonl")]})
    result = Runner(experiment, tmp_path).run(Inline())
    assert {cell.spec.config["learning_rate"] for cell in result.cells} == {1e-4}
    (remark,) = read_board(tmp_path).remarks
    assert "untuned" in remark
    assert "validation" in remark


def test_a_method_that_learns_offline_needs_a_train_split(
    plan: Callable[..., Experiment], keepers: Path, plugin: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="trained learns offline from the train split"):
        Runner(plan("trained", data_files={"test": [str(keepers / "test.jsonl")]}), tmp_path, [plugin])
    result = Runner(plan("trained"), tmp_path / "runs", [plugin]).run(Inline())
    assert read_run(tmp_path / "runs" / result.cells[0].id).notes == {"episodes": 4}


def test_a_method_that_raises_fails_alone_and_is_run_again(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path
) -> None:
    experiment = plan("raises", "closed_book")
    runs = tmp_path / "runs"
    result = Runner(experiment, runs, [plugin]).run(Inline())
    assert len(result.failures) == 2
    records = [read_run(runs / cell.id) for cell in result.cells]
    assert [record.status for record in records] == ["failed", "failed", "complete", "complete"]
    failure = records[0].failure
    assert failure is not None
    assert (failure.kind, failure.position) == ("failed", 2)
    assert failure.message == "ValueError: cannot read this"
    assert "in observe" in failure.traceback
    again = Inline()
    Runner(experiment, runs, [plugin]).run(again)
    assert again.keys == [cell.id for cell in result.cells[:2]]


RAISED = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit('enough')": "SystemExit: enough",
    "raise ValueError('half a pair: \\ud800')": "ValueError: half a pair: ?",
    "raise Unspeakable": "Unspeakable: (its message cannot be shown)",
    "raise ValueError('x' * 5_000_000)": "ValueError: xx",
    "raise MemoryError": "",
}
"""Statements of a method, and how the message in the record of its cell begins."""


@pytest.mark.parametrize("statement", RAISED)
def test_whatever_a_method_raises_becomes_a_failed_record(
    plan: Callable[..., Experiment], tmp_path: Path, statement: str
) -> None:
    plugin = tmp_path / "raiser.py"
    plugin.write_text(
        "import sys\n\nfrom bench import Document, Method\n\n\n"
        "class Unspeakable(Exception):\n    def __str__(self):\n        raise RuntimeError\n\n\n"
        'class Raiser(Method):\n    """Raises."""\n\n    name = "raiser"\n    paper = "none"\n\n'
        f"    def observe(self, document: Document) -> None:\n        {statement}\n"
    )
    result = Runner(plan("raiser", "closed_book"), tmp_path / "runs", [str(plugin)]).run(Inline())
    records = [read_run(tmp_path / "runs" / cell.id) for cell in result.cells]
    assert [record.status for record in records] == ["failed", "failed", "complete", "complete"]
    failure = records[0].failure
    assert failure is not None and failure.position == 0 and "in observe" in failure.traceback
    assert failure.message.startswith(RAISED[statement])
    assert len(failure.message) < 3_000 and len(failure.traceback) < 30_000
    assert failure.kind == ("out_of_memory" if "MemoryError" in statement else "failed")
    assert len(result.failures) == 2 and all("raiser on test-" in line and len(line) < 500 for line in result.failures)


def test_a_method_that_diverges_is_recorded_as_such_and_not_run_again(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    experiment = plan("explodes")
    result = Runner(experiment, runs, [plugin]).run(Inline())
    record = read_run(runs / result.cells[0].id)
    assert record.status == "diverged"
    assert record.failure is not None
    assert record.failure.position is not None
    again = Inline()
    Runner(experiment, runs, [plugin]).run(again)
    assert again.keys == []


@pytest.mark.parametrize("bad", ["litters", "chatty"])
def test_a_method_that_breaks_the_model_or_the_record_fails_alone(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path, bad: str
) -> None:
    runs = tmp_path / "runs"
    result = Runner(plan(bad, "closed_book"), runs, [plugin]).run(Inline())
    assert [read_run(runs / cell.id).status for cell in result.cells] == ["failed", "failed", "complete", "complete"]


def test_notes_that_are_not_finite_are_text_in_the_record(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        'from bench import Method\n\n\nclass Odd(Method):\n    """Has odd notes."""\n\n'
        "    name = 'odd'\n    paper = 'none'\n\n"
        "    def observe(self, document):\n        pass\n\n"
        "    def notes(self):\n        return {'rate': float('nan'), 'list': [float('-inf'), 1.5]}\n"
    )
    one = {"split": "test", "documents": 2, "count": 1}
    experiment = plan("odd", streams=one, tuning=None, anchor={}, scoring=False)
    result = Runner(experiment, tmp_path / "runs", [str(tmp_path / "odd.py")]).run(Inline())
    record = read_run(tmp_path / "runs" / result.cells[0].id)
    assert (record.status, record.notes) == ("complete", {"rate": "NaN", "list": ["-Infinity", 1.5]})


def test_answers_without_a_finite_likelihood_count_as_diverged(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    result = Runner(plan("enormous", scoring=False), runs, [plugin]).run(Inline())
    assert {read_run(runs / cell.id).status for cell in result.cells} == {"diverged"}


def test_two_configs_of_one_method_are_two_rows(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    rates = (1e-3, 1e-2)
    experiment = plan(*({"name": "uniform", "config": {"learning_rate": rate}, "space": {}} for rate in rates))
    result = Runner(experiment, tmp_path).run(Inline())
    assert [cell.spec.config["learning_rate"] for cell in result.cells] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert len(read_board(tmp_path).runs) == 4


def test_other_training_data_make_another_cell(
    plan: Callable[..., Experiment], keepers: Path, plugin: str, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((keepers / "train.jsonl").read_text().splitlines(keepends=True)[:2]))
    counts = []
    for train in (keepers / "train.jsonl", fewer):
        files = {"test": [str(keepers / "test.jsonl")], "train": [str(train)]}
        result = Runner(plan("trained", data_files=files), tmp_path / "runs", [plugin]).run(Inline())
        counts.append(read_run(tmp_path / "runs" / result.cells[0].id).notes["episodes"])
    assert counts == [4, 2], "reset keeps what fit learned, and other data do not use the old record"


def test_a_trial_that_failed_is_run_again_and_the_tuning_record_is_corrected(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    class FirstDies(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            for task in tasks:
                if task is tasks[0] and not self.keys:  # the first trial
                    yield Outcome(task.key, error=TaskError("worker_died", "ended by SIGKILL"))
                else:
                    yield from super().run([task])

    rates = (
        [1e-2, 0.0]
        if explore({"learning_rate": [1e-2, 0.0]}, {"learning_rate": 1.0}, 1) == [{"learning_rate": 1e-2}]
        else [0.0, 1e-2]
    )
    experiment = plan({"name": "uniform", "space": {"learning_rate": rates}})
    result = Runner(experiment, tmp_path).run(FirstDies())
    (failure,) = result.failures
    assert "ended by SIGKILL" in failure, "the board is complete"
    (before,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    assert before.chosen["learning_rate"] == 0.0
    assert "1 of 2 tuning trials" in read_board(tmp_path).remarks[0]
    assert "tuned with 2 of 3 trials" in read_board(tmp_path).remarks[1]
    assert Runner(experiment, tmp_path).run(Inline()).failures == ()
    (after,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    assert after.chosen["learning_rate"] == 1e-2
    assert not any("diverged or failed" in remark for remark in read_board(tmp_path).remarks)


def test_data_that_change_after_planning_are_an_error(keepers: Path, llama: Path, tmp_path: Path) -> None:
    from bench.data import reader
    from bench.run import cell, inputs

    folder = shutil.copytree(keepers, tmp_path / "keepers")
    runner = Runner(make_experiment(folder, llama, ["closed_book"]), tmp_path / "runs")
    (first, _) = runner.planner.cells(runner.experiment.methods[0], {})
    (folder / "test.jsonl").write_text((folder / "test.jsonl").read_text().replace("lighthouse", "windmill"))
    inputs.inputs_of.cache_clear()
    reader.split_data.cache_clear()
    with pytest.raises(BenchError, match="stream has changed since the run was planned"):
        cell.run(first.model_dump(mode="json"), str(tmp_path / "runs"))


def test_a_worker_with_another_harness_refuses_a_cell(keepers: Path, llama: Path, tmp_path: Path) -> None:
    from bench.run import cell

    runner = Runner(make_experiment(keepers, llama, ["closed_book"]), tmp_path)
    (first, _) = runner.planner.cells(runner.experiment.methods[0], {})
    other = first.model_copy(update={"spec": first.spec.model_copy(update={"harness_code": "of another version"})})
    with pytest.raises(BenchError, match=r"harness has changed .* or is another one on this machine"):
        cell.run(other.model_dump(mode="json"), str(tmp_path))


def test_a_misspelt_setting_of_a_space_is_named_although_nothing_is_tuned(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="lerning_rate"):
        Runner(plan({"name": "uniform", "space": {"lerning_rate": [0.1, 1]}}, tuning=None), tmp_path)


def test_a_best_value_at_the_edge_of_its_range_gets_a_remark(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    Runner(plan({"name": "uniform", "space": {"learning_rate": [0.0, 1e-2]}}), tmp_path).run(Inline())
    assert read_board(tmp_path).remarks == [
        "uniform was tuned with 2 of 3 trials: there are no other settings to try.",
        "Best at the edge of what was tried, so that a wider range may do better: learning_rate=0.01 of uniform.",
    ]


@pytest.mark.parametrize(
    ("name", "key", "values", "bound"),
    [
        ("uniform", "steps_per_document", [1, 2, 3], 1),
        ("bm25", "b", [1.0, 0.5], 1.0),
        ("bm25", "b", [0.5, 1.0], 1.0),
        ("bm25", "k1", [1, 2], None),
    ],
)
def test_a_best_value_at_its_own_bound_gets_no_remark(
    plan: Callable[..., Experiment], tmp_path: Path, name: str, key: str, values: list[float], bound: float | None
) -> None:
    config = {"learning_rate": 0.0} if name == "uniform" else {}
    result = Runner(plan({"name": name, "config": config, "space": {key: values}}), tmp_path).run(Inline())
    (tuning,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    chosen = result.cells[0].spec.config[key]
    whole = [trial["config"][key] for trial in tuning.trials if trial["whole"]]
    assert chosen == whole[0], "of equal scores, the earlier trial is chosen"
    remarks = [remark for remark in read_board(tmp_path).remarks if "edge" in remark]
    outermost = chosen in (min(t["config"][key] for t in tuning.trials), max(t["config"][key] for t in tuning.trials))
    assert len(remarks) == (outermost and chosen != bound)


def test_a_remark_on_one_of_several_variants_names_its_settings(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    space = {"learning_rate": [0.0, 1e-2]}
    variants = [{"name": "uniform", "config": {"steps_per_document": n}, "space": space} for n in (1, 2)]
    Runner(plan(*variants), tmp_path).run(Inline())
    assert "of uniform (steps_per_document=2)" in read_board(tmp_path).remarks[-1]


def test_a_worker_that_dies_leaves_a_failed_record(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    class Deadly(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield Outcome(tasks[0].key, error=TaskError("worker_died", "ended by SIGKILL"))
            yield from super().run(tasks[1:])

    result = Runner(plan("closed_book"), tmp_path).run(Deadly())
    assert len(result.failures) == 1
    failure = read_run(tmp_path / result.cells[0].id).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("worker_died", "ended by SIGKILL")


def test_a_cell_whose_disk_fails_leaves_a_failed_record_and_the_run_goes_on(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    class Unlucky(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield Outcome(tasks[0].key, error=TaskError("io", "OSError: [Errno 5] Input/output error"))
            yield from super().run(tasks[1:])

    result = Runner(plan("closed_book"), tmp_path).run(Unlucky())
    records = [read_run(tmp_path / cell.id) for cell in result.cells]
    assert [record.status for record in records] == ["failed", "complete"]
    failure = records[0].failure
    assert failure is not None and (failure.kind, "Input/output error" in failure.message) == ("failed", True)


def test_a_cell_that_ends_elsewhere_while_tasks_are_made_is_not_run_again(
    plan: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Runner(plan("closed_book"), tmp_path / "elsewhere").run(Inline())
    here, written = tmp_path / "here", {}

    def is_ahead(self: Runner, cell: Cell) -> bool:
        if is_new := not cell.is_done(here):
            shutil.copytree(tmp_path / "elsewhere" / cell.id, here / cell.id)
            written[cell.id] = (here / cell.id / "run.json").stat().st_mtime_ns
        return is_new

    monkeypatch.setattr(Runner, "is_ahead", is_ahead)
    executor = Inline()
    Runner(plan("closed_book"), here).run(executor)
    assert len(executor.keys) == len(written) == 2
    assert {cell: (here / cell / "run.json").stat().st_mtime_ns for cell in written} == written


def test_worker_processes_give_the_same_numbers_as_this_process(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    import torch

    experiment = plan("closed_book", {"name": "uniform", "space": {}})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Runner(experiment, tmp_path / "here").run(Inline())
    finally:
        torch.set_num_threads(before)
    with LocalPool(2, threads=1) as pool:
        Runner(experiment, tmp_path / "workers").run(pool)
    assert scores(tmp_path / "here") == scores(tmp_path / "workers")


def test_the_placebo_arm_asks_the_same_questions_after_other_documents(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    result = Runner(plan({"name": "uniform", "space": {}, "arms": ["stream", "placebo"]}), tmp_path).run(Inline())
    stream, placebo = result.cells[0], result.cells[2]
    assert (stream.spec.arm, placebo.spec.arm) == ("stream", "placebo")
    questions = [[e.question_id for e in read_answers(tmp_path, c.id) if e.set == "stream"] for c in (stream, placebo)]
    assert questions[0] == questions[1]
    documents = [{e.document_id for e in read_documents(tmp_path, cell.id)} for cell in (stream, placebo)]
    assert len(documents[0]) == len(documents[1]) == 5
    assert not documents[0] & documents[1]


def test_control_arms_ask_the_same_questions_after_their_own_documents(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    arms = ["stream", "empty", "gold_only", "shuffled", "every_2"]
    result = Runner(plan({"name": "uniform", "space": {}, "arms": arms}), tmp_path).run(Inline())
    cells = {cell.spec.arm: cell for cell in result.cells[::-1]}
    answers = {arm: [e for e in read_answers(tmp_path, c.id) if e.set == "stream"] for arm, c in cells.items()}
    order = {arm: [e.document_id for e in read_documents(tmp_path, c.id)] for arm, c in cells.items()}
    for arm in arms[1:]:
        assert [e.question_id for e in answers[arm]] == [e.question_id for e in answers["stream"]]
        assert cells[arm].comparability_key == cells["stream"].comparability_key
    assert order["empty"] == []
    assert order["gold_only"] == order["every_2"] == order["stream"]
    assert all(a != b for a, b in zip(order["shuffled"], order["stream"], strict=True))
    assert set(order["shuffled"]) <= set(order["stream"])


def test_the_irrelevant_arm_asks_the_same_questions_after_more_documents(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = plan({"name": "uniform", "space": {}, "arms": ["stream", "irrelevant_60"]})
    result = Runner(experiment, tmp_path).run(Inline())
    stream, longer = result.cells[0], result.cells[2]
    own, mixed = ([e.document_id for e in read_documents(tmp_path, cell.id)] for cell in (stream, longer))
    assert [document for document in mixed if document in own] == own and len(mixed) == 5 + 3
    asked, again = ([e for e in read_answers(tmp_path, c.id) if e.set == "stream"] for c in (stream, longer))
    assert [e.question_id for e in again] == [e.question_id for e in asked]
    assert [mixed[e.position] for e in again] == [e.document_id for e in asked] == own
    assert stream.comparability_key == longer.comparability_key and stream.spec.stream_hash != longer.spec.stream_hash
    assert not Runner(experiment, tmp_path).run(executor := Inline()).failures and not executor.keys, "the same again"


@torch.no_grad()
def test_every_question_is_asked_in_the_prompt_format_of_the_experiment(
    plan: Callable[..., Experiment], llama: Path, tmp_path: Path
) -> None:
    lm = BaseModel.load(str(llama))
    begin = next(token for token, i in lm.tokenizer.get_vocab().items() if i not in (lm.bos_id, lm.eos_id))
    prompt = {"begin": begin, "document": "Read: {document}\n", "question": "Q: {question} A:"}
    streams = {"split": "test", "documents": 2, "count": 1}
    experiment = plan("closed_book", "gold_in_prompt", prompt=prompt, streams=streams, tuning=None)
    result = Runner(experiment, tmp_path).run(Inline())
    start = torch.tensor([lm.tokenizer.get_vocab()[begin]])
    for cell in result.cells:
        assert cell.spec.prompt == PromptFormat(**prompt)
        entries = inputs_of(cell.sources, "stream").stream.entries
        for event in (event for event in read_answers(tmp_path, cell.id) if event.set == "stream"):
            text, gold = entries[event.position].document.text, entries[event.position].questions[0]
            before = f"Read: {text}\n" if cell.spec.method == "gold_in_prompt" else ""
            ids = lm.encode(f"{before}Q: {gold.question.text} A:")
            answer = torch.cat([lm.encode(f" {gold.answers[0]}"), torch.tensor([lm.eos_id])])
            assert event.nll == pytest.approx(-lm.log_probs(answer, torch.cat([start, ids])).mean().item(), abs=1e-5)
        for document in read_documents(tmp_path, cell.id):
            text = entries[document.position].document.text
            assert document.nll == pytest.approx(-lm.log_probs(lm.encode(text), start).sum().item(), rel=1e-5)
    plain = Runner(plan("closed_book", streams=streams, tuning=None), tmp_path).planner
    (entry,) = plain.experiment.methods
    assert plain.cells(entry, {})[0].comparability_key != result.cells[0].comparability_key


def test_for_retention_the_board_asks_the_first_questions_and_trials_ask_all(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    experiment = plan(UNIFORM, probes=(0.4, 1.0), questions="first", tuning=BY_F1)
    result = Runner(experiment, tmp_path).run(Inline())
    for cell in result.cells:
        assert cell.spec.questions == "first"
        events = [event for event in read_answers(tmp_path, cell.id) if event.set == "stream"]
        assert [(event.probe, event.position) for event in events] == [(0.4, 0), (0.4, 1), (1.0, 0), (1.0, 1)]
    trials = {read_run(path.parent).spec.questions for path in tmp_path.glob("uniform-*-validation-*/run.json")}
    assert trials == {"seen"}
    ordinary = Runner(plan(UNIFORM, probes=(0.4, 1.0), tuning=BY_F1), tmp_path).planner
    (entry,) = ordinary.experiment.methods
    assert ordinary.cells(entry, {})[0].comparability_key != result.cells[0].comparability_key


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ({"arms": ["stream", "irrelevant_100"]}, {"streams": {"split": "test", "documents": 9, "count": 1}},
         "irrelevant_100 arm of keepers test-9-0 needs 9 documents outside the stream and its groups, but the split"),
        ({"arms": ["stream", "irrelevant_50"]}, {"probes": (0.5, 1.0), "questions": "first"},
         "questions: first cannot be combined with the irrelevant_50 arm, .*: leave one of them out"),
        ({"arms": ["stream", "gold_only"]}, {"probes": (0.5,)},
         "The last probe is 0.5, but the gold_only arm asks about all documents, .*: let the last probe be 1"),
        ({"arms": ["stream", "placebo"]}, {"streams": {"split": "test", "documents": 9, "count": 1}},
         "placebo arm of keepers test-9-0 needs 9 documents outside the stream and its groups, but the split has 7"),
        ({"arms": ["placebo"]}, {"streams": {"split": "test", "documents": None, "count": 1}}, "the split has 0"),
        ({"arms": ["stream", "shuffled"]}, {"streams": {"split": "test", "documents": 1, "count": 1}},
         "shuffled arm needs two documents, but keepers test-1-0 has one"),
        ({}, {"streams": {"split": "test", "documents": 9, "count": 2}}, "'test' of keepers has 16 documents, too few"),
        ({"space": {"learning_rate": [1e-3]}}, {"tuning": {"documents": 9, "count": 1}},
         "'validation' of keepers has 8 documents, too few for 1 .* --validation-documents"),
        ({"space": {"learning_rate": [1e-3]}}, {"tuning": {"documents": 4, "count": 3}},
         "'validation' of keepers has 8 documents, too few for 3 .* --validation-documents"),
        ({"space": {"learning_rate": [1e-3, float("inf")]}}, {}, "learning_rate = inf: Input should be a finite"),
        ({"config": {"learning_rate": float("nan")}}, {}, "uniform.learning_rate = nan: Input should be a finite"),
        ({"config": {"learning_rate": float("-inf")}}, {}, "uniform.learning_rate = -inf: Input should be a finite"),
        ({"space": {"learning_rat": [1e-3]}}, {}, "Did you mean learning_rate"),
        ({"space": {"learning_rate": {"low": -1, "high": 1}}}, {}, "learning_rate = -1.0: .*greater than or eq"),
        ({"space": {"steps_per_document": {"low": 1, "high": 3}}}, {}, "uniform.steps_per_document is no real number"),
        ({}, {"equal_compute": {"method": "lora", "steps": 3}, "tuning": BY_F1}, "names lora, which is not in the exp"),
        ({}, {"equal_compute": {"method": "closed_book", "steps": 3}, "tuning": BY_F1}, "steps_per_document"),
        ({}, {"equal_compute": {"method": "uniform", "steps": 3}}, "give the experiment a tuning plan by F1"),
        ({}, {"equal_compute": {"method": "uniform", "steps": 3}, "tuning": None}, "a tuning plan by F1"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_run_is_an_error_before_any_work(
    plan: Callable[..., Experiment], tmp_path: Path, method: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        Runner(plan("closed_book", {"name": "uniform", "space": {}, **method}, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_not_tuned_runs_on_a_validation_split_that_is_too_small(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    small = {"documents": 9, "count": 1}
    assert Runner(plan("closed_book", {"name": "uniform", "space": {}}, tuning=small), tmp_path).spaces
    with pytest.raises(BenchError, match="too few for 1"):
        Runner(plan("closed_book", {"name": "uniform", "space": {"learning_rate": [1e-3]}}, tuning=small), tmp_path)


@pytest.mark.parametrize("method", ["closed_book", {"name": "bm25", "space": {}, "arms": ["empty"]}])
def test_an_arm_with_nothing_to_score_is_an_error(llama: Path, tmp_path: Path, method: Any) -> None:
    (tmp_path / "one.txt").write_text("The lighthouse opened in 1983.")
    changes = {"data_files": {"test": [str(tmp_path / "one.txt")]}, "tuning": None, "anchor": {}}
    experiment = make_experiment(Path("text"), llama, [method], scoring=method != "closed_book", **changes)
    with pytest.raises(BenchError, match="arm of text test-all-0 has nothing to score: no question is asked"):
        Runner(experiment, tmp_path / "runs")


def changed(keepers: Path, folder: Path, change: Callable[[int, dict[str, Any]], Any], recipe: str = "") -> Path:
    """A copy of a dataset in which each row of the test split is changed, with a change of the recipe."""
    copy = shutil.copytree(keepers, folder / keepers.name)
    rows = [json.loads(line) for line in (copy / "test.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        change(number, row)
    (copy / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if recipe:
        text = (copy / "dataset.yaml").read_text()
        assert recipe in text
        (copy / "dataset.yaml").write_text(text.replace(recipe, ""))
    return copy


def test_a_stream_without_questions_beside_others_is_an_error(keepers: Path, llama: Path, tmp_path: Path) -> None:
    silent = changed(keepers, tmp_path, lambda number, row: number and row.update(questions=[]))
    streams = {"split": "test", "documents": 8, "count": 2}
    with pytest.raises(BenchError, match=r"No question is asked on the stream arm of keepers test-8-\d, but on other"):
        Runner(make_experiment(silent, llama, ["closed_book"], streams=streams), tmp_path / "runs")


def test_what_a_board_does_not_measure_is_remarked_on(keepers: Path, llama: Path, tmp_path: Path) -> None:
    plain = changed(keepers, tmp_path / "plain", lambda *_: None, "anchor: {split: qa_train}\n")
    dated = changed(keepers, tmp_path / "dated", lambda *_: None, ", order: timestamp")

    def remarks(dataset: Path, **changes: Any) -> str:
        return " ".join(Runner(make_experiment(dataset, llama, ["closed_book"], **changes), tmp_path / "runs").remarks)

    assert remarks(keepers) == ""
    assert "No questions on old knowledge are asked" in remarks(keepers, anchor={})
    assert "keepers states no anchor.split" in remarks(plain) and remarks(plain, anchor={}) == ""
    assert "Documents are dated, but come in random order" in remarks(dated)
    assert "bfloat16 is safer" in remarks(keepers, dtype="float16")


def test_cells_of_two_bases_share_no_worker(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    one, groups = plan("closed_book"), []
    other = one.model_copy(update={"model": str(make_checkpoint(tmp_path / "other", "llama", seed=1))})
    for experiment in (one, other):
        cells = Planner(experiment, tmp_path).cells(experiment.methods[0], {})
        groups.append({cell.group for cell in cells})
    assert len(groups[0]) == len(groups[1]) == 1 and groups[0] != groups[1]


def test_tuning_by_answers_needs_questions(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The lighthouse opened in 1983.")
    (tmp_path / "two.txt").write_text("The lighthouse burned down in 1990.")
    experiment = make_experiment(
        Path("text"),
        llama,
        [UNIFORM],
        data_files={"test": [str(tmp_path / "one.txt")], "validation": [str(tmp_path / "two.txt")]},
        tuning={"documents": 1, "count": 1, "metric": "f1"},
        anchor={},
    )
    with pytest.raises(BenchError, match=r"tuning\.metric is f1, but the validation streams have no questions"):
        Runner(experiment, tmp_path / "runs")


@pytest.mark.parametrize(("arm", "remarks"), [("every_4", 0), ("every_5", 1), ("every_64", 1)])
def test_an_arm_that_never_resets_gets_a_remark(
    plan: Callable[..., Experiment], tmp_path: Path, arm: str, remarks: int
) -> None:
    runner = Runner(plan({"name": "uniform", "space": {}, "arms": [arm, "stream"]}), tmp_path)
    assert len(runner.remarks) == remarks
    assert all(f"the {arm} arm of streams of 5 documents" in remark for remark in runner.remarks)


@pytest.mark.parametrize("chosen", [["closed_book"], ["closed_book", "bm25"], [UNIFORM]])
def test_a_plugin_whose_methods_are_not_in_the_experiment_is_an_error(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path, chosen: list[Any]
) -> None:
    with pytest.raises(BenchError, match=r"No method of --plugin .*failures\.py is in the experiment: name raises or"):
        Runner(plan(*chosen), tmp_path / "runs", [plugin])
    Runner(plan(*chosen, "raises"), tmp_path / "runs", [plugin])


def test_evidence_by_the_back_door_and_ids_that_tell_the_document_give_nothing(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    cases = ("k1_evidence_instance", "o1_id_oracle")
    files = [str(ROOT / "tests" / "cases" / "plugins" / f"{case}.py") for case in cases]
    result = Runner(plan(*cases, streams={"split": "test", "documents": 5, "count": 1}), tmp_path, files).run(Inline())
    (line,) = result.failures
    assert "k1_evidence_instance changes sees_evidence: state it once" in line
    evidence, oracle = (read_run(tmp_path / cell.id) for cell in result.cells)
    assert not evidence.control and evidence.summary is None
    assert oracle.summary is not None and oracle.summary.recall == 0
    verdict = suite.examine(registry.find_method(cases[0], files), "observe_only_reads")
    assert not verdict.passed and not verdict.skipped and "changes sees_evidence" in verdict.message


def test_answers_read_from_a_stack_frame_fail_the_check() -> None:
    (info,) = registry.methods_in(ROOT / "tests" / "cases" / "plugins" / "a2_frames.py")
    verdict = suite.examine(info, "blind_to_the_answers")
    assert not verdict.passed and "depends on the reference answers" in verdict.message


def test_an_unknown_arm_is_refused(plan: Callable[..., Experiment]) -> None:
    with pytest.raises(pydantic.ValidationError, match="arms"):
        plan({"name": "uniform", "arms": ["every_0"]})


def test_the_keys_of_a_cell_depend_on_everything_that_can_change_its_numbers(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    def first(experiment: Experiment) -> Any:
        return Runner(experiment, tmp_path).planner.cells(experiment.methods[0], experiment.methods[0].config)[0]

    base = first(plan("uniform"))
    assert first(plan("uniform")).key == base.key
    same_board = [
        plan("closed_book"),
        plan({"name": "uniform", "config": {"learning_rate": 0.1}}),
        plan("uniform", seeds=[1]),
        plan({"name": "uniform", "seeds": [1]}),
    ]
    other_board = [
        plan("uniform", dtype="bfloat16"),
        plan("uniform", window=64),
        plan("uniform", probes=(0.5, 1.0)),
        plan("uniform", scoring=False),
        plan("uniform", segment_tokens=7),
        plan("uniform", reread=True),
        plan("uniform", gradient_norms=1),
        plan("uniform", decoding={"max_new_tokens": 8}),
        plan("uniform", anchor={"questions": 0, "documents": 0}),
        plan("uniform", streams={"split": "test", "documents": 4, "count": 2}),
    ]
    for changed in same_board:
        assert first(changed).key != base.key
        assert first(changed).comparability_key == base.comparability_key
    for changed in other_board:
        assert first(changed).key != base.key
        assert first(changed).comparability_key != base.comparability_key


def test_the_settings_of_an_experiment_reach_its_cells(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    def run(**changes: Any) -> tuple[Any, ...]:
        streams = {"split": "test", "documents": 2, "count": 1}
        experiment = plan({"name": "tfidf", "space": {}}, streams=streams, tuning=None, anchor={}, **changes)
        (cell,) = Runner(experiment, tmp_path).run(Inline()).cells
        documents, tokens = read_documents(tmp_path, cell.id), read_tokens(tmp_path, cell.id)
        return (
            [event.tokens for event in documents],
            [event.nll for event in documents],
            [event.nll_after is not None for event in documents],
            [event.gradient_norms is not None for event in tokens],
            [event.prediction for event in read_answers(tmp_path, cell.id)],
        )

    tokens, nll, again, norms, answers = run()
    assert (tokens, again, norms) == ([19, 24], [False, False], [False, False])
    assert run(segment_tokens=7)[0] == [7, 7, 5, 7, 7, 7, 3]
    assert run(reread=True)[2] == [True, True]
    assert run(gradient_norms=1)[3] == [True, False]
    rounded = run(dtype="bfloat16")[1]
    assert rounded != nll and rounded == pytest.approx(nll, rel=1e-2)
    cut = run(decoding={"max_new_tokens": 3})[4]
    assert all(long.startswith(short) and long != short for long, short in zip(answers, cut, strict=True))


def test_a_cell_reads_no_more_at_once_than_the_window_of_the_experiment(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    windows = {}
    for window in (None, 64, 10**6):
        experiment = plan("closed_book", window=window)
        cell = next(iter(Runner(experiment, tmp_path).planner.cells(experiment.methods[0], {})))
        windows[window] = load_base(cell)[0].window
    assert windows == {None: windows[None], 64: 64, 10**6: windows[None]} and windows[None] > 64
    with pytest.raises(ValueError, match="greater than or equal to 64"):
        plan("closed_book", window=63)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("unifrom", "Did you mean uniform"),
        ({"name": "uniform", "config": {"learning_rat": 1}}, "Did you mean learning_rate"),
        ({"name": "uniform", "config": {"learning_rate": -1}}, "uniform.learning_rate = -1: .*greater than or equal"),
    ],
)
def test_a_wrong_request_is_an_error_before_any_work(
    plan: Callable[..., Experiment], tmp_path: Path, method: object, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        Runner(plan(method), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_an_error_that_names_it(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book")
    result = Runner(experiment, tmp_path).run(Inline())
    manifest = tmp_path / result.cells[0].id / "run.json"
    manifest.write_text(manifest.read_text()[:100])
    with pytest.raises(BenchError, match=f"{result.cells[0].id}.*Delete its folder"):
        Runner(experiment, tmp_path).run(Inline())


def test_damaged_events_are_an_error_that_names_them(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    result = Runner(plan("closed_book"), tmp_path).run(Inline())
    events = tmp_path / result.cells[0].id / "answers.jsonl"
    events.write_text(events.read_text()[:-20])
    with pytest.raises(BenchError, match=r"answers\.jsonl is not the file that was written.*Delete its folder"):
        read_answers(tmp_path, result.cells[0].id)


def test_a_folder_without_its_manifest_is_run_again(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = plan("closed_book")
    result = Runner(experiment, tmp_path).run(Inline())
    (tmp_path / result.cells[0].id / "run.json").unlink()
    again = Inline()
    Runner(experiment, tmp_path).run(again)
    assert again.keys == [result.cells[0].id]
    assert read_run(tmp_path / result.cells[0].id).status == "complete"


def test_records_have_their_provenance(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    result = Runner(plan("closed_book"), tmp_path).run(Inline())
    record = json.loads((tmp_path / result.cells[0].id / "run.json").read_text())
    assert record["spec"]["protocol"] == PROTOCOL
    assert {"commit", "dirty", "packages", "threads", "command"} <= record["provenance"].keys()
    assert record["spec"]["dataset"] == "keepers"
    assert str(tmp_path.parent) not in json.dumps(record), "a record holds no absolute path"


def test_what_the_reader_noticed_and_the_tokens_of_f1_reach_the_board(llama: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "keepers")
    lines = (folder / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["questions"][0]["answers"] = ["灯塔"]
    rows[0]["questions"].append({"id": "none", "question": "Who left?", "answers": []})
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "dataset.yaml").open("a") as recipe:
        recipe.write("unanswerable: leave_out\n")
    changes = {"streams": {"split": "test", "documents": 2, "count": 1}, "tuning": None}
    experiment = make_experiment(folder, llama, ["closed_book"], **changes)
    words = Runner(experiment, tmp_path / "runs").run(Inline())
    remarks = read_board(tmp_path / "runs").remarks
    assert "1 question(s) of test without an answer are left out" in remarks[0]
    assert "`segment: characters`" in remarks[1] and len(remarks) == 2
    with (folder / "dataset.yaml").open("a") as recipe:
        recipe.write("segment: characters\n")
    characters = Runner(experiment, tmp_path / "runs").run(Inline())
    assert "Scores of answers compare characters" in read_board(tmp_path / "runs").remarks[1]
    (one,), (other,) = words.cells, characters.cells
    assert one.comparability_key != other.comparability_key
    assert (one.spec.segment, other.spec.segment) == ("words", "characters")


def save_tiny(architecture: str, folder: Path) -> Path:
    base = tiny_base(architecture)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("architecture", "method", "need"),
    [
        ("mamba2", {"name": "dynamic_evaluation", "config": {"context": "carry"}}, "carried keys and values"),
        ("lfm2", {"name": "dynamic_evaluation", "space": {"context": ["full", "carry"]}}, "carried keys and values"),
        ("rwkv", {"name": "mac", "config": {"training": {"steps": 0}}}, "key/value prefixes"),
        ("qwen3_next", {"name": "cmt", "config": {"training": {"steps": 0, "injection": "kv"}}}, "key/value prefixes"),
    ],
)
def test_a_method_that_needs_what_the_base_does_not_do_is_refused_before_any_work(
    keepers: Path, tmp_path: Path, architecture: str, method: dict[str, Any], need: str
) -> None:
    base = save_tiny(architecture, tmp_path / architecture)
    with pytest.raises(BenchError, match=f"{architecture} does not continue {need} .* so {method['name']} cannot run"):
        Runner(make_experiment(keepers, base, ["closed_book", method]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices onto which bases are loaded from now on. The GPU has no memory left."""
    devices: list[str] = []
    load = BaseModel.load

    def spied(path: str, device: str, dtype: str, offload: bool) -> BaseModel:
        devices.append(device)
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return load(path, device, dtype)

    monkeypatch.setattr(BaseModel, "load", spied)
    monkeypatch.setattr("bench.run.runner.checkpoint.has_device", lambda device: True)
    monkeypatch.setattr("bench.run.runner._base", _base.__wrapped__)
    return devices


@pytest.mark.parametrize("look_only", [False, True])
def test_a_base_that_exceeds_the_memory_is_refused_before_it_is_loaded(
    plan: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loading: list[str],
    look_only: bool,
) -> None:
    monkeypatch.setattr("bench.machine.available_memory", lambda: 2**20)
    with pytest.raises(BenchError, match=r"needs 0\.4 GB of memory, and 0\.0 GB are available"):
        Runner(plan("closed_book"), tmp_path, look_only=look_only)
    assert not loading


def test_a_base_for_a_gpu_is_not_tried_on_a_machine_without_room_for_it(
    plan: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loading: list[str]
) -> None:
    monkeypatch.setattr("bench.machine.available_memory", lambda: 2**20)
    runner = Runner(plan("closed_book", device="cuda"), tmp_path, look_only=True)
    assert runner.abilities is None and runner.weights > 0 and not loading


def test_a_full_gpu_is_a_sentence_and_who_only_looks_does_not_use_it(
    plan: Callable[..., Experiment], tmp_path: Path, loading: list[str]
) -> None:
    with pytest.raises(BenchError, match="does not fit into the free memory of cuda"):
        Runner(plan("closed_book", device="cuda"), tmp_path)
    Runner(plan("closed_book", device="cuda"), tmp_path, look_only=True)
    assert loading == ["cuda", "cpu"]


@pytest.mark.parametrize("architecture", ["mamba2", "qwen3_next"])
def test_a_base_of_any_kind_answers_and_learns(keepers: Path, tmp_path: Path, architecture: str) -> None:
    base = save_tiny(architecture, tmp_path / architecture)
    methods = ["full_context", {"name": "uniform", "config": {"learning_rate": 1e-3}, "space": {}}]
    streams = {"split": "test", "documents": 3, "count": 1}
    result = Runner(make_experiment(keepers, base, methods, streams=streams), tmp_path / "runs").run(Inline())
    assert result.failures == ()
    reads, learns = (cell.id for cell in result.cells)
    assert all(read_answers(tmp_path / "runs", cell) for cell in (reads, learns))
    costs = read_run(tmp_path / "runs" / learns).costs
    assert costs is not None and costs.state_bytes > 0
    before, after = (read_documents(tmp_path / "runs", cell) for cell in (reads, learns))
    assert before[0].nll == after[0].nll and before[1].nll != after[1].nll


@pytest.mark.parametrize(
    ("text", "share"), [("灯塔。" * 30, "66 %"), ("Маяк открыт. " * 4, "44 %"), ("éàü", "")], ids=["zh", "ru", "few"]
)
def test_texts_of_unknown_characters_are_refused_or_remarked_on(
    llama: Path, tmp_path: Path, text: str, share: str
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder, base = make_dataset(tmp_path / "keepers"), shutil.copytree(llama, tmp_path / "base")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["text"] = f"{number} {text}" if share else f"{row['text']}{text}"
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ascii_only = Tokenizer(models.BPE({chr(i): i for i in range(1, 127)}, []))
    ascii_only.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=ascii_only, eos_token="~").save_pretrained(base)
    experiment = make_experiment(folder, base, ["closed_book"])
    if share:
        with pytest.raises(BenchError, match=rf"base does not know {share} of the characters of the test split"):
            Runner(experiment, tmp_path / "runs")
    else:
        assert any("does not know" in remark for remark in Runner(experiment, tmp_path / "runs").remarks)


def test_the_question_that_does_not_fit_is_the_only_one_without_an_answer(llama: Path, tmp_path: Path) -> None:
    experiment = make_experiment(
        Path("squad"),
        llama,
        ["closed_book", "full_context"],
        data_files={"test": [str(ROOT / "tests/cases/data/long_question.json")]},
        streams={"split": "test", "documents": 8, "count": 1},
        tuning=None,
        anchor={"questions": 0, "documents": 0},
    )
    result = Runner(experiment, tmp_path).run(Inline())
    assert result.failures == ()
    for cell in result.cells:
        events = read_answers(tmp_path, cell.id)
        assert [len(event.question_id) for event in events if event.unanswered is not None] == [2]
        assert [event.nll is None for event in events] == [event.unanswered is not None for event in events]
        summary = read_run(tmp_path / cell.id).summary
        assert summary is not None and (summary.unanswered, summary.questions) == (1, 8)
