"""CMT: compression, self-matching, top-k aggregation, the memory-aware loss, and the input to the base."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from bench import Document, Episode, Question
from bench.answering.prompts import build_prompts
from bench.contract.meta_training import Trainer
from bench.lm.base_model import BaseModel
from methods.cmt import Cmt
from methods.parts.compression import (
    AlignmentHead,
    CmtNetwork,
    CompressionTraining,
    DecoderCompressor,
    infonce_loss,
    matching_scores,
    mean_directions,
    self_matching_loss,
)
from tests.conftest import ROOT, TEXT

SMALL = {
    "memory_tokens": 3,
    "compressor_blocks": 2,
    "aggregator_blocks": 2,
    "heads": 2,
    "head_width": 8,
    "hidden": 16,
    "rank": 2,
    "queue": 5,
    "episodes_per_step": 2,
    "learning_rate": 1e-3,
}
TEXTS = [*TEXT, "A fourth text about the mill.", "The otter left.", "Who opened the gate at noon?"]
QUESTIONS = ["Who saw the otter?", "When was the mill founded, and by whom?", "Where?"]
EPISODES = [
    Episode(Document(str(i), text), (Question(f"{i}", f"What of {text[:9]}?"),), ((f"an otter {i}", f"otter {i}"),))
    for i, text in enumerate(TEXTS)
]


PAPER = dict(Cmt.Config.presets["paper"]["training"])


def make(lm: BaseModel, seed: int = 0, k: int | None = 2, preset: str = "sound", **training: object) -> Cmt:
    """A small method; the preset ``paper`` keeps what it sets."""
    sizes = {name: value for name, value in SMALL.items() if preset == "sound" or name not in PAPER}
    return Cmt(lm, Cmt.Config(preset=preset, k=k, training={**sizes, **training}), seed)


def observed(method: Cmt, texts: list[str]) -> Cmt:
    method.reset()
    for i, text in enumerate(texts):
        method.observe(Document(f"d{i}", text))
    return method


def soft_prompts(method: Cmt, questions: list[str], rows: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings = method.recall(questions, rows).embeddings
    assert embeddings is not None
    return embeddings


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


@pytest.fixture
def each_lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def test_aggregating_at_least_all_documents_is_full_aggregation(lm: BaseModel) -> None:
    rows = observed(make(lm), TEXTS).rows
    for k in (6, 9, None):
        method = make(lm, k=k)
        with torch.no_grad():
            questions = method.encode(*method.question_ids(QUESTIONS))
            bias = (matching_scores(questions, rows) / 0.05).repeat_interleave(3, 1)[:, None, None]
            vectors = method.network.aggregate(questions, rows.flatten(0, 1).expand(3, -1, -1), bias)
            full = method.network.prefix(vectors).embeddings
        torch.testing.assert_close(soft_prompts(method, QUESTIONS, rows), full)


@pytest.mark.parametrize("match_use", ["weight", "filter"])
def test_a_question_reads_only_its_best_matches_in_any_batch(lm: BaseModel, match_use: str) -> None:
    method = make(lm, match_use=match_use)
    rows = observed(method, TEXTS).rows
    together = method.recall(QUESTIONS, rows)
    assert together.embeddings is not None and together.entries is not None
    for i, question in enumerate(QUESTIONS):
        with torch.no_grad():
            alone = method.recall([question], rows)
            questions = method.encode(*method.question_ids([question]))
            best = matching_scores(questions, rows)[0].argsort(descending=True)[:2]
            bias = (
                None
                if match_use == "filter"
                else matching_scores(questions, rows)[0, best].repeat_interleave(3)[None] / 0.05
            )
            vectors = method.network.aggregate(
                questions, rows[best].flatten(0, 1)[None], None if bias is None else bias[:, None, None]
            )
            expected = method.network.prefix(vectors)
        assert alone.entries == [best.tolist()] == [list(together.entries[i])]
        for embeddings in (alone.embeddings, together.embeddings[i : i + 1]):
            torch.testing.assert_close(embeddings, expected.embeddings)


def test_the_order_of_the_bank_changes_nothing_but_the_places(lm: BaseModel) -> None:
    method = make(lm)
    rows = observed(method, TEXTS).rows
    order = [4, 2, 0, 5, 1, 3]
    torch.testing.assert_close(soft_prompts(method, QUESTIONS, rows), soft_prompts(method, QUESTIONS, rows[order]))
    first, second = (method.recall(QUESTIONS, bank).entries for bank in (rows, rows[order]))
    assert first is not None and second is not None
    assert [list(row) for row in first] == [[order[i] for i in row] for row in second]


def test_a_repeated_document_adds_no_entry_and_matches_are_listed_best_first(lm: BaseModel) -> None:
    method = observed(make(lm, k=3), [*TEXTS, TEXTS[2]])
    assert len(method.rows) == len(method.entries) == 6
    conditioning = method.condition([Question(str(i), text) for i, text in enumerate(QUESTIONS)])
    scores = matching_scores(method.encode(*method.question_ids(QUESTIONS)), method.rows)
    best = [[f"d{i}" for i in row] for row in scores.argsort(1, descending=True)[:, :3].tolist()]
    assert conditioning.documents == best
    assert conditioning.prefix_embeddings is not None and conditioning.prefix_embeddings[0].shape == (3, 32)


@pytest.mark.parametrize("body", ["xattn", "decoder"])
def test_padding_does_not_change_a_memory(each_lm: BaseModel, body: str) -> None:
    method = make(each_lm, body=body)
    ids = each_lm.encode(TEXTS[0])[None]
    mask = torch.ones_like(ids)
    wide = torch.nn.functional.pad(ids, (0, 40), value=7), torch.nn.functional.pad(mask, (0, 40))
    with torch.no_grad():
        torch.testing.assert_close(method.encode(ids, mask), method.encode(*wide), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("body", ["xattn", "decoder"])
def test_observing_one_by_one_gives_the_bank_of_the_batch(lm: BaseModel, body: str) -> None:
    method = observed(make(lm, body=body), TEXTS)
    with torch.no_grad():
        batch = method.encode_documents([episode.document for episode in EPISODES])
    torch.testing.assert_close(method.rows, batch, rtol=1e-4, atol=1e-4)


def test_an_empty_bank_gives_the_prefix_of_the_question_alone(lm: BaseModel) -> None:
    questions = [Question("0", QUESTIONS[0])]
    fresh = make(lm)
    fresh.reset()
    with torch.no_grad():
        memory = fresh.encode(*fresh.question_ids(QUESTIONS[:1]))
        for block in fresh.network.aggregator.blocks:
            memory = memory + block.feed_forward(memory)
        expected = fresh.network.inject(fresh.network.norm(memory)) * fresh.network.scale
    conditioning = fresh.condition(questions)
    assert conditioning.prefix_embeddings is not None and conditioning.documents == [[]]
    torch.testing.assert_close(conditioning.prefix_embeddings[0][None], expected)


def test_matching_is_the_cosine_of_mean_rows() -> None:
    questions = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])  # its mean points along (1, 0)
    memories = torch.tensor([[[0.0, 3.0], [0.0, 1.0]], [[6.0, 0.0], [0.0, 8.0]]])  # (0, 1) and (3, 4) / 5
    torch.testing.assert_close(matching_scores(questions, memories), torch.tensor([[0.0, 0.6]]))


def test_the_matching_loss_counts_every_window_of_the_own_document() -> None:
    scores = torch.tensor([2.0, 1.0, 3.0]).log()[None]
    own = torch.tensor([[True, True, False]])
    torch.testing.assert_close(infonce_loss(scores, own), torch.tensor(math.log(6 / 3)))


def test_a_question_on_an_empty_document_has_no_part_in_the_matching_loss(lm: BaseModel) -> None:
    scores, own = (
        torch.tensor([[2.0, 1.0, 3.0], [9.0, 8.0, 7.0]]).log(),
        torch.tensor([[True, True, False], [False] * 3]),
    )
    assert torch.equal(infonce_loss(scores, own), infonce_loss(scores[:1], own[:1]))
    empty = [replace(episode, document=Document(episode.document.id, "")) for episode in EPISODES[:2]]
    for episodes, matching in ((empty, 0.0), ([empty[0], EPISODES[2]], math.log(1))):
        method = make(lm, matching_weight=1.0, rename=True)
        parts = method.outer_step(episodes, [])
        assert math.isfinite(parts["loss"]) and parts["matching"] == pytest.approx(matching, abs=1e-6)
        gradients = [p.grad for p in method.learner.parameters() if p.grad is not None]
        assert any(g.any() for g in gradients) and all(g.isfinite().all() for g in gradients)


def test_the_self_matching_loss_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.1, 0.3], [0.2, 0.4, -0.8]])
    memories = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 5.0]])  # squared distances 25, 25 and 10
    own = torch.tensor([[True, False, False], [False, False, True]])
    first = -0.5 + 2 * math.log(2 * math.exp(-25))
    second = 0.8 + 2 * math.log(math.exp(-25) + math.exp(-10))
    expected = torch.tensor((first + second) / 2)
    torch.testing.assert_close(self_matching_loss(scores, memories, own, 2.0), expected)
    torch.testing.assert_close(self_matching_loss(scores, memories, own, 0.0), torch.tensor(0.15))


@pytest.mark.parametrize("repulsion", [0.0, 0.7])
def test_the_self_matching_loss_equals_its_formula(repulsion: float) -> None:
    """Several questions of a document, several entries of another, an entry without a question, a question without."""
    torch.manual_seed(0)
    questions, memories = torch.randn(5, 2, 4, dtype=torch.float64), torch.randn(6, 2, 4, dtype=torch.float64)
    owners, documents = [0, 1, 1, 2, 3, 4], [0, 0, 1, 7, 3]
    own = torch.tensor([[owner == document for owner in owners] for document in documents])
    vectors = mean_directions(memories)
    total = 0.0
    for q, document in zip(questions, documents, strict=True):
        terms = []
        for i in [i for i, owner in enumerate(owners) if owner == document]:
            cosine = torch.cosine_similarity(q.mean(0), memories[i].mean(0), dim=0).item()
            others = [j for j, owner in enumerate(owners) if owner != document]
            apart = sum(math.exp(-((vectors[i] - vectors[j]).norm().item() ** 2)) for j in others)
            terms.append(-cosine + repulsion * math.log(apart))
        total += sum(terms) / len(terms) / 4 if terms else 0.0
    loss = self_matching_loss(matching_scores(questions, memories), vectors, own, repulsion)
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_a_lone_document_is_attracted_and_not_repelled(lm: BaseModel) -> None:
    method = make(lm, preset="paper", memory_aware_weight=0)
    parts = method.outer_step(EPISODES[:1], [])
    assert -1 <= parts["matching"] <= 1
    gradients = [p.grad for p in method.learner.parameters() if p.grad is not None]
    assert any(g.any() for g in gradients) and all(g.isfinite().all() for g in gradients)


def test_self_matching_takes_the_distance_of_directions(lm: BaseModel) -> None:
    method = make(lm, matching="self_matching", repulsion=0.5)
    bank, own = torch.randn(2, 3, 32, generator=torch.manual_seed(0)) / 4, torch.eye(2, dtype=torch.bool)
    vectors = mean_directions(bank)
    expected = -0.2 - 0.5 * (vectors[0] - vectors[1]).square().sum()
    torch.testing.assert_close(method.matching_loss(torch.full((2, 2), 0.2), bank, own), expected)


def test_the_contrast_loss_equals_its_formula(lm: BaseModel) -> None:
    """Mean over answers of the mean over their tokens; padded tokens do not count."""
    generator = torch.Generator().manual_seed(0)
    memory, bare = (torch.randn(3, 4, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    targets = torch.randint(7, (3, 4), generator=generator)
    counted = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    total = 0.0
    for b in range(3):
        nll = []
        for t in range(4):
            logits = [1.5 * memory[b, t, v].item() - 0.5 * bare[b, t, v].item() for v in range(7)]
            nll.append(math.log(sum(map(math.exp, logits))) - logits[int(targets[b, t])])
        total += sum(n * int(c) for n, c in zip(nll, counted[b], strict=True)) / int(counted[b].sum()) / 3
    loss = make(lm, contrast=0.5).memory_aware_loss(memory, bare, targets, counted)
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_the_memory_aware_loss_by_hand(lm: BaseModel) -> None:
    memory, bare = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    targets, counted = torch.tensor([[0]]), torch.tensor([[1]])
    contrast = make(lm, contrast=0.5).memory_aware_loss(memory, bare, targets, counted)
    assert contrast.item() == pytest.approx(math.log1p(math.exp(-2)))  # of the logits (1.5, -0.5)


def test_the_outer_loss_is_the_sum_of_its_weighted_parts(lm: BaseModel) -> None:
    parts = make(lm, matching_weight=2.0, memory_aware_weight=0.25).outer_step(EPISODES[:2], EPISODES[2:4])
    assert parts["loss"] == pytest.approx(
        parts["answer_nll"] + 0.25 * parts["memory_aware"] + 2 * parts["matching"], rel=1e-5
    )
    assert set(make(lm, memory_aware_weight=0).outer_step(EPISODES[:2], EPISODES)) == {"loss", "answer_nll"}


def test_the_alignment_may_be_trained_alone_at_first(lm: BaseModel) -> None:
    method = make(lm, align=0.5, aligned_first=0.5, matching_weight=2.0)
    parts = method.outer_step(EPISODES[:2], [])
    assert parts["loss"] == pytest.approx(0.5 * parts["alignment"] + 2 * parts["matching"], rel=1e-5)
    assert all(p.grad is None for p in method.network.inject.parameters()), "the base was not read"
    method.progress = 0.5
    parts = method.outer_step(EPISODES[:2], [])
    assert set(parts) == {"loss", "answer_nll", "memory_aware", "alignment", "matching"}
    assert all(p.grad is not None for p in method.network.inject.parameters())


def test_the_memory_aware_loss_may_take_the_place_of_the_answer_loss(lm: BaseModel) -> None:
    settings = {"memory_aware_use": "replace", "matching_weight": 2.0}
    parts = make(lm, memory_aware_weight=0.25, **settings).outer_step(EPISODES[:2], [])
    assert parts["loss"] == pytest.approx(0.25 * parts["memory_aware"] + 2 * parts["matching"], rel=1e-5)
    parts = make(lm, memory_aware_weight=0, **settings).outer_step(EPISODES[:2], [])
    assert parts["loss"] == pytest.approx(parts["answer_nll"] + 2 * parts["matching"], rel=1e-5)


def test_the_preset_has_the_parts_of_the_paper() -> None:
    config = Cmt.Config(preset="paper")
    t, sizes = config.training, CompressionTraining().model_dump().keys() - PAPER.keys()
    assert (t.body, t.injection, t.prefix_positions) == ("decoder", "kv", None)
    assert (t.k, t.match_use, t.queue, t.force_gold) == (None, "filter", 0, 0), "training reads all of its batch"
    assert (t.memory_aware_use, t.memory_aware_weight) == ("replace", 1)
    assert (t.matching, t.matching_weight) == ("self_matching", 1)
    assert config.k == 16 and not t.rename
    assert t.model_dump(include=sizes) == CompressionTraining().model_dump(include=sizes)


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ({}, {"memory_aware", "matching"}),
        ({"memory_aware_weight": 0}, {"matching"}),
        ({"matching_weight": 0}, {"memory_aware"}),
    ],
)
def test_each_loss_of_the_preset_can_be_switched_off(lm: BaseModel, off: dict[str, Any], left: set[str]) -> None:
    parts = make(lm, preset="paper", **off).outer_step(EPISODES[:3], [])
    assert parts.keys() == {"loss", "answer_nll"} | left
    terms = left if "memory_aware" in left else left | {"answer_nll"}
    assert parts["loss"] == pytest.approx(sum(parts[term] for term in terms), rel=1e-5)


def test_the_preset_filters_after_training_alone(lm: BaseModel) -> None:
    method = make(lm, preset="paper")
    results: list[tuple[Tensor, Tensor]] = []
    aggregate = method.aggregate
    method.aggregate = lambda *inputs: results.append(aggregate(*inputs)) or results[-1]  # type: ignore
    method.outer_step(EPISODES, [])
    assert results[0][1].shape == (6, 6)
    assert len(method.network.queue) == 0
    observed(method, TEXTS)
    matched = method.condition([Question("0", QUESTIONS[0])]).documents
    assert matched is not None and len(matched[0]) == 2


def test_the_preset_without_a_filter_reads_the_whole_bank(lm: BaseModel) -> None:
    rows = observed(make(lm, preset="paper"), TEXTS).rows
    results = []
    for k in (None, 6, 9, 5):
        method = make(lm, k=k, preset="paper")
        with torch.no_grad():
            questions = method.encode(*method.question_ids(QUESTIONS))
            full = method.network.prefix(method.network.aggregate(questions, rows.flatten(0, 1)[None]))
            pair = [
                torch.stack([torch.stack(layer) for layer in prefix.key_values or ()])
                for prefix in (method.recall(QUESTIONS, rows), full)
            ]
        results.append(torch.allclose(*pair, rtol=1e-4, atol=1e-5))
    assert results == [True, True, True, False]


def test_each_vector_makes_one_position_of_every_layer(lm: BaseModel) -> None:
    torch.manual_seed(0)
    head, vectors = AlignmentHead((3, 2, 5), 8, 4), torch.randn(2, 4, 8)
    with torch.no_grad():
        layers = head(vectors)
        for layer, sides in enumerate(layers):
            for side, states in enumerate(sides):
                assert states.shape == (2, 2, 4, 5)
                slot = 2 * layer + side
                for b, p in ((0, 0), (1, 3)):
                    alone = vectors[b, p].expand(1, 6, 8)
                    torch.testing.assert_close(states[b, :, p].flatten(), head.nets(alone)[0, slot])


def test_the_answer_loss_alone_trains_the_matching_if_it_weights_rows(lm: BaseModel) -> None:
    gradients = []
    for match_use in ("weight", "filter"):
        method = make(lm, match_use=match_use, memory_aware_weight=0)
        rows = method.encode_documents([episode.document for episode in EPISODES]).detach()
        questions = method.encode(*method.question_ids(QUESTIONS)).detach()
        scores = matching_scores(questions, rows).requires_grad_()
        vectors, _ = method.aggregate(questions, rows, scores, scores.detach(), 4)
        prefix = method.network.prefix(vectors)
        assert prefix.embeddings is not None
        prefix.embeddings.square().sum().backward()
        gradients.append(0.0 if scores.grad is None else scores.grad.abs().sum().item())
    assert gradients[0] > 0 and gradients[1] == 0


def test_the_own_document_is_forced_among_the_best_at_first(lm: BaseModel) -> None:
    method = make(lm, k=None, force_gold=1.0, queue=0)
    method.config.training.__dict__["k"] = 1
    results: list[tuple[Tensor, Tensor]] = []
    aggregate = method.aggregate
    method.aggregate = lambda *inputs: results.append(aggregate(*inputs)) or results[-1]  # type: ignore
    method.outer_step(EPISODES, EPISODES)
    assert results[0][1].tolist() == [[i] for i in range(6)]
    method.progress = 1.0
    method.outer_step(EPISODES, EPISODES)
    assert not torch.equal(results[1][1], results[0][1])


def test_two_questions_of_a_document_share_its_entry(lm: BaseModel) -> None:
    document = EPISODES[0].document
    questions = tuple(Question(str(i), text) for i, text in enumerate(QUESTIONS))
    method = make(lm, questions_per_document=2, queue=4)
    method.outer_step([Episode(document, questions, (("1",), ("2",), ("3",))), EPISODES[1]], EPISODES)
    assert (method.network.queue_owners >= 0).sum() == 2


def test_the_queue_keeps_the_newest_memories_without_gradient(lm: BaseModel) -> None:
    network = make(lm, queue=3).network
    value = torch.arange(1.0, 5.0)[:, None, None].expand(4, 3, 32).clone().requires_grad_()
    numbers = torch.tensor([7, 0, 8, 9])

    def distractors(*owners: int) -> list[float]:
        memories, theirs = network.distractors(torch.tensor(owners, dtype=torch.int64))
        values = memories[:, 0, 0].tolist()
        assert [int(numbers[int(value) - 1]) for value in values] == theirs.tolist() and not memories.requires_grad
        return values

    assert distractors() == []
    network.enqueue(value[:2], numbers[:2])
    assert distractors() == [1, 2]
    network.enqueue(value[2:], numbers[2:])
    assert distractors() == [3, 4, 1]
    assert distractors(9, 5) == [3, 1], "a queued memory of one of the documents is left out"


def test_distractors_of_the_queue_change_the_loss(lm: BaseModel) -> None:
    losses = []
    for queue in (0, 5):
        method = make(lm, queue=queue)
        for part in (EPISODES[:2], EPISODES[2:4]):
            torch.manual_seed(0)
            method.learner.zero_grad()
            losses.append(method.outer_step(part, part)["loss"])
    assert losses[0] == losses[2] and losses[1] != losses[3], "the first step finds the queue empty, the second not"


@pytest.mark.parametrize("matching", ["infonce", "self_matching"])
def test_no_memory_of_a_document_is_a_wrong_answer_to_its_own_question(lm: BaseModel, matching: str) -> None:
    """Neither that of an earlier step in the queue, nor that of the same text elsewhere in the step."""
    losses = []
    for queue in (0, 5):
        method = make(lm, queue=queue, matching=matching, matching_weight=1.0)
        for _ in range(2):
            torch.manual_seed(0)
            losses.append(method.outer_step(EPISODES[:2], []))
    assert all(parts == losses[0] for parts in losses), "the second step finds no distractor in the queue"
    copy = replace(EPISODES[0], document=replace(EPISODES[0].document, id="copy"))
    matched = make(lm, matching=matching, matching_weight=1.0).outer_step([EPISODES[0], copy], [])["matching"]
    assert matched == pytest.approx(0) if matching == "infonce" else -1 <= matched <= 1, "one document, none beside it"


def test_questions_and_answers_beyond_the_window_are_trained_on_what_fits(each_lm: BaseModel) -> None:
    long = [
        replace(EPISODES[0], questions=(Question("q", QUESTIONS[1] * 20),)),
        replace(EPISODES[1], answers=((TEXT[0] * 9,),)),
        EPISODES[2],
    ]
    for settings in ({}, {"injection": "kv"}):
        assert math.isfinite(make(each_lm, **settings).outer_step(long, [])["memory_aware"])


def test_a_killed_training_resumes_exactly_with_its_queue(lm: BaseModel, tmp_path: Path) -> None:
    def make_trainer(steps: int, file: Path) -> Trainer:
        method = make(lm, steps=4, validate_every=2, queue=5, warmup=0)
        trainer = Trainer(method, EPISODES, EPISODES[:2], file, "cmt")
        trainer._is_finished = lambda: trainer.step >= steps  # type: ignore[method-assign]
        return trainer

    make_trainer(3, tmp_path / "half").run()
    resumed, whole = make_trainer(4, tmp_path / "half"), make_trainer(4, tmp_path / "whole")
    network, other = resumed.method.learner, whole.method.learner
    assert isinstance(network, CmtNetwork) and isinstance(other, CmtNetwork)
    assert resumed.step == 2 and (network.queue_owners >= 0).sum() == 4, "the third step was not saved"
    for trainer in (resumed, whole):
        trainer.run()
    ours, theirs = resumed.best, whole.best
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and resumed.curve == whole.curve
    assert torch.equal(network.queue, other.queue) and torch.equal(network.queue_owners, other.queue_owners)
    assert not any("queue" in name for name in theirs), "what is kept in the end is without the queue"


@pytest.mark.parametrize("settings", [{}, {"injection": "kv"}, {"preset": "paper"}])
def test_neither_training_nor_streaming_touches_the_base(each_lm: BaseModel, settings: dict[str, Any]) -> None:
    before = each_lm.weights_hash()
    method = make(each_lm, steps=2, validate_every=1, matching_weight=0.1, warmup=0, **settings)
    method.outer_step(EPISODES, EPISODES)
    learning = {name for name, p in method.learner.named_parameters() if p.grad is not None and p.grad.any()}
    method.fit(EPISODES)
    observed(method, TEXTS)
    method.condition([Question("0", QUESTIONS[0])])
    assert each_lm.weights_hash() == before and all(p.grad is None for p in each_lm.model.parameters())
    assert {name.split(".")[0] for name in learning} >= {"compressor", "aggregator", "inject"}


def test_untrained_adapters_change_nothing_and_are_removed_after_reading(each_lm: BaseModel) -> None:
    method = make(each_lm, body="decoder")
    body = method.network.compressor
    assert isinstance(body, DecoderCompressor) and len(body.lora.targets) == len(body.lora.ups) > 0
    ids = each_lm.encode(TEXTS[0])[None]
    with torch.no_grad():
        inputs = torch.cat([each_lm.embeddings(ids), body.soft_tokens[None]], 1)
        expected = each_lm.model.base_model(inputs_embeds=inputs).last_hidden_state[:, -3:]
        torch.testing.assert_close(method.encode(ids, torch.ones_like(ids)), expected)
        for up in body.lora.ups:
            torch.nn.init.normal_(up.weight)
        assert not torch.allclose(method.encode(ids, torch.ones_like(ids)), expected)
        again = each_lm.model.base_model(inputs_embeds=inputs).last_hidden_state[:, -3:]
    assert torch.equal(again, expected)


def test_the_decoder_body_leaves_room_for_its_soft_tokens(each_lm: BaseModel) -> None:
    method = observed(make(each_lm, body="decoder"), [TEXT[0] * 9])
    pieces = method.windows(Document("long", TEXT[0] * 9))
    assert len(method.rows) == len(pieces) > 1 and max(map(len, pieces)) == each_lm.window - 3


def test_key_value_prefixes_have_the_shape_of_the_base(each_lm: BaseModel) -> None:
    questions = [Question(str(i), text) for i, text in enumerate(QUESTIONS)]
    for positions, length in ((2, 2), (None, 3)):
        method = observed(make(each_lm, injection="kv", prefix_positions=positions), TEXTS)
        conditioning = method.condition(questions)
        assert conditioning.prefix_embeddings is None
        assert [p.prefix_length for p in build_prompts(each_lm, questions, conditioning, 4)] == [length] * 3


def test_renaming_replaces_the_tokens_that_a_question_shares_with_its_document_alone(lm: BaseModel) -> None:
    method = make(lm, rename=True)
    ids = [torch.tensor(row) for row in ([0, 5, 7, 9], [0, 5, 8, 9], [0, 6, 6])]
    questions = {"first": [7, 9, 4], "second": [8, 7], "third": [6, 5]}
    lm.encode = lambda text: torch.tensor(questions[text])  # type: ignore[method-assign]
    with torch.no_grad(), method.renaming([ids[:1], ids[1:2], ids[2:]], list(enumerate(questions))):
        assert method.substitutes is not None
        tokens, vectors = method.substitutes
        assert tokens.tolist() == [6, 7, 8], "not 9, which is in two documents, nor tokens of the question alone"
        text = torch.tensor([[5, 7, 6]])
        states = lm.embeddings(text).clone()
        states[0, 1:] = vectors[[1, 0]]
        memory = method.encode(text, torch.ones_like(text))
        lm.embeddings = lambda _: states  # type: ignore[method-assign]
    with torch.no_grad():
        assert method.substitutes is None
        torch.testing.assert_close(method.encode(text, torch.ones_like(text)), memory)
    with pytest.raises(pydantic.ValidationError, match="xattn"):
        make(lm, rename=True, body="decoder")


EMBLEMS = ("beetle", "hare", "plough", "comet", "sunflower", "dolphin", "hawthorn", "windmill")


def emblems(names: list[str], rng: random.Random) -> list[Episode]:
    """Sixteen firms with emblems drawn anew, so that earlier emblems are of no use."""
    return [
        Episode(
            Document(name, f"The logo of {name} shows a {emblem}."),
            (Question(name, f"What is on the logo of {name}?"),),
            ((emblem,),),
        )
        for name in rng.sample(names, 16)
        for emblem in [rng.choice(EMBLEMS)]
    ]


def test_in_a_toy_world_answers_come_from_the_memory() -> None:
    rows = (ROOT / "datasets/newsworld/train.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    names, rng = list(dict.fromkeys(json.loads(row)["group"] for row in rows)), random.Random(0)
    settings = {"heads": 6, "head_width": 32, "compressor_blocks": 1, "aggregator_blocks": 1, "queue": 0}
    training = {"memory_tokens": 2, "hidden": 64, "matching_weight": 1.0, "memory_aware_weight": 0.0, **settings}
    method = Cmt(BaseModel.load(str(ROOT / "bench/models/nano")), Cmt.Config(training=training))
    optimizer = torch.optim.Adam(method.learner.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        method.outer_step(emblems(names, rng), [])
        torch.nn.utils.clip_grad_norm_(method.learner.parameters(), 1.0)
        optimizer.step()
    world = emblems(names, rng)
    observed(method, [episode.document.text for episode in world])
    pairs = [(episode.questions[0].text, episode.answers[0][0]) for episode in world]
    with torch.no_grad():
        full, others, empty = (
            method.nll(pairs, bank).mean().item()
            for bank in (
                method.rows,
                method.encode_documents([e.document for e in emblems(names, rng)]),
                method.rows[:0],
            )
        )
        gold = sum(method.nll([pair], method.rows[i : i + 1]).item() for i, pair in enumerate(pairs)) / len(pairs)
    assert gold <= full + 0.02 and full < 0.7 and min(others, empty) > math.log(8)
    matched = method.condition([Question(str(i), text) for i, (text, _) in enumerate(pairs)]).documents
    assert matched is not None and [row[0] for row in matched] == [f"d{i}" for i in range(16)]
