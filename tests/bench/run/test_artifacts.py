"""Trained weights: found by what they were made from, refused when that has changed, made by one command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.data.prompt_format import PromptFormat
from bench.errors import BenchError, RunError
from bench.lm import pretrained
from bench.records.store import PARTIAL, read_run
from bench.run import artifacts, claims
from bench.run import train as training
from bench.run.experiment import Experiment, load
from bench.run.overrides import Overrides
from bench.run.ray_cluster import renamed
from bench.run.runner import Runner
from bench.run.workers import Plan, Workers
from tests.conftest import make_checkpoint
from tests.world import Inline, make_dataset, make_experiment

PLUGIN = '''
import torch
from torch import nn

from bench import Document, Method, MethodConfig
from bench.contract.meta_training import MetaTrained, TrainingConfig


class Shifts(MetaTrained):
    """Adds a learned scalar to every weight of the output layer."""

    name = "shifts"
    paper = "none"

    class Config(MethodConfig):
        training: TrainingConfig = TrainingConfig(steps=2, episodes_per_step=2, validate_every=1, learning_rate=0.25)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.shift = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.shift.weight)
        self.shift.weight.data += self.seed % 3
        self.begun = False

    @property
    def learner(self):
        return self.shift

    def observe(self, document: Document) -> None:
        with torch.no_grad():
            self.lm.model.lm_head.weight.add_(self.shift.weight[0, 0])

    def notes(self):
        return {"shift": self.shift.weight.item(), "begun": self.begun}

    def begin_training(self):
        self.begun = True

    def outer_step(self, episodes, others):
        loss = self.shift.weight.square().sum()
        loss.backward()
        return {"loss": loss.item()}

    def validate(self, episodes):
        return {"loss": self.shift.weight.abs().item()}
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "shifts.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture
def plan(keepers: Path, llama: Path) -> Callable[..., Experiment]:
    return lambda config=None, model=llama, **plan: make_experiment(
        keepers, model, [{"name": "shifts", "config": config or {}, **plan}]
    )


def train(experiment: Experiment, folder: Path, plugin: str, seed: int = 0) -> Path:
    trained = training.train("shifts", experiment, seed, folder / "artifacts", folder / "train", [plugin])
    assert trained is not None
    return trained


def test_a_run_without_trained_weights_names_the_command_that_makes_them_and_then_uses_them(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    with pytest.raises(BenchError, match=r"no trained weights.*python run_bench.py train shifts"):
        Runner(plan(), tmp_path, [plugin])
    folder = train(plan(), tmp_path, plugin)
    assert {path.name for path in folder.iterdir()} == {
        "weights.safetensors",
        "artifact.json",
        "curve.csv",
        "README.md",
    }
    result = Runner(plan(), tmp_path, [plugin]).run(Inline())
    shifts = [read_run(tmp_path / cell.id).notes["shift"] for cell in result.cells]
    assert shifts == pytest.approx([0.5, 0.5], rel=0.01), "two steps of Adam, stored in bfloat16"
    assert {cell.spec.train_hash for cell in result.cells} == {artifacts.weights_hash(folder)}
    costs = [read_run(tmp_path / cell.id).costs for cell in result.cells]
    assert all(cost is not None and cost.training == artifacts.cost(folder) for cost in costs), "it is paid for"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("loss = self.shift", "self.lm.model.lm_head.weight.data.add_(1)\n        loss = self.shift"),
            "changed the base",
        ),
        (('{"loss": self.shift.weight.abs().item()}', '{"loss": float("nan")}'), "began with a validation loss of nan"),
    ],
)
def test_a_training_that_changed_the_base_or_cannot_be_validated_leaves_nothing(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str, change: tuple[str, str], message: str
) -> None:
    Path(plugin).write_text(PLUGIN.replace(*change))
    with pytest.raises(RunError, match=f"The training of shifts {message}"):
        train(plan(), tmp_path, plugin)
    assert not list(tmp_path.glob("artifacts/shifts-*")) and not list(tmp_path.glob("train/shifts-*"))


def test_another_prompt_format_needs_other_weights_and_an_impossible_one_is_refused_first(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    folder = train(plan(), tmp_path, plugin)
    assert "prompt" not in artifacts.read_key(folder).settings, "the plain format does not count in the key"
    asked = plan()
    asked.prompt = PromptFormat(question="Q: {question} A:")
    with pytest.raises(BenchError, match=r"no trained weights.*\(the nearest differs in prompt\)"):
        Runner(asked, tmp_path, [plugin])
    other = train(asked, tmp_path, plugin)
    assert artifacts.read_key(other).settings["prompt"] == {"question": "Q: {question} A:"}
    assert Runner(asked, tmp_path, [plugin]).planner.cells(asked.methods[0], {})
    asked.prompt = PromptFormat(begin="<|nowhere|>")
    with pytest.raises(BenchError, match=r"^prompt\.begin: the base's tokenizer has no token '<\|nowhere\|>'\."):
        Runner(asked, tmp_path, [plugin])
    with pytest.raises(BenchError, match=r"^prompt\.begin: "):
        train(asked, tmp_path, plugin)


def test_weights_of_the_experiments_dtype_come_before_those_of_float32(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    keys, rounded = [], plan()
    rounded.dtype = "bfloat16"
    for trained in (plan(), rounded):
        folder = train(trained, tmp_path, plugin)
        (folder / artifacts.WEIGHTS).write_bytes(trained.dtype.encode())  # so that their hashes differ
        cells = Runner(rounded, tmp_path, [plugin]).planner.cells(rounded.methods[0], {})
        assert {cell.spec.train_hash for cell in cells} == {artifacts.weights_hash(folder)}
        keys.append(artifacts.read_key(folder))
    assert "dtype" not in keys[0].settings and keys[1].settings["dtype"] == "bfloat16"
    assert keys[0].differences(keys[1]) == ["dtype"] and keys[1].in_float32 == keys[0]


def test_without_training_steps_the_learner_runs_as_a_training_would_start(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    result = Runner(plan({"training": {"steps": 0}}), tmp_path, [plugin]).run(Inline())
    assert [read_run(tmp_path / cell.id).notes for cell in result.cells] == [{"shift": 1.0, "begun": True}] * 2
    assert {cell.spec.train_hash for cell in result.cells} == {""}


def test_other_settings_and_another_base_need_other_weights(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    train(plan(), tmp_path, plugin)
    with pytest.raises(BenchError, match=r"differs in training\.learning_rate\)"):
        Runner(plan({"training": {"learning_rate": 0.1}}), tmp_path, [plugin])
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    with pytest.raises(BenchError, match=r"differs in base model\)"):
        Runner(plan(model=other), tmp_path, [plugin])


def test_weights_trained_with_one_base_can_be_used_on_another(
    plan: Callable[..., Experiment], llama: Path, tmp_path: Path, plugin: str
) -> None:
    folder = train(plan(), tmp_path, plugin)
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    config = {"training": {"base": str(llama)}}
    result = Runner(plan(config, other), tmp_path, [plugin]).run(Inline())
    assert {cell.spec.train_hash for cell in result.cells} == {artifacts.weights_hash(folder)}


def test_weights_trained_on_one_data_set_can_be_used_on_another(
    plan: Callable[..., Experiment], keepers: Path, llama: Path, tmp_path: Path, plugin: str
) -> None:
    folder = train(plan(), tmp_path, plugin)
    other = tmp_path / "millers"
    other.mkdir()
    for path in keepers.iterdir():
        (other / path.name).write_text(path.read_text().replace("keeper", "miller"))
    experiment = make_experiment(other, llama, [{"name": "shifts", "config": {"training": {"dataset": str(keepers)}}}])
    result = Runner(experiment, tmp_path, [plugin]).run(Inline())
    assert {cell.spec.train_hash for cell in result.cells} == {artifacts.weights_hash(folder)}
    own = make_experiment(other, llama, [{"name": "shifts"}])
    with pytest.raises(BenchError, match=r"differs in train split, validation split\)"):
        Runner(own, tmp_path, [plugin])
    assert train(own, tmp_path, plugin) != folder == train(experiment, tmp_path, plugin)


def test_changed_code_makes_an_artifact_stale_but_changed_comments_do_not(
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


def test_damaged_weights_fail_their_cells_and_the_message_has_the_remedy(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    folder = train(plan(), tmp_path, plugin)
    weights = folder / artifacts.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:40])
    result = Runner(plan(), tmp_path, [plugin]).run(Inline())
    assert len(result.failures) == 2
    failure = read_run(tmp_path / result.cells[0].id).failure
    assert failure is not None and "train again" in failure.message


def test_training_is_deterministic(plan: Callable[..., Experiment], tmp_path: Path, plugin: str) -> None:
    hashes = {artifacts.weights_hash(train(plan(), tmp_path / part, plugin)) for part in ("one", "two")}
    assert len(hashes) == 1


def test_the_card_has_the_settings_and_the_command(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    options = ["--experiment mine", "--scale tiny"]
    folder = training.train("shifts", plan(), 0, tmp_path / "artifacts", tmp_path / "train", [plugin], options)
    assert folder is not None
    card = (folder / "README.md").read_text()
    assert "| learning_rate | 0.25 |" in card
    assert (
        "`python run_bench.py train shifts --experiment mine --scale tiny --seed 0`, with the settings below," in card
    )
    facts: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    assert facts["training"]["best_step"] == 2
    assert len((folder / "curve.csv").read_text().splitlines()) == 1 + 3


def test_the_key_and_training_read_each_split_once(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str, splits_read: list[str]
) -> None:
    train(plan(), tmp_path, plugin)
    assert sorted(splits_read) == ["train", "validation"]


def test_every_seed_has_weights_of_its_own(plan: Callable[..., Experiment], tmp_path: Path, plugin: str) -> None:
    experiment = plan(seeds=[0, 5])
    first = train(experiment, tmp_path, plugin)
    remedy = (
        r"no trained weights .* and seed 5 \(the nearest differs in seed\)\. Train them: .* train shifts --experiment"
    )
    with pytest.raises(BenchError, match=remedy):
        Runner(experiment, tmp_path, [plugin])
    second = train(experiment, tmp_path, plugin, 5)
    assert first.is_dir() and first != second
    assert "python run_bench.py train shifts --seed 5" in (second / "README.md").read_text()
    result = Runner(experiment, tmp_path, [plugin]).run(Inline())
    shifts = {(c.spec.seed, c.spec.train_hash): read_run(tmp_path / c.id).notes["shift"] for c in result.cells}
    start = 1 + 5 % 3
    assert list(shifts.values()) == pytest.approx([0.5, start - 0.5], rel=0.01), "the learner depends on the seed"
    assert set(shifts) == {(0, artifacts.weights_hash(first)), (5, artifacts.weights_hash(second))}


def test_a_method_that_is_not_meta_trained_cannot_be_trained(plan: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="not meta-trained"):
        training.train("uniform", plan(), 0, tmp_path, tmp_path)


SETTINGS = ("steps=1", "episodes_per_step=2", "validate_every=1")


@pytest.fixture
def experiment_file(plan: Callable[..., Experiment], tmp_path: Path) -> str:
    path = tmp_path / "keepers.yaml"
    path.write_text(json.dumps(plan().model_dump(mode="json")))
    return str(path)


def test_weights_of_other_experiments_than_the_default_go_under_the_records(
    experiment_file: str, tmp_path: Path, plugin: str
) -> None:
    overrides = Overrides(assignments=[f"shifts.training.{setting}" for setting in SETTINGS])
    runs = tmp_path / "runs"
    (folder,) = training.train_target("shifts", experiment_file, overrides, runs, plugins=[plugin])
    assert folder.parent == runs / artifacts.FOLDER
    assert artifacts.read_key(folder).settings["steps"] == 1
    assert list((runs / "train").iterdir()), "checkpoints"


@pytest.mark.parametrize(
    ("experiment", "plan", "seed", "trained"),
    [
        ([4, 5], None, None, [4, 5]),
        ([4, 5], [1, 2, 3], None, [1, 2, 3]),
        ([4, 5], [1, 2, 3], 2, [2]),
        ([4, 5], [1, 2, 3], 9, [9]),
    ],
)
def test_every_planned_seed_is_trained_unless_one_is_named(
    experiment: list[int],
    plan: list[int] | None,
    seed: int | None,
    trained: list[int],
    keepers: Path,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = {"name": "shifts", **({"seeds": plan} if plan else {})}
    planned = make_experiment(keepers, llama, [method], seeds=experiment)
    path = tmp_path / "keepers.yaml"
    path.write_text(planned.model_dump_json(exclude_unset=True))
    plugin = tmp_path / "shifts.py"
    plugin.write_text(PLUGIN)
    monkeypatch.setattr(training, "train", lambda name, experiment, seed, *_, **__: seed)
    overrides = Overrides(seed=seed)
    assert training.train_target("shifts", str(path), overrides, tmp_path, plugins=[str(plugin)]) == trained


def test_a_method_is_trained_on_each_pair_of_data_set_and_base(
    keepers: Path, llama: Path, tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [str(llama), str(tmp_path / "other")]
    planned = make_experiment(keepers, llama, ["shifts"], models=models, seeds=[4, 5])
    path = tmp_path / "keepers.yaml"
    path.write_text(planned.model_dump_json(exclude_unset=True))
    monkeypatch.setattr(training, "train", lambda name, experiment, seed, *_, **__: (experiment.model, seed))
    trained = training.train_target("shifts", str(path), Overrides(), tmp_path, plugins=[plugin])
    assert trained == [(model, seed) for model in models for seed in (4, 5)]
    only = Overrides(model=models[1], seed=4)
    assert training.train_target("shifts", str(path), only, tmp_path, plugins=[plugin]) == [(models[1], 4)]


def test_each_training_that_the_entries_of_a_method_need_is_done_once(
    keepers: Path, llama: Path, tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third entry needs no other weights than the first, and the last is trained on a base of its own."""
    trainings: list[dict[str, Any]] = [{"steps": 1}, {"steps": 2}, {"steps": 1}, {"steps": 0}]
    trainings.append({"steps": 3, "base": str(llama)})
    entries: list[Any] = [{"name": "shifts", "config": {"training": training}} for training in trainings]
    entries[2]["arms"] = ["placebo"]
    entries[1]["seeds"] = [0, 1]
    models = [str(llama), str(tmp_path / "other")]
    path = tmp_path / "keepers.yaml"
    path.write_text(make_experiment(keepers, llama, entries, models=models).model_dump_json(exclude_unset=True))

    def done(name: str, experiment: Experiment, seed: int, *_: Any, **__: Any) -> Any:
        [plan] = experiment.methods
        return plan.config["training"].get("steps"), experiment.model, seed

    monkeypatch.setattr(training, "train", done)
    trained = training.train_target("shifts", str(path), Overrides(), tmp_path, plugins=[plugin])
    of_each = [(steps, model, seed) for model in models for steps, seed in ((1, 0), (2, 0), (2, 1))]
    assert sorted(trained, key=str) == sorted([*of_each, (3, str(llama), 0)], key=str)
    path.write_text(make_experiment(keepers, llama, entries[3:4]).model_dump_json(exclude_unset=True))
    with pytest.raises(BenchError, match=r"shifts is not trained in keepers: set shifts\.training\.steps to 1 or more"):
        training.train_target("shifts", str(path), Overrides(), tmp_path, plugins=[plugin])


