"""The inner loop and its outer gradient, against a closed form, finite differences and a plainly unrolled graph."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from bench.data.documents import Document, Episode, Question
from bench.lm.base_model import BaseModel, TokenBatch
from methods.parts.depth import reading_once
from methods.parts.inner_loop import (
    InnerLoop,
    InnerStep,
    Parameters,
    answer_loss,
    drift,
    parameters_of,
    token_nll,
    twice_differentiable,
)
from methods.parts.parameters import Subset, blocks_below, select
from tests.conftest import TEXT, make_checkpoint

RATE = 0.05
EPISODES = [
    Episode(
        Document(str(i), text),
        (Question(f"{i}a", f"Who saw {text[:9]}?"), Question(f"{i}b", "When?")),
        (("an otter", "the long answer"), ("1983",)),
    )
    for i, text in enumerate(TEXT)
]


class Bigram(nn.Module):
    """The smallest language model: the logits of the next token are a row of a table."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, dtype=torch.float64, generator=generator))
        self.config: Any = SimpleNamespace(max_position_embeddings=64, _attn_implementation="eager")

    def set_attn_implementation(self, name: str) -> None:
        pass

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def in_float64(checkpoint: Path) -> BaseModel:
    """The checkpoint in float64, its weights made small enough for a smooth loss."""
    loaded = BaseModel.load(str(checkpoint))
    loaded.model.double()
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.ndim > 1:
                parameter.div_(4)
    return loaded


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return in_float64(checkpoint)


def batches(lm: BaseModel) -> list[TokenBatch]:
    return [lm.tokens(episode.document) for episode in EPISODES]


def random_weights(lm: BaseModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(len(batch), dtype=torch.float64, generator=generator) * 2 for batch in batches(lm)]


def steps(lm: BaseModel, weights: list[Tensor]) -> list[InnerStep]:
    return [InnerStep(batch, w, len(batch)) for batch, w in zip(batches(lm), weights, strict=True)]


