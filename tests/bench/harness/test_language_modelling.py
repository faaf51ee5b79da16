"""Language modelling on text files: streams of files, and methods that need splits without files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.records.store import read_board, read_documents
from bench.run.experiment import Experiment, MethodPlan, load
from bench.run.runner import Runner
from tests.conftest import TEXT
from tests.world import Inline

PLANS = ["closed_book", {"name": "dynamic_evaluation", "space": {"learning_rate": [0.01, 0.1]}}]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"Nobody_Book{i}_190{i}.txt" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text(" ".join(TEXT * (2 + i)), encoding="utf-8")
    return [str(path) for path in paths]


def load_experiment(files: dict[str, list[str]], model: Path, **changes: object) -> Experiment:
    experiment = load("nano-lm")
    experiment.override({"dataset": "text", "data_files": files, "model": str(model), "segment_tokens": 16, **changes})
    return experiment


def test_few_files_are_one_stream_in_the_order_given(files: list[str], llama: Path, tmp_path: Path) -> None:
    experiment = load_experiment({"test": files[1::-1]}, llama)
    experiment.select(["closed_book", "uniform"])
    runner = Runner(experiment, tmp_path / "runs")
    result = runner.run(Inline())
    assert [cell.spec.stream for cell in result.cells] == ["test-all-0"] * 2
    events = read_documents(tmp_path / "runs", result.cells[0].id)
    assert max(event.tokens for event in events) == 16 and max(event.segment for event in events) > 0
    assert any("The test files (2) are one stream." in remark for remark in runner.remarks)
    assert any("untuned" in remark for remark in runner.remarks)


def test_with_as_many_files_as_planned_each_is_a_stream(files: list[str], llama: Path, tmp_path: Path) -> None:
    experiment = load_experiment({"test": files[:2], "validation": files[2:]}, llama)
    experiment.streams.override({"documents": 1, "count": 2})
    assert experiment.tuning is not None
    experiment.tuning.override({"trials": 1})  # nothing is left to remark on the choice
    experiment.methods = [MethodPlan.model_validate(p if isinstance(p, dict) else {"name": p}) for p in PLANS]
    result = Runner(experiment, tmp_path / "runs").run(Inline())
    assert {cell.spec.stream for cell in result.cells} == {"test-1-0", "test-1-1"}
    assert result.failures == ()
    assert read_board(tmp_path / "runs").remarks == ["The validation files (1) are one stream."]


def test_files_that_are_not_used_are_remarked_on(files: list[str], llama: Path, tmp_path: Path) -> None:
    experiment = load_experiment({"test": files}, llama)
    experiment.select(["closed_book"])
    experiment.streams.override({"documents": 1, "count": 2})
    remarks = Runner(experiment, tmp_path / "runs").remarks
    assert f"2 of the {len(files)} test files are used (--streams, --documents)." in remarks


def test_optional_methods_are_left_out_without_a_train_split(files: list[str], llama: Path, tmp_path: Path) -> None:
    experiment = load_experiment({"test": files}, llama)
    count = len(experiment.methods)
    runner = Runner(experiment, tmp_path / "runs")
    assert len(runner.experiment.methods) == count - 1
    assert any(
        "Left out: dynamic_evaluation (statistics=train" in remark and "--data-files train=FILE" in remark
        for remark in runner.remarks
    )
    experiment = load_experiment({"test": files[1:], "train": files[:1]}, llama)
    assert len(Runner(experiment, tmp_path / "runs").experiment.methods) == count
    experiment = load_experiment({"test": files}, llama)
    experiment.methods = [each.model_copy(update={"optional": False}) for each in experiment.methods]
    with pytest.raises(BenchError, match="learns offline from the train split"):
        Runner(experiment, tmp_path / "runs")


def test_selecting_a_method_keeps_all_its_variants(llama: Path) -> None:
    experiment = load_experiment({}, llama)
    variants = [each for each in experiment.methods if each.name == "dynamic_evaluation"]
    experiment.select(["lora", "dynamic_evaluation", "closed_book", "lora"])
    names = [each.name for each in experiment.methods]
    assert names == ["lora", *["dynamic_evaluation"] * len(variants), "closed_book"]
    assert experiment.methods[1:-1] == variants and len(variants) > 1
