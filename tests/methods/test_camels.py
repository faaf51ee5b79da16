"""CaMeLS: weights, controls, and the gradient that meta-training follows."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic
import pytest
import torch

from bench import Document, Episode, Question
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.camels import Camels, CamelsTraining
from methods.parts.parameters import select
from tests.conftest import TEXT, make_checkpoint

EPISODES = [
    Episode(Document(str(i), text), (Question(str(i), f"Who saw {text[:9]}?"),), ((f"an otter {i}",),))
    for i, text in enumerate(TEXT)
] + [
    Episode(Document("3", "A fourth text about the mill."), (Question("3", "When?"),), (("1899", "in the year 1899"),))
]


SHARED = {"weigher_blocks": 1, "weigher_rank": 2, "learn": "top_1"}
"""A weighting model on the base's first block, while the last learns."""


def settings(**changes: object) -> CamelsTraining:
    return CamelsTraining.model_validate(
        {"unroll": 2, "reset_every": 2, "episodes_per_step": 4, "inner_rate": 0.05, "hidden": 8, **changes}
    )


def make(lm: BaseModel, control: str = "none", seed: int = 0, **changes: object) -> Camels:
    method = Camels(lm, Camels.Config(control=control, training=settings(**changes)), seed)
    generator = torch.Generator().manual_seed(3)
    zero = [method.weigher.head[2].weight, *(p for name, p in method.weigher.named_parameters() if ".ups." in name)]
    with torch.no_grad():  # as after some training: the weights differ from token to token
        for parameter in zero:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return method


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@pytest.fixture
def llama_lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def test_untrained_every_token_weighs_the_softplus_of_zero(lm: BaseModel) -> None:
    weights = Camels(lm).token_weights(lm.tokens(EPISODES[0].document))
    torch.testing.assert_close(weights, torch.full_like(weights, 2**0.5).log() / 1.5, rtol=1e-6, atol=0)  # ln 2 / 3


def test_a_weight_sees_its_own_token_and_none_after_it(lm: BaseModel) -> None:
    method, batch = make(lm), lm.tokens(EPISODES[0].document)
    before = method.token_weights(batch)
    batch.token_ids[5] += 1
    after = method.token_weights(batch)
    torch.testing.assert_close(before[:5], after[:5])
    assert before[5] != after[5]


def test_a_long_document_has_a_weight_for_every_token(lm: BaseModel) -> None:
    method, batch = make(lm), lm.tokens(Document("long", TEXT[0] * 9))
    weights = method.token_weights(batch)
    assert len(weights) == len(batch) > lm.window
    with torch.no_grad():
        first = method.weigher(torch.cat([batch.context_ids, batch.token_ids])[1 : lm.window + 1])
    torch.testing.assert_close(weights[: lm.window], first)
    batch.token_ids[-1] += 1
    assert torch.equal(method.token_weights(batch)[:-1], weights[:-1])


def test_shuffled_weights_have_the_same_histogram_in_another_order(llama_lm: BaseModel) -> None:
    batch = llama_lm.tokens(EPISODES[0].document)
    plain = make(llama_lm).token_weights(batch)
    shuffled, again, other = (make(llama_lm, "shuffled", seed).token_weights(batch) for seed in (0, 0, 1))
    assert torch.equal(plain.sort().values, shuffled.sort().values)
    assert not torch.equal(plain, shuffled)
    assert torch.equal(shuffled, again) and not torch.equal(shuffled, other)


def test_mean_and_bimodal_weights_have_one_and_two_levels(llama_lm: BaseModel) -> None:
    batch = llama_lm.tokens(EPISODES[0].document)
    plain = make(llama_lm).token_weights(batch)
    assert set(make(llama_lm, "mean").token_weights(batch).tolist()) == {plain.mean().item()}
    high = plain > plain.mean()
    expected = torch.where(high, plain[high].mean(), 0.0)
    torch.testing.assert_close(make(llama_lm, "bimodal").token_weights(batch), expected)