def test_one_step_on_a_bigram_table_has_the_gradient_derived_by_hand(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    lm = BaseModel(Bigram(len(tokenizer)), tokenizer)
    document, weights = batches(lm)[0], random_weights(lm)[0]
    theta, n = lm.model.table.detach().numpy().copy(), len(document)
    ids = torch.cat([document.context_ids, document.token_ids]).numpy()

    def softmax(rows: Any) -> Any:
        exp = np.exp(rows - rows.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)

    eye = np.eye(len(theta))
    slopes = softmax(theta[ids[:-1]]) - eye[ids[1:]]  # of each token's -log p, in its own row of the table
    after = theta.copy()
    for t, previous in enumerate(ids[:-1]):
        after[previous] -= RATE * weights[t].item() * slopes[t] / n
    question, answer = int(ids[3]), 7
    expected_loss = -np.log(softmax(after[question])[answer])
    outer = np.zeros_like(theta)
    outer[question] = softmax(after[question]) - eye[answer]
    expected = [-RATE / n * outer[previous] @ slopes[t] for t, previous in enumerate(ids[:-1])]

    def outer_loss(theta: Parameters) -> dict[str, Tensor]:
        return {"loss": -theta["table"][question].log_softmax(-1)[answer]}

    step = InnerStep(document, weights, n)
    losses, (gradient,), last = InnerLoop(lm, RATE).outer_gradient(parameters_of(lm), [step], outer_loss)
    np.testing.assert_allclose(losses["loss"], expected_loss, rtol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(last["table"].numpy(), after, rtol=1e-12)
    assert np.abs(expected).max() > 0


def plainly_unrolled(lm: BaseModel, weights: list[Tensor], subset: Subset) -> Tensor:
    """The outer loss with every step written out, in the modules' own tensors instead of functional calls."""
    learning = parameters_of(lm, subset)
    names = [name for name, _ in lm.model.named_parameters()]
    owners = [(lm.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    shared = {
        id(p): [(m, key) for m in lm.model.modules() for key, q in m._parameters.items() if q is p]
        for p in lm.model.parameters()
    }
    places = [shared[id(getattr(owner, key))] for owner, key in owners]
    values: list[Tensor] = [p.detach().clone().requires_grad_() for p in lm.model.parameters()]
    originals = list(lm.model.parameters())

    def put(tensors: list[Any]) -> None:
        for tensor, spots in zip(tensors, places, strict=True):
            for module, key in spots:
                module._parameters[key] = tensor

    try:
        for document, w in zip(batches(lm), weights, strict=True):
            put(values)
            ids = torch.cat([document.context_ids, document.token_ids])
            log_probs = lm.model(input_ids=ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
            loss = -(w * log_probs.gather(1, ids[1:, None])[:, 0]).sum() / len(document)
            slopes = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
            values = [
                v if s is None or name not in learning else v - RATE * s
                for name, v, s in zip(names, values, slopes, strict=True)
            ]
        put(values)
        total, count = torch.zeros((), dtype=torch.float64), 0
        for episode in EPISODES:
            for question, answers in zip(episode.questions, episode.answers, strict=True):
                start = torch.cat([torch.tensor([lm.bos_id]), lm.encode(question.text)])
                ending = torch.cat([lm.encode(" " + min(answers, key=len)), torch.tensor([lm.eos_id])])
                row = torch.cat([start, ending])
                log_probs = lm.model(input_ids=row[None], use_cache=False).logits[0].log_softmax(-1)
                total = total - log_probs[len(start) - 1 : -1].gather(1, ending[:, None]).sum()
                count += len(ending)
        return total / count
    finally:
        put(originals)


def outer_loss(lm: BaseModel, theta: Parameters) -> dict[str, Tensor]:
    return {"loss": answer_loss(lm, theta, EPISODES)}


@pytest.mark.parametrize("checkpoint_steps", [False, True])
@pytest.mark.parametrize("subset", ["all", "top_1"])
def test_three_steps_equal_a_plainly_unrolled_graph(lm: BaseModel, checkpoint_steps: bool, subset: Subset) -> None:
    weights = [w.requires_grad_() for w in random_weights(lm)]
    texts_below: list[Any] = []
    below = blocks_below(lm.model, (parameter for _, parameter in select(lm.model, subset)))
    with twice_differentiable(lm):
        expected_loss = plainly_unrolled(lm, weights, subset)
        expected = torch.autograd.grad(expected_loss, weights)
        for block in below:
            next(block.children()).register_forward_hook(lambda *_: texts_below.append(None))
        with lm.frozen(), reading_once(lm, below):
            losses, gradients, last = InnerLoop(lm, RATE).outer_gradient(
                parameters_of(lm, subset), steps(lm, weights), partial(outer_loss, lm), checkpoint_steps
            )
    assert set(last) == {name for name, _ in select(lm.model, subset)}
    assert len(texts_below) == len(below) * 4, "three documents and a batch of questions, each read once"
    assert losses["loss"] == pytest.approx(expected_loss.item(), rel=1e-9)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * theirs.abs().max().item())
        assert theirs.abs().max() > 0


def test_the_outer_gradient_equals_finite_differences(tmp_path: Path) -> None:
    # the other architectures compute some things in float32 whatever they are given
    lm = in_float64(make_checkpoint(tmp_path, "gpt2"))
    weights = random_weights(lm)
    start, loop = parameters_of(lm), InnerLoop(lm, RATE)

    def loss_at(changed: list[Tensor]) -> float:
        end = loop.unroll(start, steps(lm, changed), differentiable=False)[-1]
        return outer_loss(lm, end)["loss"].item()

    with twice_differentiable(lm):
        gradients = loop.outer_gradient(start, steps(lm, weights), partial(outer_loss, lm)).weights
        step = 1e-4
        for k, place in [(0, 3), (1, 0), (1, 7), (2, 5)]:
            plus, minus = [w.clone() for w in weights], [w.clone() for w in weights]
            plus[k][place] += step
            minus[k][place] -= step
            slope = (loss_at(plus) - loss_at(minus)) / (2 * step)
            assert gradients[k][place].item() == pytest.approx(
                slope, rel=1e-6, abs=1e-6 * gradients[k].abs().max().item()
            )


def test_the_inner_steps_are_those_of_plain_sgd(lm: BaseModel) -> None:
    inner = steps(lm, random_weights(lm))
    end = InnerLoop(lm, RATE).unroll(parameters_of(lm), inner, differentiable=False)[-1]
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=RATE)
    for episode, w in zip(EPISODES, random_weights(lm), strict=True):
        optimizer.zero_grad()
        batch = lm.tokens(episode.document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        log_probs = lm.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        (-(w * log_probs).sum() / len(batch)).backward()
        optimizer.step()
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(end[name], parameter.detach(), rtol=1e-6, atol=1e-9)


def test_long_documents_are_read_as_the_harness_reads_them(lm: BaseModel) -> None:
    batch = lm.tokens(Document("long", TEXT[0] * 9))
    assert len(lm.windows(len(batch), len(batch.context_ids))) > 1
    nll = token_nll(lm, parameters_of(lm), batch)
    expected = -torch.cat(list(lm.window_log_probs(batch.token_ids, batch.context_ids)))
    torch.testing.assert_close(nll.float(), expected.float(), rtol=1e-4, atol=1e-4)


def test_the_answer_loss_does_not_depend_on_what_else_is_asked(lm: BaseModel) -> None:
    theta = parameters_of(lm)
    ends = [sum(len(lm.encode(" " + min(a, key=len))) + 1 for a in e.answers) for e in EPISODES]
    alone = [answer_loss(lm, theta, [e]).item() * n for e, n in zip(EPISODES, ends, strict=True)]
    assert answer_loss(lm, theta, EPISODES).item() == pytest.approx(sum(alone) / sum(ends), rel=1e-9)


def test_drift_is_the_mean_kl() -> None:
    before, after = (
        torch.tensor(rows, dtype=torch.float64).log() for rows in ([[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75]] * 2)
    )
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    second = 0.9 * np.log(0.9 / 0.25) + 0.1 * np.log(0.1 / 0.75)
    assert drift(before + 7, after - 2).item() == pytest.approx((first + second) / 2)
    assert drift(before, before).item() == 0


def test_the_attention_in_use_comes_back(lm: BaseModel) -> None:
    before = lm.model.config._attn_implementation
    with contextlib.suppress(RuntimeError), twice_differentiable(lm, dropout=True):
        assert lm.model.config._attn_implementation == "eager" and lm.model.training
        raise RuntimeError
    assert lm.model.config._attn_implementation == before and not lm.model.training
