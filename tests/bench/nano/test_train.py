"""The embedded model: training resumes exactly, the tokenizer is lossless, and the committed weights can read."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.files import write_tensors
from bench.nano import train
from bench.nano.batches import Columns, Writer, build_tokenizer, load_world
from bench.nano.card import card, measurements
from bench.nano.config import NanoConfig, load_config
from bench.paths import MODELS
from bench.settings import recipe_text

FOLDER = train.RECIPE.parent
NAMES = ("nano", "nano-plain")
PLAIN = {
    "nano-48": {"width": 48, "heads": 3, "feed_forward": 112},
    "nano-96": {"width": 96, "heads": 3, "feed_forward": 224},
    "nano-quiet": {"plain_steps": 5500},
}
"""What the other embedded models have in place of the settings of nano-plain."""
TINY = {"steps": 4, "width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "known": 3, "new": 2, "save_every": 2}


@pytest.fixture(scope="module")
def world() -> Any:
    return load_world("newsworld")


@pytest.fixture(scope="module")
def tokenizer(world: Any) -> Any:
    return build_tokenizer(sorted(world.vocabulary()), load_config(train.RECIPE).merges)


def load_embedded(name: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS / name
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def tiny_config(**changes: Any) -> NanoConfig:
    recipe = yaml.safe_load(train.RECIPE.read_text(encoding="utf-8"))
    return NanoConfig.model_validate({**recipe, **TINY, "plain_steps": 1, **changes})


@given(st.text())
def test_the_tokenizer_encodes_any_text_without_loss(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_word_of_the_world_is_one_token_and_none_is_added(world: Any, tokenizer: Any) -> None:
    encoded = tokenizer([f" {word}" for word in sorted(world.vocabulary())]).input_ids
    assert {len(ids) for ids in encoded} == {1}
    assert tokenizer("").input_ids == []
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_an_unknown_key_of_the_recipe_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(train.RECIPE.read_text(encoding="utf-8") + "setps: 3\n", encoding="utf-8")
    with pytest.raises(BenchError, match=r"recipe\.yaml: setps: .* Did you mean steps"):
        load_config(path)
    with pytest.raises(BenchError, match="No recipe at"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("heads=5", "width must be a multiple of twice the heads"),
        ("rehearsal_rate=[0, 0.1]", "greater than 0"),
        ("rehearsal_rate=[0.2, 0.1]", "lower bound first"),
    ],
)
def test_settings_that_cannot_be_are_refused(assignment: str, reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        load_config(train.RECIPE, [assignment])


def test_a_data_set_without_a_generator_is_refused() -> None:
    with pytest.raises(BenchError, match="squad is no dataset with a generator"):
        load_world("squad")


def test_a_recipe_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: [1")
    with pytest.raises(BenchError, match=r"recipe\.yaml is not valid YAML"):
        load_config(path)


def test_the_learning_rate_of_every_step_is_the_formula_also_after_a_resume() -> None:
    config = load_config(train.RECIPE)
    rates = [
        min((step + 1) / config.warmup, (1 + math.cos(math.pi * step / config.steps)) / 2) * config.learning_rate
        for step in range(config.steps)
    ]

    def scheduled(start: int, stop: int) -> list[float]:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]}, {"params": [torch.nn.Parameter(torch.zeros(1))]}]
        optimizer = torch.optim.SGD(groups, lr=config.learning_rate)
        schedule = train.lr_schedule(optimizer, config, start)
        seen = []
        for _ in range(start, stop):
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert first == second
            seen.append(first)
            optimizer.step()
            schedule.step()
        return seen

    assert scheduled(0, config.steps) == rates
    for step in range(config.steps):
        assert scheduled(step, min(step + 2, config.steps)) == rates[step : step + 2]


def test_a_resumed_run_is_at_the_rate_of_its_step(tmp_path: Path) -> None:
    config = tiny_config(warmup=3)
    with train.ThreadPoolExecutor(2) as pool:
        run = train.Run(config, tmp_path)
        for _ in range(2):
            run.advance(pool)
    resumed = train.Run(config, tmp_path)
    assert resumed.step == run.step == 2
    rates = [[group["lr"] for group in each.optimizer.param_groups] for each in (run, resumed)]
    assert rates == [[config.learning_rate * config.rate_factor(2)] * 2] * 2


def test_progress_is_said_and_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    train.train(tiny_config(), tmp_path / "out", tmp_path / "work", lines.append)
    assert [line.partition(",")[0] for line in lines] == ["step 2/4", "step 4/4"]
    assert "step" not in capsys.readouterr().out


def test_a_killed_training_goes_on_as_if_never_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    train.train(config, tmp_path / "whole", tmp_path / "work-whole")

    advance = train.Run.advance

    def killed(run: train.Run, pool: Any) -> None:
        if run.step == 3:  # the last checkpoint is that of step 2
            raise KeyboardInterrupt
        advance(run, pool)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "parts", tmp_path / "work-parts")
    assert not (tmp_path / "parts").exists()
    train.train(config, tmp_path / "parts", tmp_path / "work-parts")
    for name in ("model.safetensors", "curve.csv", "tokenizer.json", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert len((tmp_path / "parts" / "curve.csv").read_text().splitlines()) == 1 + TINY["steps"] // TINY["save_every"]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train.train(tiny_config(steps=1), tmp_path / "out", tmp_path / "work")
    with pytest.raises(BenchError, match="another recipe"):
        train.train(tiny_config(steps=2), tmp_path / "out", tmp_path / "work")


def test_without_rehearsal_the_update_is_not_computed_and_the_other_losses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_differentiable = []
    grad = torch.autograd.grad

    def watched_grad(*args: Any, **options: Any) -> Any:
        is_differentiable.append(options.get("create_graph", False))
        return grad(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched_grad)
    losses = []
    for weight in (3, 0):
        is_differentiable.clear()
        run = train.Run(tiny_config(steps=1, rehearsal=weight), tmp_path / str(weight))
        with train.ThreadPoolExecutor(2) as pool:
            run.advance(pool)
        losses.append(run.curve[0])
        assert any(is_differentiable) == (weight > 0)
    assert losses[0].pop("update") > 0
    assert losses[0] == losses[1]  # both of the untrained model


def test_training_again_keeps_the_measurements_in_the_card(tmp_path: Path) -> None:
    card_file, config = tmp_path / "small" / "README.md", tiny_config(steps=1, rehearsal=0)
    train.train(config, card_file.parent, tmp_path / "work", command="some command")
    first = card_file.read_text(encoding="utf-8")
    assert "# small\n" in first and "`some command` repeats" in first and "`update`" not in first
    measured = first + "\n## Measurements\n\nBy hand.\n"
    card_file.write_text(measured, encoding="utf-8")
    train.train(config, card_file.parent, tmp_path / "work", command="some command")
    assert card_file.read_text(encoding="utf-8") == measured
    assert load_config(card_file.with_name("recipe.yaml")) == config


def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path: Path) -> None:
    config = tiny_config(steps=1)
    train.train(config, tmp_path / "out", tmp_path / "work")
    checkpoint = tmp_path / "work" / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    for size in (0, 100, len(content) - 1):
        checkpoint.write_bytes(content[:size])
        with pytest.raises(BenchError, match=r"checkpoint\.safetensors is .*damaged.*Delete it to start again"):
            train.train(config, tmp_path / "out", tmp_path / "work")
    write_tensors(checkpoint, {})  # whole, but not by this trainer
    with pytest.raises(BenchError, match="another recipe"):
        train.train(config, tmp_path / "out", tmp_path / "work")


def test_the_softmax_over_all_columns_is_the_models_own(world: Any, tokenizer: Any) -> None:
    config = load_config(train.RECIPE).model_copy(update=TINY)
    writer = Writer(config, world, tokenizer)
    model = train.build_model(config, len(tokenizer), writer.names)
    texts = writer.batch(0, "new").documents
    everything = torch.arange(len(tokenizer))
    losses = train.token_losses(model, texts, Columns(everything, torch.zeros(()), everything), ["document", "answer"])
    log_probs = model(texts.ids).logits[:, :-1].log_softmax(-1)
    nll = -log_probs.gather(-1, texts.ids[:, 1:, None])[..., 0]
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(nll[texts.masks[key][:, 1:]].mean().item(), rel=1e-4)


def test_training_never_writes_about_entities_of_the_other_splits(world: Any, tokenizer: Any) -> None:
    writer = Writer(load_config(train.RECIPE), world, tokenizer)
    names = world.names_by_split()
    allowed = {writer.token(name) for split in ("qa_train", "spare") for name in names[split]}
    used = {int(name) for step in range(20) for kind in ("known", "new") for name in writer.batch(step, kind).names}
    assert used <= allowed


@pytest.mark.parametrize("name", [*NAMES, *PLAIN])
def test_the_committed_model_was_made_by_the_committed_recipe_and_data(name: str, world: Any) -> None:
    """The embeddings of names that training never saw still have their initial values."""
    model, tokenizer = load_embedded(name)
    config = load_config(MODELS / name / "recipe.yaml")
    assert train.data_hash(config.dataset) in (MODELS / name / "README.md").read_text(encoding="utf-8")
    names = world.names_by_split()
    every = torch.tensor([tokenizer(f" {name}").input_ids[0] for split in names.values() for name in split])
    unseen = torch.tensor([tokenizer(f" {name}").input_ids[0] for name in names["test"]])
    start = train.build_model(config, len(tokenizer), every).model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight[unseen], start[unseen].bfloat16().float())
    assert 5e5 <= sum(parameter.numel() for parameter in model.parameters()) <= 5e6
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("name", [*NAMES, *PLAIN])
def test_the_committed_card_is_what_training_writes_plus_measurements(name: str, tmp_path: Path) -> None:
    folder = MODELS / name
    committed = (folder / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"`(?P<command>.*)` repeats.*\n(?P<minutes>\d+) minutes on (?P<machine>.*), seed", committed)
    assert stated is not None
    with (folder / "curve.csv").open(encoding="utf-8") as file:
        curve = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    config = load_config(folder / "recipe.yaml")
    assert recipe_text(config) == (folder / "recipe.yaml").read_text(encoding="utf-8")
    facts = {**train.Run(config, tmp_path).facts(), "name": name, **stated.groupdict()}
    assert committed == card(facts, curve) + measurements(committed)


def test_the_card_of_the_embedded_model_has_its_command_and_measurements() -> None:
    committed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"`{train.COMMAND}` repeats" in committed
    assert "SE over streams" in measurements(committed)


def test_the_models_differ_in_what_is_said_of_them_and_in_nothing_else() -> None:
    nano, plain = (load_config(MODELS / name / "recipe.yaml") for name in NAMES)
    assert nano.model_copy(update={"rehearsal": 0.0}) == plain
    for name, changes in PLAIN.items():
        assert load_config(MODELS / name / "recipe.yaml") == plain.model_copy(update=changes)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_model_reads_and_remembers_but_does_not_know_the_future(name: str) -> None:
    model, tokenizer = load_embedded(name)

    def share_right(split: str, evidence: bool) -> float:
        """The share of right first tokens of answers, over the questions on twenty documents."""
        lines = (FOLDER.parents[2] / "datasets" / "newsworld" / f"{split}.jsonl").read_text(encoding="utf-8")
        right = []
        for row in map(json.loads, lines.splitlines()[-20:]):
            for question in row["questions"]:
                prompt = (row["text"] + "\n" if evidence else "") + question["question"]
                with torch.no_grad():
                    logits = model(torch.tensor([[0, *tokenizer(prompt).input_ids]])).logits[0, -1]
                right.append(tokenizer.decode(int(logits.argmax())) == " " + question["answers"][0])
        return sum(right) / len(right)

    assert share_right("test", evidence=True) > 0.8
    assert share_right("test", evidence=False) < 0.15
    assert share_right("qa_train", evidence=False) > 0.8
