"""Retuning before answering: the steps are those that it says, and nothing of them remains."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from bench import Document, Episode, Question
from bench.answering import retuning
from bench.answering.answers import answer_nll
from bench.answering.prompts import build_prompts, closed_book_rows, question_ids
from bench.answering.retune import Retune
from bench.answering.retuning import answer_loss, one_each, retuned
from bench.contract.method import Conditioning
from bench.lm.base_model import BaseModel
from tests.tiny_models import weights

EPISODES = [
    Episode(
        Document(f"q{i}", f"Mill {i} opened in {1900 + i}."),
        (Question(f"{i}-a", f"When did mill {i} open?"), Question(f"{i}-b", f"What opened in {1900 + i}?")),
        ((f"in {1900 + i}", str(1900 + i)), (f"mill {i}",)),
    )
    for i in range(5)
]
RETUNE = Retune(steps=6, rate=1e-3)


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss(lm: BaseModel) -> float:
    with torch.no_grad():
        return answer_loss(lm, EPISODES).item()


def test_the_loss_is_that_of_the_answers_one_by_one(lm: BaseModel) -> None:
    questions = [question for episode in EPISODES for question in episode.questions]
    golds = [min(answers, key=len) for episode in EPISODES for answers in episode.answers]
    values = answer_nll(lm, build_prompts(lm, questions, Conditioning(), 8), golds)
    tokens = [len(lm.encode(f" {gold}")) + 1 for gold in golds]  # with the end of text
    total = sum(value * count for value, count in zip(values, tokens, strict=True) if value is not None)
    assert loss(lm) == pytest.approx(total / sum(tokens), abs=1e-5)


def test_the_gradients_are_those_of_questions_of_any_length_one_by_one(lm: BaseModel) -> None:
    questions = one_each(EPISODES)
    questions[3] = replace(questions[3], questions=(Question("long", "Which mill of all mills opened first? " * 3),))
    questions[6] = replace(questions[6], answers=(("in the year of the comet",),))
    gradients = []
    for batches in ([questions], [[question] for question in questions]):
        lm.model.zero_grad()
        for batch in batches:
            answers = [min(answers, key=len) for one in batch for answers in one.answers]
            (answer_loss(lm, batch) * sum(len(lm.encode(f" {answer}")) + 1 for answer in answers)).backward()
        gradients.append([parameter.grad.clone() for parameter in lm.model.parameters() if parameter.grad is not None])
    for together, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_it_lowers_the_answers_loss_without_dropout(lm: BaseModel) -> None:
    before = loss(lm)
    with retuned(lm, EPISODES, RETUNE, seed=3):
        assert loss(lm) < before
        assert not lm.model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_flags_and_gradients_are_restored_bit_for_bit(llama: Path, dtype: str) -> None:
    lm = BaseModel.load(str(llama), dtype=dtype)
    embedding, head = lm.model.get_input_embeddings().weight, lm.model.lm_head.weight
    embedding.requires_grad_(False)
    head.grad = kept = torch.ones_like(head)
    before, flags = weights(lm), [p.requires_grad for p in lm.model.parameters()]
    with retuned(lm, EPISODES, RETUNE, seed=3):
        assert not torch.equal(embedding, before["model.embed_tokens.weight"]), "all weights of the base learn"
    assert same(weights(lm), before)
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert head.grad is kept and torch.equal(kept, torch.ones_like(head))
    assert all(p.grad is None for p in lm.model.parameters() if p is not head)


def test_an_error_while_answering_restores_them_too(lm: BaseModel) -> None:
    before = weights(lm)
    with pytest.raises(ValueError, match="while answering"), retuned(lm, EPISODES, RETUNE, seed=3):
        raise ValueError("while answering")
    assert same(weights(lm), before)


def test_the_same_seed_tunes_the_same_weights_in_the_same_way(lm: BaseModel) -> None:
    tuned = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(tuned))
        with retuned(lm, EPISODES, RETUNE, seed):
            tuned.append(weights(lm))
    assert same(tuned[0], tuned[1]) and not same(tuned[0], tuned[2])


def test_steps_are_those_of_adam_on_batches_of_all_questions(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retuning, "BATCH", 2)
    questions = one_each(EPISODES[:2])  # four, so that two steps are an epoch
    candidates = []
    for first in itertools.combinations(range(4), 2):
        lm.restore()
        bare = torch.optim.Adam(lm.model.parameters(), lr=1e-4)
        for batch in (first, [i for i in range(4) if i not in first]):
            bare.zero_grad()
            answer_loss(lm, [questions[i] for i in batch]).backward()
            bare.step()
        candidates.append(weights(lm))
    lm.restore()
    with retuned(lm, EPISODES[:2], Retune(steps=2, rate=1e-4), seed=3):
        tuned = weights(lm)
    distances = [max((tuned[name] - other[name]).abs().max().item() for name in tuned) for other in candidates]
    assert sum(distance < 1e-6 for distance in distances) == 1


def test_half_of_few_questions_is_held_out_of_16_steps_or_more(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, set[str]] = {"learned": set(), "held out": set()}
    original = retuning.answer_loss

    def seen(lm: BaseModel, batch: list[Episode]) -> Tensor:
        texts["learned" if torch.is_grad_enabled() else "held out"] |= {e.questions[0].text for e in batch}
        return original(lm, batch)

    monkeypatch.setattr(retuning, "answer_loss", seen)
    with retuned(lm, EPISODES, Retune(steps=15, rate=1e-4), seed=3):
        pass
    assert (len(texts["learned"]), len(texts["held out"])) == (10, 0)
    texts["learned"].clear()
    with retuned(lm, EPISODES, Retune(steps=16, rate=1e-4), seed=3):
        pass
    assert (len(texts["learned"]), len(texts["held out"])) == (5, 5) and not texts["learned"] & texts["held out"]


def test_steps_that_raise_the_held_out_loss_are_dropped(lm: BaseModel) -> None:
    before = weights(lm)
    with retuned(lm, EPISODES, Retune(steps=16, rate=10.0), seed=3):
        assert same(weights(lm), before)


def test_it_stops_early_and_answers_with_the_best_weights(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.5, 3.0, 3.2])  # before, then every 2 steps; the lowest is at step 6
    visited: list[dict[str, Tensor]] = []

    def next_loss(lm: BaseModel, questions: object) -> float:
        visited.append(weights(lm))
        return next(losses)

    monkeypatch.setattr(retuning, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(retuning, "_mean_loss", next_loss)
    with retuned(lm, EPISODES, Retune(steps=100, rate=1e-3), seed=3):
        assert same(weights(lm), visited[3])
    assert next(losses, None) is None and len(visited) == 7


@pytest.mark.parametrize("episodes", [[], [Episode(Document("d", "A."), (Question("", "a"),), (("b",),))]])
def test_with_fewer_than_two_questions_nothing_is_tuned(lm: BaseModel, episodes: list[Episode]) -> None:
    before = weights(lm)
    with retuned(lm, episodes, RETUNE, seed=3):
        assert same(weights(lm), before)


def test_what_a_method_adds_to_the_model_takes_part_and_stays_as_it_is(lm: BaseModel) -> None:
    with retuned(lm, EPISODES, RETUNE, seed=3):
        plain = weights(lm)
    offset = Parameter(torch.full((lm.model.config.hidden_size,), 0.5))  # no parameter of the model
    inner = torch.nn.Linear(2, 2)  # one that a method has inserted
    lm.model.inserted = inner
    handle = lm.model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + offset)
    with retuned(lm, EPISODES, RETUNE, seed=3):
        assert not same(weights(lm), plain), "the loss is that of the model with the hook"
        assert not inner.weight.requires_grad or inner.weight.grad is None
    handle.remove()
    assert torch.equal(offset, torch.full_like(offset, 0.5)) and offset.grad is None
    assert inner.weight.requires_grad and inner.weight.grad is None


def test_a_question_that_does_not_fit_with_its_answer_is_cut_at_its_end(lm: BaseModel) -> None:
    question = Question("long", "Who saw it? " * lm.window)
    ids, answers = closed_book_rows(lm, [Episode(Document("d", "A text."), (question,), (("a mill",),))])
    read, scored = ids[0], answers[0]
    assert len(read) == lm.window and int(scored.sum()) == int(scored[-int(scored.sum()) :].sum())
    assert torch.equal(read[~scored], question_ids(lm, question.text)[: int((~scored).sum())])
