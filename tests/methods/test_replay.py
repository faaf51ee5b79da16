"""replay: the gradient of new and old documents, and a uniform sample of the stream in the buffer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from bench import Document
from bench.lm.base_model import BaseModel
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