@pytest.mark.parametrize("changes", [{}, {"checkpoint": True}, {"loss_divisor": "padded", "inner_rate": 2.5}, SHARED])
def test_the_learners_gradient_equals_finite_differences(tmp_path: Path, changes: dict[str, object]) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "gpt2")))  # it computes in float64 throughout when asked to
    lm.model.double()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.div_(4)
    method = make(lm, locality=0.5, episodes_per_step=2, **changes)
    method.weigher.double()
    episodes, others = EPISODES[:2], EPISODES[2:]
    method.outer_step(episodes, others)
    names = ["head.2.weight", "head.0.bias"]
    names += ["body.lora.downs.0.weight", "body.lora.ups.3.weight"] if changes is SHARED else []
    names += ["body.h.0.mlp.c_fc.weight", "body.wte.weight"] if changes is not SHARED else []
    parameters = dict(method.weigher.named_parameters())
    for name in names:
        gradient = parameters[name].grad
        assert gradient is not None
        place = gradient.abs().flatten().argmax()
        flat, step = parameters[name].data.view(-1), 1e-5
        losses = []
        for sign in (1, -1):
            flat[place] += sign * step
            losses.append(method.outer_step(episodes, others)["loss"])
            flat[place] -= sign * step
            # the calls add to the gradient; only the first one's is looked at
        slope = (losses[0] - losses[1]) / (2 * step)
        before = gradient.flatten()[place].item() / (1 + 2 * (names.index(name) + 1))
        assert before == pytest.approx(slope, rel=1e-5)


