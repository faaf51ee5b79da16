"""Trained things: found by what they were made from, refused when that has changed, made by one command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.records.store import read_run
from bench.run import artifacts
from bench.run import train as training
from bench.run.experiment import Experiment
from bench.run.runner import Runner
from tests.conftest import make_checkpoint
from tests.world import Inline, make_dataset, make_experiment

PLUGIN = '''
import torch
from torch import nn

from bench import Document, Method, MethodConfig
from bench.contract.meta_training import MetaTrained, Training


class Shifts(MetaTrained):
    """Adds a learned number to every weight of the output layer."""

    name = "shifts"
    paper = "none"

    class Config(MethodConfig):
        training: Training = Training(steps=2, episodes_per_step=2, validate_every=1, learning_rate=0.25)

    def __init__(self, *given):
        super().__init__(*given)
        self.shift = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.shift.weight)

    @property
    def learner(self):
        return self.shift

    def observe(self, document: Document) -> None:
        with torch.no_grad():
            self.lm.model.lm_head.weight.add_(self.shift.weight[0, 0])

    def notes(self):
        return {"shift": self.shift.weight.item()}

    def outer_step(self, episodes, others):
        loss = self.shift.weight.square().sum()
        loss.backward()
        return {"loss": loss.item()}

    def validate(self, episodes):
        return {"loss": self.shift.weight.abs().item()}
'''


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "keepers")


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "shifts.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture
def plan(keepers: Path, llama: Path) -> Callable[..., Experiment]:
    return lambda config=None, model=llama: make_experiment(
        keepers, model, [{"name": "shifts", "config": config or {}}]
    )


def train(experiment: Experiment, folder: Path, plugin: str) -> Path:
    return training.train("shifts", experiment, folder / "artifacts", folder / "train", [plugin])


def test_a_run_asks_for_training_and_then_uses_it(plan: Callable[..., Experiment], tmp_path: Path, plugin: str) -> None:
    with pytest.raises(BenchError, match=r"no trained weights.*python run_bench.py train shifts"):
        Runner(plan(), tmp_path, [plugin])
    made = train(plan(), tmp_path, plugin)
    assert {path.name for path in made.iterdir()} == {"weights.safetensors", "artifact.json", "curve.csv", "README.md"}
    done = Runner(plan(), tmp_path, [plugin]).run(Inline())
    shifts = [read_run(tmp_path / cell.id).notes["shift"] for cell in done.cells]
    assert shifts == pytest.approx([0.5, 0.5], rel=0.01), "two steps of Adam, stored in bfloat16"
    assert {cell.spec.train_hash for cell in done.cells} == {artifacts.weights_hash(made)}


def test_without_training_steps_the_learner_runs_as_it_is_constructed(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    done = Runner(plan({"training": {"steps": 0}}), tmp_path, [plugin]).run(Inline())
    assert [read_run(tmp_path / cell.id).notes["shift"] for cell in done.cells] == [1.0, 1.0]
    assert {cell.spec.train_hash for cell in done.cells} == {""}


def test_other_settings_and_another_base_need_training_of_their_own(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    train(plan(), tmp_path, plugin)
    with pytest.raises(BenchError, match=r"differs in training\.learning_rate\)"):
        Runner(plan({"training": {"learning_rate": 0.1}}), tmp_path, [plugin])
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    with pytest.raises(BenchError, match=r"differs in base model\)"):
        Runner(plan(model=other), tmp_path, [plugin])


def test_weights_of_one_base_serve_another_that_names_it(
    plan: Callable[..., Experiment], llama: Path, tmp_path: Path, plugin: str
) -> None:
    made = train(plan(), tmp_path, plugin)
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    config = {"training": {"base": str(llama)}}
    done = Runner(plan(config, other), tmp_path, [plugin]).run(Inline())
    assert {cell.spec.train_hash for cell in done.cells} == {artifacts.weights_hash(made)}


def test_changed_code_makes_an_artifact_stale_and_changed_comments_do_not(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(plan(), tmp_path, plugin)
    source = Path(plugin)
    for text, message in (("# a comment\n" + PLUGIN, None), (PLUGIN.replace("ones_", "zeros_"), "differs in code")):
        changed = tmp_path / str(len(text)) / "shifts.py"
        changed.parent.mkdir()
        changed.write_text(text)
        if message is None:
            Runner(plan(), tmp_path, [str(changed)])
        else:
            with pytest.raises(BenchError, match=message):
                Runner(plan(), tmp_path, [str(changed)])
    assert source.exists()


def test_damaged_weights_fail_their_cells_with_the_remedy(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    made = train(plan(), tmp_path, plugin)
    weights = made / artifacts.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:40])
    done = Runner(plan(), tmp_path, [plugin]).run(Inline())
    assert done.failed == 2
    failure = read_run(tmp_path / done.cells[0].id).failure
    assert failure is not None and "train again" in failure.message


def test_training_twice_gives_the_same_weights(plan: Callable[..., Experiment], tmp_path: Path, plugin: str) -> None:
    hashes = {artifacts.weights_hash(train(plan(), tmp_path / part, plugin)) for part in ("one", "two")}
    assert len(hashes) == 1


def test_the_card_tells_the_settings_and_the_curve(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    made = train(plan(), tmp_path, plugin)
    card = (made / "README.md").read_text()
    assert "| learning_rate | 0.25 |" in card and "python run_bench.py train shifts" in card
    facts: dict[str, Any] = json.loads((made / "artifact.json").read_text())
    assert facts["training"]["best_step"] == 2
    assert len((made / "curve.csv").read_text().splitlines()) == 1 + 3


def test_identity_and_training_read_each_split_once(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str, splits_read: list[str]
) -> None:
    artifacts._split_hash.cache_clear()
    train(plan(), tmp_path, plugin)
    assert sorted(splits_read) == ["train", "validation"]


def test_what_is_not_meta_trained_cannot_be_trained(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nothing to train"):
        training.train("uniform", plan(), tmp_path, tmp_path)
