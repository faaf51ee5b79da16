"""Language modelling on text files: how the files become streams, and what stays away from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.run import experiment
from bench.run.experiment import MethodPlan
from bench.run.runner import Runner
from tests.conftest import TEXT
from tests.world import Inline

PLANS = ["closed_book", {"name": "dynamic_evaluation", "grid": {"learning_rate": [0.01, 0.1]}}]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"Nobody_Book{i}_190{i}.txt" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_text(" ".join(TEXT * (2 + i)), encoding="utf-8")
    return [str(path) for path in paths]


def plan(files: dict[str, list[str]], model: Path, **changes: object) -> experiment.Experiment:
    chosen = experiment.load("nano-lm")
    chosen.override({"dataset": "text", "data_files": files, "model": str(model), "segment_tokens": 16, **changes})
    return chosen


def test_few_files_are_one_stream_in_the_order_given(files: list[str], llama: Path, tmp_path: Path) -> None:
    chosen = plan({"test": files[1::-1]}, llama)
    chosen.select(["closed_book", "uniform"])
    runner = Runner(chosen, tmp_path / "runs")
    result = runner.run(Inline())
    assert [cell.spec.stream for cell in result.cells] == ["test-all-0"] * 2
    assert any("The test files (2) are one stream." in remark for remark in result.remarks)
    assert any("untuned" in remark for remark in result.remarks)


def test_as_many_files_as_planned_are_streams_of_their_own(files: list[str], llama: Path, tmp_path: Path) -> None:
    chosen = plan({"test": files[:2], "validation": files[2:]}, llama)
    chosen.streams.override({"documents": 1, "count": 2})
    chosen.methods = [MethodPlan.model_validate(p if isinstance(p, dict) else {"name": p}) for p in PLANS]
    result = Runner(chosen, tmp_path / "runs").run(Inline())
    assert {cell.spec.stream for cell in result.cells} == {"test-1-0", "test-1-1"}
    assert not result.failed
    assert list(result.remarks) == ["The validation files (1) are one stream."]


def test_what_needs_a_train_split_is_left_out_if_optional(files: list[str], llama: Path, tmp_path: Path) -> None:
    chosen = plan({"test": files}, llama)
    planned = len(chosen.methods)
    runner = Runner(chosen, tmp_path / "runs")
    assert len(runner.experiment.methods) == planned - 1
    assert any(
        "Left out (statistics=train" in remark and "--data-files train=FILE" in remark for remark in runner.remarks
    )
    chosen = plan({"test": files, "train": files[:1]}, llama)
    assert len(Runner(chosen, tmp_path / "runs").experiment.methods) == planned
    chosen = plan({"test": files}, llama)
    chosen.methods = [each.model_copy(update={"optional": False}) for each in chosen.methods]
    with pytest.raises(BenchError, match="learns offline from the train split"):
        Runner(chosen, tmp_path / "runs")


def test_selecting_a_method_keeps_all_its_variants(llama: Path) -> None:
    chosen = plan({}, llama)
    variants = [each for each in chosen.methods if each.name == "dynamic_evaluation"]
    chosen.select(["lora", "dynamic_evaluation", "closed_book", "lora"])
    assert [each.name for each in chosen.methods] == ["lora", *["dynamic_evaluation"] * len(variants), "closed_book"]
    assert chosen.methods[1:-1] == variants and len(variants) > 1