def test_checkpointing_changes_nothing(lm: BaseModel) -> None:
    results = []
    for checkpoint in (False, True):
        method = make(lm, checkpoint=checkpoint)
        losses = method.outer_step(EPISODES, EPISODES[::-1])
        results.append((losses, [p.grad for p in method.weigher.parameters() if p.grad is not None]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * a.abs().max().item() + 1e-8)


def test_the_base_is_carried_until_it_is_reset(llama_lm: BaseModel) -> None:
    carried = make(llama_lm, reset_every=4).outer_step(EPISODES, EPISODES)
    reset = make(llama_lm, reset_every=2).outer_step(EPISODES, EPISODES)
    halves = [make(llama_lm, episodes_per_step=2).outer_step(EPISODES[k : k + 2], EPISODES[k:]) for k in (0, 2)]
    assert reset["loss"] == pytest.approx(sum(half["loss"] for half in halves) / 2, rel=1e-6)
    assert carried["loss"] != pytest.approx(reset["loss"], rel=1e-4)


@pytest.mark.parametrize("changes", [{"dropout": True}, SHARED])
def test_meta_training_leaves_the_base_as_it_was(lm: BaseModel, changes: dict[str, object]) -> None:
    before, attention = lm.weights_hash(), lm.model.config._attn_implementation
    make(lm, **changes).outer_step(EPISODES, EPISODES)
    assert (lm.weights_hash(), lm.model.config._attn_implementation) == (before, attention)
    assert not lm.model.training and all(p.grad is None for p in lm.model.parameters())


def test_a_weigher_on_the_base_holds_no_weights_of_it_and_does_not_change_in_the_stream(lm: BaseModel) -> None:
    method, batch = make(lm, **SHARED), lm.tokens(EPISODES[0].document)
    assert {name.split(".")[0] for name in method.learner.state_dict()} == {"head", "body"}
    assert all(name.startswith("body.lora.") for name in method.learner.state_dict() if name.startswith("body"))
    assert sum(p.numel() for p in method.learner.parameters()) < sum(p.numel() for p in lm.model.parameters())
    before, hidden = method.token_weights(batch), lm.hidden(EPISODES[0].document)
    assert len(before.unique()) > 1
    for episode in EPISODES[1:]:
        method.observe(episode.document)
    assert torch.equal(method.token_weights(batch), before)
    assert not torch.equal(lm.hidden(EPISODES[0].document), hidden)
    changed = {name for name, value in lm.named_tensors() if not torch.equal(value, lm.pristine(name))}
    assert changed == {name for name, _ in select(lm.model, "top_1")}


@pytest.mark.parametrize("learn", ["all", "top_2", "norms_and_biases"])
def test_a_weigher_on_blocks_that_learn_is_refused(llama_lm: BaseModel, learn: str) -> None:
    with pytest.raises(BenchError, match=f"learn={learn} only its first 0 stay.*top_N"):
        make(llama_lm, weigher_blocks=1, learn=learn)
    with pytest.raises(pydantic.ValidationError, match="backbone and base null"):
        settings(weigher_blocks=1, base="nano")


def test_validation_is_the_outer_loss_without_a_gradient(llama_lm: BaseModel) -> None:
    method = make(llama_lm)
    losses = method.validate(EPISODES)
    assert losses["loss"] == pytest.approx(losses["answer_nll"] + 0.1 * losses["drift"], rel=1e-6)
    assert all(p.grad is None for p in method.weigher.parameters())


def test_meta_training_lowers_the_outer_loss(llama_lm: BaseModel) -> None:
    from bench.contract.meta_training import Trainer

    training = settings(steps=25, learning_rate=1e-2, validate_every=5, inner_rate=0.5, episodes_per_step=2)
    method = Camels(llama_lm, Camels.Config(training=training))
    trainer = Trainer(method, EPISODES[:2], EPISODES[:2])
    trainer.run()
    losses = [row["validation_loss"] for row in trainer.curve]
    assert min(losses) < losses[0] - 0.05


def test_the_reference_preset_is_that_of_the_authors_code() -> None:
    config = Camels.Config(preset="reference", training={"unroll": 3})
    assert (config.loss_divisor, config.dropout, config.clip_norm) == ("padded", True, 750)
    training = config.training
    assert (training.loss_divisor, training.kl_ref, training.dropout) == ("padded", "microstep", True)
    assert (training.unroll, training.reset_every, training.inner_rate) == (3, 24, 5e-4), "what is given stays given"
    assert (training.locality, training.learning_rate) == (0.1, 1e-5)


def test_the_padded_divisor_ignores_the_length_of_a_document(llama_lm: BaseModel) -> None:
    batch = llama_lm.tokens(EPISODES[0].document)
    assert Camels(llama_lm).loss_divisor(batch) == len(batch)
    assert Camels(llama_lm, Camels.Config(preset="reference")).loss_divisor(batch) == 1023


def test_a_weighing_part_of_the_base_has_no_dropout_in_the_stream(tmp_path: Path) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "gpt2")))
    config = Camels.Config(dropout=True, learning_rate=1.0, training={"weigher_blocks": 1, "learn": "top_1"})
    method = Camels(lm, config)
    head = method.weigher.head[-1]
    with torch.no_grad():
        head.weight.normal_(0, 1)
    batch = lm.tokens(EPISODES[0].document)
    still = method.token_weights(batch)
    lm.model.train()
    assert torch.equal(method.token_weights(batch), still) and still.std() > 0
    assert lm.model.training


def test_windows_must_fit_into_an_outer_step() -> None:
    with pytest.raises(pydantic.ValidationError, match="multiple"):
        settings(unroll=2, reset_every=3)


def test_a_weighting_model_of_another_vocabulary_is_refused(llama_lm: BaseModel, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path, "gpt2")
    assert (
        Camels(llama_lm, Camels.Config(training=settings(backbone=str(other)))).weigher.body.config.model_type == "gpt2"
    )
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BenchError, match=r"another vocabulary.*backbone or .*leave it out"):
        Camels(llama_lm, Camels.Config(training=settings(backbone=str(other))))
