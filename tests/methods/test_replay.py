"""replay: the gradient of new and old documents, and a uniform sample of the stream in the buffer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import Document
from bench.lm.base_model import BaseModel, TokenBatch
from methods.joint import Joint
from methods.parts.document_buffer import BufferedMethod
from methods.replay import Replay
from tests.conftest import TEXT


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def test_a_step_follows_the_mean_loss_of_the_new_and_the_replayed_documents(lm: BaseModel) -> None:
    method = Replay(lm, Replay.Config(optimizer="sgd", learning_rate=0.1, replays=2))
    method.reset()
    method.documents = [Document(str(i), text) for i, text in enumerate(TEXT[:2])]
    new = Document("new", TEXT[2])
    loss = sum(lm.loss(document) for document in (new, *method.documents)) / 3
    names, parameters = zip(*lm.model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    expected = {n: p.detach() - 0.1 * g for n, p, g in zip(names, parameters, gradients, strict=True)}
    method.observe(new)
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)
    assert [document.id for document in method.documents] == ["0", "1", "new"]


def test_the_buffer_is_a_uniform_sample_of_all_documents(lm: BaseModel) -> None:
    method = Replay(lm, Replay.Config(buffer=3, replays=0))
    counts: Counter[str] = Counter()
    for seed in range(600):
        method.reset()
        torch.manual_seed(seed)
        for i in range(9):
            method.observe(Document(str(i), ""))
        assert len(method.documents) == 3
        counts.update(document.id for document in method.documents)
    assert all(150 <= counts[str(i)] <= 250 for i in range(9)), counts  # 200 expected; sd 11.5


def test_the_first_document_is_learned_as_by_plain_fine_tuning(lm: BaseModel) -> None:
    from methods.uniform import Uniform

    results = []
    for kind in (Uniform, Replay):
        method = kind(lm, kind.Config(optimizer="sgd", learning_rate=0.1))
        method.reset()
        method.observe(Document("d", TEXT[0]))
        results.append([p.detach().clone() for p in lm.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("kind", "config"), [(Replay, {"replays": 9}), (Joint, {"passes": 1})])
def test_segments_are_learned_again_with_their_tokens_and_one_end_of_text(
    lm: BaseModel, kind: type[BufferedMethod], config: dict[str, int]
) -> None:
    class Counts(kind):  # type: ignore[misc, valid-type]
        def loss_divisor(self, batch: TokenBatch) -> float:
            learned.append(tuple(batch.token_ids.tolist()))
            return float(super().loss_divisor(batch))

    learned: list[tuple[int, ...]] = []
    segments = lm.segments(Document("d", TEXT[0]), 7)
    first, loaded = (Counts(lm, kind.Config(end_of_text=True, **config)) for _ in range(2))
    for segment in segments:
        first.observe(segment)
    loaded.load_state_dict(first.state_dict())
    assert loaded.documents == first.documents
    for method in (first, loaded):
        learned.clear()
        method.observe(Document("new", TEXT[1]))
        method.flush()
        ends = (*lm.encode(TEXT[1]).tolist(), lm.eos_id), (*segments[-1].token_ids, lm.eos_id)
        assert sorted(learned) == sorted([*(segment.token_ids for segment in segments[:-1]), *ends])
