"""Experiment files: entries that are based on another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.paths import experiments
from bench.run.experiment import load

Write = Callable[[str, str], str]

BASE = """
  - closed_book
  - {name: lora, config: {rank: 4, targets: mlp}, grid: {learning_rate: [0.1, 0.2]}, arms: [stream, placebo]}
  - {name: lora, config: {rank: 8}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, methods: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"dataset: newsworld\nstreams: {{split: test, count: 1}}\nmethods: {methods}")
        return str(path)

    write("base", BASE)
    return write


def test_an_entry_is_based_on_the_first_of_its_name_and_states_what_differs(write: Write, tmp_path: Path) -> None:
    entries = f"""
  - {{name: lora, like: {tmp_path}/base.yaml}}
  - {{name: lora, like: {tmp_path}/base.yaml, config: {{rank: 2, alpha: 1}}, grid: {{}}}}
  - {{name: lora, like: {tmp_path}/base.yaml, arms: [empty], optional: true}}
"""
    first, second, third = load(write("ours", entries)).methods
    (_, plain, _) = load(str(tmp_path / "base.yaml")).methods
    assert first.model_dump() == plain.model_dump()
    changed = {"config": {"rank": 2, "targets": "mlp", "alpha": 1}, "grid": {}}
    assert second.model_dump() == {**plain.model_dump(), **changed}
    assert third.model_dump() == {**plain.model_dump(), "arms": ["empty"], "optional": True}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: uniform, like: BASE}", "like: base: base has no entry of uniform that states its settings"),
        ("{name: lora, like: OURS}", "like: ours: ours has no entry of lora that states its settings"),
        ("{name: lora, like: defalt}", "Did you mean default"),
    ],
)
def test_a_missing_base_of_an_entry_is_an_error(write: Write, tmp_path: Path, entry: str, message: str) -> None:
    resolved = entry.replace("BASE", str(tmp_path / "base.yaml")).replace("OURS", str(tmp_path / "ours.yaml"))
    with pytest.raises(BenchError, match=message):
        load(write("ours", f"[{resolved}]"))


def test_all_experiments_use_the_trained_weights_of_the_default() -> None:
    trained = {plan.name: plan.config["training"] for plan in load("default").methods if "training" in plan.config}
    assert len(trained) >= 3
    others = [plan for name in experiments() for plan in load(name).methods if plan.name in trained]
    assert len(others) > len(trained)
    untrained = [{**trained[plan.name], "steps": 0} for plan in others]
    assert all(
        plan.config["training"] in (trained[plan.name], bare) for plan, bare in zip(others, untrained, strict=True)
    )
