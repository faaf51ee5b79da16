"""Experiment files: what an entry takes over from another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.run.experiment import known, load

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


def test_an_entry_starts_from_the_first_of_its_name_and_says_what_differs(write: Write, tmp_path: Path) -> None:
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
        ("{name: uniform, like: BASE}", "uniform is to be like that of base, which states no settings of its own"),
        ("{name: lora, like: OURS}", "lora is to be like that of ours"),
        ("{name: lora, like: defalt}", "Did you mean default"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(write: Write, tmp_path: Path, entry: str, message: str) -> None:
    named = entry.replace("BASE", str(tmp_path / "base.yaml")).replace("OURS", str(tmp_path / "ours.yaml"))
    with pytest.raises(BenchError, match=message):
        load(write("ours", f"[{named}]"))


def test_all_experiments_use_the_trained_weights_of_the_default() -> None:
    trained = {plan.name: plan.config["training"] for plan in load("default").methods if "training" in plan.config}
    assert len(trained) >= 3
    others = [plan for name in known() for plan in load(name).methods if plan.name in trained]
    assert len(others) > len(trained)
    untrained = [{**trained[plan.name], "steps": 0} for plan in others]
    assert all(
        plan.config["training"] in (trained[plan.name], bare) for plan, bare in zip(others, untrained, strict=True)
    )
