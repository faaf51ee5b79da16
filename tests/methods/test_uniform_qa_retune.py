"""Uniform fine-tuning with a tuning at probes that is undone completely."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import Document, Episode, Question
from bench.data.documents import Entry, GoldQuestion
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods.parts.inner_loop import answer_loss
from methods.uniform import Uniform
from methods.uniform_qa_retune import UniformQaRetune
from tests.conftest import TEXT

DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXT)]
EPISODES = [
    Episode(
        Document(f"q{i}", f"Mill {i} opened in {1900 + i}."),
        (Question(f"{i}-a", f"When did mill {i} open?"), Question(f"{i}-b", f"What opened in {1900 + i}?")),
        ((f"in {1900 + i}", str(1900 + i)), (f"mill {i}",)),
    )
    for i in range(5)
]


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def make(lm: BaseModel, **config: Any) -> UniformQaRetune:
    values = {
        "learning_rate": 1e-3,
        "retune_learning_rate": 1e-3,
        "retune_batch": 2,
        "validate_every": 2,
        "held_out": 4,
    }
    method = UniformQaRetune(lm, UniformQaRetune.Config(**{**values, "retune_steps": 6, **config}), seed=3)
    method.fit(EPISODES)
    method.reset()
    return method


def weights(lm: BaseModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.named_tensors()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss(method: UniformQaRetune) -> float:
    with torch.no_grad():
        return answer_loss(method.lm, dict(method.lm.model.named_parameters()), EPISODES).item()


def test_tuning_lowers_the_answers_loss(lm: BaseModel) -> None:
    method = make(lm)
    before = loss(method)
    with method.answering():
        assert loss(method) < before
        assert not lm.model.training, "answers are given without dropout"


def test_weights_flags_and_optimizer_are_restored_bit_for_bit(lm: BaseModel) -> None:
    method = make(lm)
    for document in DOCUMENTS:
        method.observe(document)
    lm.model.get_input_embeddings().weight.requires_grad_(False)
    flags = [p.requires_grad for p in lm.model.parameters()]
    state = copy.deepcopy(method.state_dict())
    with method.answering():
        assert not same(method.state_dict(), state)
    assert same(method.state_dict(), state)
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert all(p.grad is None for p in lm.model.parameters())


def test_an_error_while_answering_restores_them_too(lm: BaseModel) -> None:
    method = make(lm)
    before = weights(lm)
    with pytest.raises(ValueError, match="while answering"), method.answering():
        raise ValueError("while answering")
    assert same(weights(lm), before)


def test_the_stream_is_learned_as_by_uniform(lm: BaseModel) -> None:
    plain = Uniform(lm, Uniform.Config(learning_rate=1e-3))
    plain.reset()
    for document in DOCUMENTS:
        plain.observe(document)
    expected = weights(lm)
    method = make(lm)
    for document in DOCUMENTS:
        with method.answering():
            pass
        method.observe(document)
    assert same(weights(lm), expected)


def test_the_same_weights_are_tuned_the_same_way_each_time(lm: BaseModel) -> None:
    method = make(lm)
    with method.answering():
        first = weights(lm)
    torch.manual_seed(99)
    with method.answering():
        assert same(weights(lm), first)


def test_steps_equal_a_bare_loop_on_the_questions_not_held_out(lm: BaseModel) -> None:
    method = make(lm, retune_steps=1, retune_batch=100, held_out=1, retune_learning_rate=1e-4)
    candidates = []
    for held_out in method.questions:
        lm.restore()
        bare = torch.optim.Adam(lm.model.parameters(), lr=1e-4)
        rest = [question for question in method.questions if question is not held_out]
        answer_loss(lm, dict(lm.model.named_parameters()), rest).backward()
        bare.step()
        candidates.append(weights(lm))
    lm.restore()
    with method.answering():
        tuned = weights(lm)
    distances = [max((tuned[name] - other[name]).abs().max().item() for name in tuned) for other in candidates]
    assert sum(distance < 1e-6 for distance in distances) == 1


def test_steps_that_raise_the_loss_are_dropped(lm: BaseModel) -> None:
    method = make(lm, retune_learning_rate=10.0, retune_optimizer="sgd")
    before = weights(lm)
    with method.answering():
        assert same(weights(lm), before), "the loss rose, or became NaN"


def test_tuning_stops_early(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(lm, retune_steps=100, patience=3)
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.5, 3.0, 3.2])  # before, then every 2 steps; the lowest is at step 6
    visited: list[dict[str, Tensor]] = []

    def next_loss(questions: object) -> float:
        visited.append(weights(lm))
        return next(losses)

    monkeypatch.setattr(method, "_loss", next_loss)
    with method.answering():
        assert same(weights(lm), visited[3])
    assert next(losses, None) is None and len(visited) == 7


def test_the_last_steps_are_validated_too(lm: BaseModel) -> None:
    method = make(lm, retune_steps=1, validate_every=100)
    before = weights(lm)
    with method.answering():
        assert not same(weights(lm), before)


@pytest.mark.parametrize(
    "episodes", [[], [Episode(DOCUMENTS[0], (), ())], [Episode(DOCUMENTS[0], (Question("", "a"),), (("b",),))]]
)
def test_with_fewer_than_two_questions_nothing_is_tuned(lm: BaseModel, episodes: list[Episode]) -> None:
    method = make(lm)
    method.fit(episodes)
    before = weights(lm)
    with method.answering():
        assert same(weights(lm), before)


def test_a_probe_tunes_once_for_stream_and_anchor_questions(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = make(lm), 0

    def retune() -> None:
        nonlocal calls
        calls += 1

    monkeypatch.setattr(method, "retune", retune)
    golds = (GoldQuestion(Question("q", "When did it open?"), ("1983",)),)
    entries = [Entry(document, golds) for document in DOCUMENTS]
    Loop(method, entries, DOCUMENTS, anchor=[Entry(DOCUMENTS[0], golds)], probes=(1.0,)).run()
    assert calls == 2, "once before the first document and once at the end"
