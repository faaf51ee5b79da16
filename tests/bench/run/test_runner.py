"""Experiments: tuning, keys of cells, what is run again and what is not, and records of failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.records.store import read_answers, read_board, read_documents, read_run, read_tuning
from bench.run.executor import LocalPool, Outcome, Task, TaskError
from bench.run.experiment import Experiment
from bench.run.runner import Runner
from tests.world import PLUGIN, Inline, make_dataset, make_experiment

UNIFORM = {"name": "uniform", "grid": {"learning_rate": [0.0, 1e-2, 1e-3]}}


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "keepers")


@pytest.fixture
def plan(keepers: Path, llama: Path) -> Callable[..., Experiment]:
    return lambda *methods, **changes: make_experiment(keepers, llama, methods, **changes)


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
    assert len(first.keys) == 2 + 3 + 2, "closed book on two streams, three trials on one, and the tuned method on two"
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


def test_the_best_trial_on_validation_is_chosen_and_every_trial_is_kept(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    result = Runner(plan(UNIFORM), tmp_path).run(Inline())
    (tuning,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    assert [trial["config"]["learning_rate"] for trial in tuning.trials] == [0.0, 1e-2, 1e-3]
    scores = [read_run(tmp_path / trial["runs"][0]).summary.token_nll for trial in tuning.trials]  # type: ignore[union-attr]
    assert [trial["score"] for trial in tuning.trials] == scores
    best = tuning.trials[scores.index(min(scores))]["config"]["learning_rate"]  # type: ignore[type-var]
    assert best != 0.0, "learning the text must help to predict it"
    assert tuning.chosen["learning_rate"] == best
    assert {cell.spec.config["learning_rate"] for cell in result.cells} == {best}
    assert all(cell.spec.stream.startswith("test-5-") for cell in result.cells)


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
    assert result.failed == 2
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


def test_answers_without_a_finite_likelihood_count_as_diverged(
    plan: Callable[..., Experiment], plugin: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    result = Runner(plan("enormous", scoring=False), runs, [plugin]).run(Inline())
    assert {read_run(runs / cell.id).status for cell in result.cells} == {"diverged"}


def test_two_configs_of_one_method_are_two_rows(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    rates = (1e-3, 1e-2)
    experiment = plan(*({"name": "uniform", "config": {"learning_rate": rate}} for rate in rates))
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
            yield Outcome(tasks[0].key, error=TaskError("worker_died", "ended by SIGKILL"))
            yield from super().run(tasks[1:])

    experiment = plan({"name": "uniform", "grid": {"learning_rate": [1e-2, 0.0]}})
    Runner(experiment, tmp_path).run(FirstDies())
    (before,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    assert before.chosen["learning_rate"] == 0.0
    assert "1 of 2 tuning trials" in read_board(tmp_path).remarks[0]
    Runner(experiment, tmp_path).run(Inline())
    (after,) = read_tuning(tmp_path, read_board(tmp_path).tuning)
    assert after.chosen["learning_rate"] == 1e-2
    assert read_board(tmp_path).remarks == []


def test_data_that_change_after_planning_are_an_error(keepers: Path, llama: Path, tmp_path: Path) -> None:
    from bench.data import reader
    from bench.run import cell, inputs

    folder = shutil.copytree(keepers, tmp_path / "keepers")
    runner = Runner(make_experiment(folder, llama, ["closed_book"]), tmp_path / "runs")
    (first, _) = runner.cells(runner.experiment.methods[0], {})
    (folder / "test.jsonl").write_text((folder / "test.jsonl").read_text().replace("lighthouse", "windmill"))
    inputs.inputs_of.cache_clear()
    reader.split_entries.cache_clear()
    with pytest.raises(BenchError, match="stream has changed since the run was planned"):
        cell.run(first.model_dump(mode="json"), str(tmp_path / "runs"))


def test_a_best_value_at_the_edge_of_its_grid_gets_a_remark(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    Runner(plan({"name": "uniform", "grid": {"learning_rate": [0.0, 1e-5, 1e-2]}}), tmp_path).run(Inline())
    assert read_board(tmp_path).remarks == [
        "The best learning_rate of uniform, 0.01, is at the edge of its grid: a wider grid may do better."
    ]


@pytest.mark.parametrize(
    ("name", "key", "values", "remarks"),
    [
        ("uniform", "steps_per_document", [1, 2, 3], 0),  # 1 is the lower bound
        ("bm25", "b", [1.0, 0.5, 0.75], 0),  # 1 is the upper bound
        ("bm25", "k1", [1, 2, 3], 1),
    ],
)
def test_a_best_value_at_its_own_bound_gets_no_remark(
    plan: Callable[..., Experiment], tmp_path: Path, name: str, key: str, values: list[float], remarks: int
) -> None:
    config = {"learning_rate": 0.0} if name == "uniform" else {}
    result = Runner(plan({"name": name, "config": config, "grid": {key: values}}), tmp_path).run(Inline())
    assert result.cells[0].spec.config[key] == values[0], "of equal scores, the earlier trial is chosen"
    assert len(read_board(tmp_path).remarks) == remarks


def test_a_remark_on_one_of_several_variants_names_its_settings(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    grid = {"learning_rate": [0.0, 1e-5, 1e-2]}
    variants = [{"name": "uniform", "config": {"steps_per_document": n}, "grid": grid} for n in (1, 2)]
    Runner(plan(*variants), tmp_path).run(Inline())
    assert "uniform (steps_per_document=2)" in read_board(tmp_path).remarks[-1]


def test_a_worker_that_dies_leaves_a_failed_record(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    class Deadly(Inline):
        def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
            yield Outcome(tasks[0].key, error=TaskError("worker_died", "ended by SIGKILL"))
            yield from super().run(tasks[1:])

    result = Runner(plan("closed_book"), tmp_path).run(Deadly())
    assert result.failed == 1
    failure = read_run(tmp_path / result.cells[0].id).failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("worker_died", "ended by SIGKILL")


def test_worker_processes_give_the_same_numbers_as_this_process(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    import torch

    experiment = plan("closed_book", {"name": "uniform", "grid": {}})
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
    result = Runner(plan({"name": "uniform", "grid": {}, "arms": ["stream", "placebo"]}), tmp_path).run(Inline())
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
    result = Runner(plan({"name": "uniform", "grid": {}, "arms": arms}), tmp_path).run(Inline())
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


def test_an_unknown_arm_is_refused(plan: Callable[..., Experiment]) -> None:
    with pytest.raises(Exception, match="arms"):
        plan({"name": "uniform", "arms": ["every_0"]})


def test_the_keys_of_a_cell_depend_on_everything_that_can_change_its_numbers(
    plan: Callable[..., Experiment], tmp_path: Path
) -> None:
    def first(experiment: Experiment) -> Any:
        return Runner(experiment, tmp_path).cells(experiment.methods[0], experiment.methods[0].config)[0]

    base = first(plan("uniform"))
    assert first(plan("uniform")).key == base.key
    same_board = [
        plan("closed_book"),
        plan({"name": "uniform", "config": {"learning_rate": 0.1}}),
        plan("uniform", seed=1),
    ]
    other_board = [
        plan("uniform", dtype="bfloat16"),
        plan("uniform", probes=(0.5, 1.0)),
        plan("uniform", scoring=False),
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
    with pytest.raises(BenchError, match=r"answers\.jsonl is damaged: it should hold"):
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
    assert record["spec"]["protocol"] == "1.0"
    assert {"commit", "dirty", "packages", "threads", "command"} <= record["provenance"].keys()
    assert record["spec"]["dataset"] == "keepers"
    assert str(tmp_path.parent) not in json.dumps(record), "a record holds no absolute path"