def test_several_seeds_are_trained_at_a_time_with_the_same_result(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    path, lines = tmp_path / "keepers.yaml", list[str]()
    path.write_text(json.dumps(plan(seeds=[4, 5]).model_dump(mode="json")))

    def run(runs: Path, workers: Workers | None) -> dict[str, str]:
        folders = training.train_target(
            "shifts", str(path), Overrides(), runs, plugins=[plugin], say=lines.append, workers=workers
        )
        return {folder.name: artifacts.weights_hash(folder) for folder in folders}

    one_by_one = run(tmp_path / "a", None)
    lines.clear()
    assert run(tmp_path / "b", Workers(jobs=2, threads=1)) == one_by_one and len(one_by_one) == 2
    last = {line.partition(": Validation loss")[0] for line in lines}  # an earlier note may be overtaken by this one
    assert last >= {"shifts, seed 4", "shifts, seed 5"}
    undone = next(iter(one_by_one))
    shutil.rmtree(tmp_path / "b" / artifacts.FOLDER / undone)
    damaged = tmp_path / "b" / "train" / undone / "checkpoint.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(b"damaged")
    with pytest.raises(
        RunError, match=r"1 of 2 trainings failed\. The same command resumes\.\n  shifts, seed \d: .*damaged"
    ):
        run(tmp_path / "b", Workers(jobs=2, threads=1))


def test_what_another_process_trains_is_left_to_it(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    folder = train(plan(), tmp_path, plugin)
    lines: list[str] = []
    with claims.Folder(tmp_path / "train").claimed(folder.name):
        nothing = training.train(
            "shifts", plan(), 0, tmp_path / "other", tmp_path / "train", [plugin], say=lines.append
        )
    assert nothing is None and f"trains {folder.name}" in lines[0]
    assert not list((tmp_path / "other").iterdir())


def test_a_training_that_was_taken_over_leaves_the_rest_to_the_other_process(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    lines: list[str] = []
    work = claims.Folder(tmp_path / "train")

    def stand_still(line: str) -> None:
        lines.append(line)
        [name] = work.names()
        other = claims.own_claim(name)._replace(process="0badcafe-1")
        work.replace(name, json.dumps(other._asdict()).encode())

    out = tmp_path / "out"
    nothing = training.train("shifts", plan(), 0, out, tmp_path / "train", [plugin], say=stand_still)
    assert nothing is None and lines[0].startswith("step 1/") and "Another process" in lines[1]
    [checkpoint] = (tmp_path / "train").rglob("checkpoint.safetensors")
    assert checkpoint.is_file() and not list(out.iterdir())
    (name,) = work.names()
    work.remove(name)
    with pytest.raises(RunError, match=r"The claim to shifts-\w+ was lost\. The same command resumes\."):
        training.train("shifts", plan(), 0, out, tmp_path / "train", [plugin], say=lambda _: work.remove(name))


def test_an_artifact_that_is_there_stays_since_a_cell_may_be_reading_it(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str
) -> None:
    folder, lines = train(plan(), tmp_path, plugin), list[str]()
    files = {path: path.stat().st_ino for path in folder.iterdir()}
    again = training.train("shifts", plan(), 0, tmp_path / "artifacts", tmp_path / "other", [plugin], say=lines.append)
    assert again == folder and lines == [f"{folder} is there already. Delete it to train it again."]
    made_elsewhere: Any = SimpleNamespace(
        best={}, step=1, best_step=1, seconds=1.0, flops=1.0, train=[], validation=[], curve=[{"step": 1.0}]
    )
    (folder.parent / f"{PARTIAL}of-a-killed-process").mkdir()
    assert artifacts.write(folder.parent, artifacts.read_key(folder), made_elsewhere, "card") == folder
    assert {path: path.stat().st_ino for path in folder.iterdir()} == files
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("is_committed", [True, False])
def test_new_weights_replace_older_ones_of_the_same_training_in_the_committed_store_alone(
    plan: Callable[..., Experiment], tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    first = train(plan(), tmp_path, plugin)
    if is_committed:
        monkeypatch.setattr(artifacts, "COMMITTED", first.parent)
    key = artifacts.read_key(first)
    made: Any = SimpleNamespace(
        best={}, step=1, best_step=1, seconds=1.0, flops=1.0, train=[], validation=[], curve=[{"step": 1.0}]
    )
    settings, seed, older = ({"settings": {"steps": 9}}, {"seed": 9}, {"train_hash": "older data"})
    folders = [
        artifacts.write(first.parent, key.model_copy(update=change), made, "") for change in (settings, seed, older)
    ]
    assert {*first.parent.iterdir()} == {*folders, *([] if is_committed else [first])}


@pytest.mark.parametrize("part", ["folders", "files", "a fetched base", "a base and data of its own"])
def test_a_training_finds_its_base_and_data_on_a_machine_that_has_them_elsewhere(
    part: str,
    plan: Callable[..., Experiment],
    llama: Path,
    tmp_path: Path,
    plugin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a node of a cluster, with what an executor ships."""
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "cache"))
    base, data = tmp_path / "base", make_dataset(tmp_path / "millers")
    shutil.copytree(llama, base)
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "validation")}
    read, experiment = {base, data, Path(plugin)}, plan(model=base)
    experiment = experiment.model_copy(update={"name": "keepers-base-1.7B", "dataset": str(data)})  # as of a pair
    if part == "files":
        for split, [file] in files.items():
            Path(file).write_bytes((data / f"{split}.jsonl").read_bytes())
        experiment.data_files = files
        read |= {Path(file) for [file] in files.values()}
    elif part == "a fetched base":
        fetched = pretrained.folder("smollm2")
        shutil.move(base, fetched)
        experiment.model, read = "smollm2", {fetched, data, Path(plugin)}
    elif part == "a base and data of its own":
        experiment.methods[0].config = {"training": {"base": str(base), "dataset": str(data)}}
        experiment.model, experiment.dataset, experiment.data_files = "nano", "newsworld", files
    expected = train(experiment, tmp_path, plugin)
    one = training._Training("shifts", experiment, 0, tmp_path / "out", tmp_path / "work", (plugin,), ())
    task = training._task("key", one)
    assert {*task.files} == {*map(str, read)}
    (tmp_path / "there").mkdir()
    there = {str(path): str(path.rename(tmp_path / "there" / path.name)) for path in read}
    folder = training.train_task(**renamed(task.payload, there))
    assert folder is not None and artifacts.read_key(folder) == artifacts.read_key(expected)
    assert artifacts.weights_hash(folder) == artifacts.weights_hash(expected)


def test_workers_are_planned_for_the_base_of_the_training_and_weights_that_nobody_sees_are_not_written(
    plan: Callable[..., Experiment], llama: Path, tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = make_checkpoint(tmp_path / "larger", "llama", seed=1)
    monkeypatch.setattr(training.checkpoint, "weight_count", lambda folder: len(Path(folder).name))
    monkeypatch.setattr(Workers, "plan", lambda _, experiment, weights: Plan(1, f"a base of {weights}"))
    monkeypatch.setattr(Workers, "open", lambda *_: nullcontext(Inline()))
    monkeypatch.setattr(training, "train", lambda *_, seed, out, **__: out / str(seed))
    (tmp_path / "artifacts" / "0").mkdir(parents=True)
    (tmp_path / "artifacts" / "0" / artifacts.MANIFEST).touch()
    path, lines = tmp_path / "keepers.yaml", list[str]()
    path.write_text(json.dumps(plan({"training": {"base": str(larger)}}, seeds=[0, 1]).model_dump(mode="json")))
    with pytest.raises(RunError, match=r"1 of 2 .*\n  shifts, seed 1: its weights are in .*artifacts/1 on another"):
        training.train_target(
            "shifts", str(path), Overrides(), tmp_path, plugins=[plugin], say=lines.append, workers=Workers("ray")
        )
    assert lines[0] == f"a base of {len('larger')}"


def test_an_optional_method_without_weights_is_left_out_with_a_remark(
    keepers: Path, llama: Path, tmp_path: Path, plugin: str
) -> None:
    optional = {"name": "shifts", "optional": True}
    runner = Runner(make_experiment(keepers, llama, ["closed_book", optional]), tmp_path, [plugin])
    assert [entry.name for entry in runner.experiment.methods] == ["closed_book"]
    assert any(remark.startswith("Left out: shifts has no trained weights") for remark in runner.remarks)
    with pytest.raises(BenchError, match="shifts has no trained weights"):
        Runner(make_experiment(keepers, llama, [optional]), tmp_path, [plugin])


def test_an_optional_method_is_left_out_on_a_base_with_other_tokens_than_its_own(
    plan: Callable[..., Experiment], keepers: Path, llama: Path, tmp_path: Path, plugin: str
) -> None:
    train(plan(), tmp_path, plugin)
    shutil.copytree(llama, tmp_path / "other")
    path = tmp_path / "other/tokenizer.json"
    path.write_text(path.read_text().replace('"!": 1,', '"!": 2,').replace('"\\"": 2,', '"\\"": 1,'))
    method = {"name": "shifts", "config": {"training": {"base": str(llama)}}, "optional": True}
    runner = Runner(make_experiment(keepers, tmp_path / "other", ["closed_book", method]), tmp_path, [plugin])
    assert [entry.name for entry in runner.experiment.methods] == ["closed_book"] and not runner.untrained
    expected = f"Left out: shifts is trained with {llama}, whose tokens are not those of other."
    assert expected in runner.remarks


@pytest.mark.parametrize(
    ("changes", "with_plugin", "committed"),
    [
        ({}, False, True),
        ({"device": "cuda"}, False, True),
        ({"model": "elsewhere"}, False, False),
        ({"assignments": ["cmt.k=4"]}, False, False),
        ({"seed": 2}, False, True),
        ({"seed": 7}, False, False),  # the default experiment does not plan it
        ({}, True, False),
    ],
)
def test_only_the_unchanged_default_experiment_replaces_the_committed_weights(
    changes: dict[str, Any],
    with_plugin: bool,
    committed: bool,
    tmp_path: Path,
    plugin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugins = [plugin] if with_plugin else []
    monkeypatch.setattr(training, "train", lambda name, experiment, seed, out, *_, **__: out)
    outs = training.train_target("cmt", "default", Overrides(**changes), tmp_path, plugins=plugins)
    assert set(outs) == {artifacts.COMMITTED if committed else tmp_path / artifacts.FOLDER}


def test_a_method_that_is_not_on_the_default_board_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = load("default")
    default.methods = [plan for plan in default.methods if plan.name != "cmt"]
    monkeypatch.setattr(training, "load", lambda *_: default.model_copy(deep=True))
    monkeypatch.setattr(training, "train", lambda name, experiment, seed, out, *_, **__: out)
    assert training.train_target("cmt", "default", Overrides(), tmp_path) == [tmp_path / artifacts.FOLDER]


def test_committed_weights_have_valid_keys() -> None:
    folders = [path for path in artifacts.COMMITTED.iterdir() if path.is_dir()]
    assert len(folders) >= 3
    for folder in folders:
        assert folder.name == artifacts.read_key(folder).folder_name
