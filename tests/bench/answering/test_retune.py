"""``retune`` of an experiment: for all methods alike, from data that exist and are disjoint from the streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.answering.retune import Retune
from bench.contract.method import validate_config
from bench.contract.registry import load_method
from bench.errors import BenchError
from bench.files import parse_yaml
from bench.paths import EXPERIMENTS, experiments
from bench.records.store import read_answers, read_run
from bench.run.cell import run_cell
from bench.run.experiment import load
from bench.run.runner import Runner
from reports.board import build
from reports.columns import caption, columns
from tests.world import Inline, make_dataset, make_experiment

RETUNE: dict[str, Any] = {"steps": 2, "rate": 1e-2}
SMALL: dict[str, Any] = {"tuning": None, "streams": {"split": "test", "documents": 3, "count": 1}, "anchor": {}}


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "keepers")


def test_every_method_is_retuned_and_the_board_says_so(keepers: Path, llama: Path, tmp_path: Path) -> None:
    methods = [{"name": "closed_book"}, {"name": "gold_in_prompt"}, {"name": "lora", "config": {"optimizer": "sgd"}}]
    nll, captions = {}, {}
    for name, retune in (("plain", None), ("retuned", Retune(**RETUNE))):
        runs = tmp_path / name
        result = Runner(make_experiment(keepers, llama, methods, **SMALL, retune=retune), runs).run(Inline())
        assert not result.failures
        nll[name] = [[event.nll for event in read_answers(runs, cell.id)] for cell in result.cells]
        specs = [read_run(runs / cell.id).spec for cell in result.cells]
        assert {(spec.retune, bool(spec.qa_train_hash)) for spec in specs} == {(retune, retune is not None)}
        board = build(runs)
        captions[name] = caption(board, columns(board))
    assert all(one != other for one, other in zip(nll["plain"], nll["retuned"], strict=True))
    sentence = "every method takes up to 2 steps (Adam, rate 0.01) on questions of qa_train without any document"
    assert {name: sentence in text for name, text in captions.items()} == {"plain": False, "retuned": True}


def test_cells_with_and_without_it_are_not_comparable(keepers: Path, llama: Path, tmp_path: Path) -> None:
    keys = set()
    for retune in (None, RETUNE, {**RETUNE, "steps": 3}, {**RETUNE, "rate": 2e-2}):
        runner = Runner(make_experiment(keepers, llama, ["closed_book"], **SMALL, retune=retune), tmp_path)
        [plan] = runner.experiment.methods
        [cell] = runner.planner.cells(plan, {})
        keys.add((cell.key, cell.comparability_key))
    assert len(keys) == len({key for _, key in keys}) == 4


def test_a_cell_refuses_other_questions_than_it_was_planned_with(keepers: Path, llama: Path, tmp_path: Path) -> None:
    runner = Runner(make_experiment(keepers, llama, ["closed_book"], **SMALL, retune=RETUNE), tmp_path)
    [cell] = runner.planner.cells(runner.experiment.methods[0], {})
    other = cell.model_copy(update={"spec": cell.spec.model_copy(update={"qa_train_hash": "another"})})
    with pytest.raises(BenchError, match="qa_train has changed since the run was planned"):
        run_cell(other, tmp_path)


@pytest.mark.parametrize("rows", [None, 0, 1])
def test_data_without_such_questions_are_refused(keepers: Path, llama: Path, tmp_path: Path, rows: int | None) -> None:
    files = {"test": [str(keepers / "test.jsonl")]}
    if rows is not None:
        lines = ['{"text": "A text.", "questions": []}\n', *(keepers / "qa_train.jsonl").open()]
        (tmp_path / "some.jsonl").write_text("".join(lines[: rows + 1]))
        files["qa_train"] = [str(tmp_path / "some.jsonl")]
    experiment = make_experiment(keepers, llama, ["closed_book"], **SMALL, retune=RETUNE, data_files=files)
    problem = "no split 'qa_train'.*--data-files qa_train=FILE" if rows is None else "two or more questions"
    with pytest.raises(BenchError, match=f"retune learns from .*{problem}.*retune: null"):
        Runner(experiment, tmp_path / "runs")


def test_questions_that_the_anchor_set_holds_out_are_named(keepers: Path, llama: Path, tmp_path: Path) -> None:
    anchor = {"questions": 99, "documents": 99}
    experiment = make_experiment(keepers, llama, ["closed_book"], **{**SMALL, "anchor": anchor}, retune=RETUNE)
    with pytest.raises(BenchError, match=r"has fewer without the \d+ documents of the anchor set: provide more"):
        Runner(experiment, tmp_path / "runs")


def test_a_method_that_retunes_itself_is_refused(keepers: Path, llama: Path, tmp_path: Path) -> None:
    experiment = make_experiment(keepers, llama, ["closed_book", "uniform_qa_retune"], **SMALL, retune=RETUNE)
    with pytest.raises(BenchError, match=r"uniform_qa_retune would be retuned twice .*Name the method without that"):
        Runner(experiment, tmp_path)
    experiment.retune = None
    Runner(experiment, tmp_path)


@pytest.mark.parametrize("name", experiments())
def test_no_experiment_names_it_beside_a_method_that_retunes_itself(name: str) -> None:
    scales = parse_yaml((EXPERIMENTS / f"{name}.yaml").read_text(), name).get("scales", {})
    for experiment in (load(name, scale) for scale in (None, *scales)):
        configs = [validate_config(load_method(plan.name), plan.config) for plan in experiment.methods]
        assert experiment.retune is None or not any(isinstance(value, Retune) for one in configs for _, value in one)


def test_streams_that_share_its_documents_are_refused(keepers: Path, llama: Path, tmp_path: Path) -> None:
    files = {split: [str(keepers / "test.jsonl")] for split in ("test", "qa_train")}
    experiment = make_experiment(keepers, llama, ["closed_book"], **SMALL, retune=RETUNE, data_files=files)
    with pytest.raises(BenchError, match="qa_train, the split on which every method is retuned"):
        Runner(experiment, tmp_path)


@pytest.mark.parametrize(
    ("retune", "problem"),
    [("{steps: 0}", "retune.steps"), ("{rate: 0}", "retune.rate"), ("{step: 3}", "retune.step"), ("20", "retune")],
)
def test_settings_out_of_bounds_are_named(tmp_path: Path, retune: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"dataset: newsworld\nstreams: {{split: test, count: 1}}\nmethods: [closed_book]\nretune: {retune}\n"
    )
    with pytest.raises(BenchError, match=problem):
        load(str(path))
