"""MBC: the codebook, and a bank that is a histogram of its codes."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import torch

from bench import Document, Question
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.conformance.checks import CHECKS
from bench.contract.meta_training import Trainer
from bench.lm.base_model import BaseModel
from bench.run import train
from bench.run.artifacts import load
from methods.mbc import Codebook, Mbc, MbcTraining
from tests.conftest import TEXT
from tests.methods.test_mac import EPISODES, QUESTIONS, SMALL
from tests.world import make_dataset, make_experiment


def make(lm: BaseModel, seed: int = 0, **settings: object) -> Mbc:
    method = Mbc(lm, Mbc.Config(training={**SMALL, "codes": 5, **settings}), seed)
    with torch.no_grad():
        method.codebook.vectors.copy_(torch.randn(method.codebook.vectors.shape, generator=torch.manual_seed(1)))
    method.reset()
    return method


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


@pytest.fixture
def each_lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def adapted(lm: BaseModel, **settings: object) -> Mbc:
    """A method whose adapters are far from zero."""
    method = make(lm, lora_rank=4, **settings)
    with torch.no_grad():
        for up in method.lora.ups:
            up.weight.normal_(generator=torch.manual_seed(2))
    return method


def outputs(method: Mbc, questions: list[Question] = QUESTIONS) -> tuple[list[str], list[float], list[float]]:
    """Answers, NLL of answers, and log-probabilities of a text."""
    prompts = build_prompts(method.lm, questions, method.condition(questions), 8)
    answers, nll = answer_and_nll(method.lm, prompts, ["noon"] * len(questions), Decoding(max_new_tokens=8))
    with torch.no_grad():
        return [own.text for own in answers], nll, method.lm.log_probs(method.lm.encode(TEXT[0])).tolist()


def test_the_nearest_code_is_that_of_least_distance() -> None:
    torch.manual_seed(0)
    book, rows = Codebook(7, 4), torch.randn(3, 2, 4)
    torch.nn.init.normal_(book.vectors)
    expected = (rows[:, :, None] - book.vectors).norm(dim=-1).argmin(-1)
    assert torch.equal(book.nearest(rows), expected)


def test_the_bank_of_codes_is_their_histogram(lm: BaseModel) -> None:
    """Attention over all quantised rows equals attention over the codes with log counts."""
    method = make(lm)
    method.networks.double()
    rows = method.encode_episodes(EPISODES * 3)[0].detach().double()
    rows = rows + torch.randn(rows.shape, generator=torch.manual_seed(0))
    for row in rows:
        method.remember(row[None])
    codes = method.codebook.nearest(rows)
    assert method.counts.tolist() == torch.bincount(codes.flatten(), minlength=5).tolist()
    queries = torch.randn(4, 3, 32).double()
    flat = method.aggregator(queries, method.codebook.vectors[codes].flatten(0, 1)[None])
    used = method.counts.nonzero()[:, 0]
    logs = method.counts[used].double().log()[None, None, None]
    counted = method.aggregator(queries, method.codebook.vectors[used][None], logs)
    assert (flat - counted).abs().max() < 1e-12


def test_a_question_recalls_the_same_from_counts_and_from_rows(lm: BaseModel) -> None:
    method = make(lm)
    rows = method.encode_documents([e.document for e in EPISODES]).detach()
    for episode in EPISODES:
        method.observe(episode.document)
    from_rows, from_counts = (method.recall(["Who?"], bank).key_values for bank in (rows, method.bank))
    assert from_rows is not None and from_counts is not None
    for a, b in zip(from_rows, from_counts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_state_does_not_grow_with_the_bank(lm: BaseModel) -> None:
    method = make(lm)
    for text in TEXT:
        method.observe(Document(text[:5], text))
    assert method.counts.shape == (5,) and int(method.counts.sum()) == 3 * 3 and len(method.entries) == 3


def test_gradients_pass_through_the_codes(lm: BaseModel) -> None:
    method = make(lm)
    rows = torch.randn(4, 3, 32, requires_grad=True)
    quantized, codes = method.quantize(rows)
    assert torch.equal(codes, method.codebook.nearest(rows))
    torch.testing.assert_close(quantized, method.codebook.vectors[codes])
    quantized.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows)) and method.codebook.vectors.grad is None


def test_the_codebooks_loss_by_hand(lm: BaseModel) -> None:
    method = make(lm, codes=1, least_count=0)
    rows = method.codebook.vectors.detach() + torch.full((2, 1, 32), 2.0)
    rows.requires_grad_(True)
    loss = method.penalty(rows, torch.zeros(2, 1, dtype=torch.long))
    assert loss.item() == pytest.approx(4 + 0.25 * 4)
    loss.backward()
    torch.testing.assert_close(rows.grad, torch.full((2, 1, 32), 0.25 * 2 * 2.0 / 64))
    torch.testing.assert_close(method.codebook.vectors.grad, torch.full((1, 32), -2 * 2.0 / 32))


def test_usage_is_a_moving_average_of_counts_from_zero() -> None:
    book = Codebook(3, 2)
    assert book.usage.tolist() == [0, 0, 0]
    rows, codes = torch.randn(2, 2, 2), torch.tensor([[0, 0], [0, 1]])
    for expected in ([0.75, 0.25, 0], [1.3125, 0.4375, 0]):  # 0.75 x the last value + 0.25 x (3, 1, 0)
        book.update_usage(rows, codes, decay=0.75, least=0)
        assert book.usage.tolist() == expected


def test_a_code_below_the_least_count_becomes_a_row_with_the_mean_usage() -> None:
    book = Codebook(4, 2)
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[1.0, 0], [50, 50], [60, 60], [70, 70]]))
        book.usage.copy_(torch.tensor([3.0, 2.2e-4, 1.8e-4, 0]))
    rows = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    book.update_usage(rows, torch.tensor([[0, 0]]), decay=0.5, least=1e-4)
    assert book.vectors[:2].tolist() == [[1, 0], [50, 50]]
    assert all(vector in rows[0].tolist() for vector in book.vectors[2:].tolist())
    mean = (2.5 + 1.1e-4 + 0.9e-4) / 4  # the replaced codes count in it with their old usage
    torch.testing.assert_close(book.usage, torch.tensor([2.5, 1.1e-4, mean, mean]))


def test_the_first_step_replaces_every_code_without_rows() -> None:
    book = Codebook(5, 2)
    rows = torch.randn(3, 1, 2)
    book.update_usage(rows, torch.tensor([[0], [0], [2]]), decay=0.99, least=1e-4)
    assert all(book.vectors[i].tolist() in rows[:, 0].tolist() for i in (1, 3, 4))
    torch.testing.assert_close(book.usage, torch.tensor([0.02, 0.006, 0.01, 0.006, 0.006]))


def test_a_training_step_looks_up_its_codes_once(lm: BaseModel) -> None:
    method = make(lm, backprop_ratio=0.5)
    shapes: list[torch.Size] = []
    original = method.codebook.nearest

    def nearest(rows: torch.Tensor) -> torch.Tensor:
        shapes.append(rows.shape)
        return original(rows)

    method.codebook.nearest = nearest  # type: ignore[method-assign]
    method.outer_step(EPISODES, [])
    assert shapes == [(4, 3, 32)]


def test_the_codebook_is_frozen_while_documents_stream(lm: BaseModel) -> None:
    method = make(lm)
    before = {name: value.clone() for name, value in method.learner.state_dict().items()}
    for episode in EPISODES:
        method.observe(episode.document)
    after = method.learner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_meta_training_lowers_the_loss_and_leaves_the_base(lm: BaseModel) -> None:
    before = lm.weights_hash()
    settings = {"steps": 30, "learning_rate": 5e-3, "episodes_per_step": 4, "validate_every": 10, "codes": 16}
    trainer = Trainer(make(lm, **settings, shared=True), EPISODES, EPISODES)
    trainer.run()
    losses = [row["validation_loss"] for row in trainer.curve]
    assert min(losses) < losses[0] - 0.5
    assert lm.weights_hash() == before


def test_the_base_has_no_adapters_by_default(lm: BaseModel) -> None:
    method = make(lm)
    assert not any(name.startswith("lora") for name in method.learner.state_dict())
    method.begin_document()
    outputs(method)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_untrained_adapters_change_no_bit(each_lm: BaseModel) -> None:
    results = []
    for rank in (0, 4):
        method = make(each_lm, lora_rank=rank)
        for episode in EPISODES:
            method.begin_document()
            method.observe(episode.document)
        assert bool(method.lora._handles) == (rank > 0)
        results.append(outputs(method))
        method.reset()
    assert results[0] == results[1]


def test_gradients_reach_the_adapters_and_not_the_base(each_lm: BaseModel) -> None:
    method = adapted(each_lm)
    method.outer_step(EPISODES, [])
    factors = dict(method.lora.named_parameters())
    assert len(factors) == 2 * 4
    assert all(factor.grad is not None and factor.grad.abs().sum() > 0 for factor in factors.values())
    assert all(p.grad is None for p in each_lm.model.parameters())


def test_training_adapters_leaves_the_base_as_it_was(each_lm: BaseModel) -> None:
    before, text = each_lm.weights_hash(), each_lm.encode(TEXT[0])
    with torch.no_grad():
        expected = each_lm.log_probs(text)
    method = make(each_lm, lora_rank=4, steps=4, episodes_per_step=4, validate_every=2, learning_rate=1e-2)
    Trainer(method, EPISODES, EPISODES).run()
    assert any(up.weight.any() for up in method.lora.ups) and not method.lora.training
    assert each_lm.weights_hash() == before and torch.equal(each_lm.log_probs(text), expected)


def test_adapters_alone_lower_the_loss(lm: BaseModel) -> None:
    method = make(lm, lora_rank=8, lora_dropout=0)
    for name, parameter in method.learner.named_parameters():
        parameter.requires_grad_(name.startswith("lora"))
    optimizer = torch.optim.Adam(method.lora.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(method.outer_step(EPISODES, [])["answer_nll"])
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_adapters_act_from_the_first_document_or_question_to_the_reset(each_lm: BaseModel) -> None:
    before, text = each_lm.weights_hash(), each_lm.encode(TEXT[0])
    with torch.no_grad():
        bare = each_lm.log_probs(text)
        method = adapted(each_lm)
        method.begin_document()
        scored = each_lm.log_probs(text)
        assert not torch.equal(scored, bare), "a document is scored with them"
        method.reset()
        assert torch.equal(each_lm.log_probs(text), bare)
        answers = outputs(method)
        assert torch.equal(each_lm.log_probs(text), scored), "questions on an empty bank are answered with them"
        method.reset()
        assert answers[1] != outputs(make(each_lm))[1]
    each_lm.restore()
    assert each_lm.weights_hash() == before and each_lm.changed_bytes() == 0
    assert not any(module._forward_hooks for module in each_lm.model.modules())


def test_the_last_blocks_alone_may_have_adapters(lm: BaseModel) -> None:
    method = make(lm, lora_rank=4, lora_layers=1)
    last = lm.model.model.layers[1].self_attn
    assert [target.module for target in method.lora.targets] == [last.k_proj, last.v_proj]


def test_adapters_come_back_from_the_artifact(llama: Path, lm: BaseModel, tmp_path: Path) -> None:
    settings = {**SMALL, "codes": 5, "lora_rank": 4, "learning_rate": 1e-2, "steps": 3, "episodes_per_step": 2}
    methods = [{"name": "mbc", "config": {"training": {**settings, "validate_every": 3, "validation_episodes": 4}}}]
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, methods)
    folder = train.train("mbc", experiment, 0, tmp_path / "artifacts", tmp_path / "train")
    first, second = (Mbc(lm, Mbc.Config(**methods[0]["config"])) for _ in range(2))
    assert not any(up.weight.any() for up in first.lora.ups)
    load(folder, first)
    assert all(up.weight.any() for up in first.lora.ups)
    load(folder, second)
    results = []
    for method in (first, second):
        method.reset()
        method.observe(EPISODES[0].document)
        results.append(outputs(method))
        method.reset()
    assert results[0] == results[1]


def test_the_reference_preset_has_the_settings_of_the_authors_code() -> None:
    t = Mbc.Config(preset="reference").training
    assert (t.amortizer, t.question_encoder, t.tokens) == ("t5-small", "t5-small", 12)
    assert (t.codes, t.commitment) == (512, 0.25)
    assert (t.usage_decay, t.least_count) == (0.99, 1e-4)
    assert (t.lora_rank, t.lora_alpha, t.lora_layers, t.lora_dropout) == (16, 32, 6, 0.05)
    assert (t.bank_documents, t.episodes_per_step, t.backprop_ratio, t.dropout) == (16, 16 * 4, 1.0, True)
    assert (t.learning_rate, t.clip_norm, t.patience, t.warmup) == (1e-5, 100, 10, t.steps // 100)


class Adapted(Mbc):
    """MBC with adapters that two steps of training move far from zero."""

    class Config(Mbc.Config):
        training: MbcTraining = pydantic.Field(
            default=MbcTraining(**SMALL, codes=16, lora_rank=4, learning_rate=0.1), description="with adapters"
        )


@pytest.mark.parametrize("check", CHECKS)
def test_adapters_keep_the_contract(check: str) -> None:
    CHECKS[check](Adapted)
