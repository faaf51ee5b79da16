"""knn_lm: the mixture by hand, and likelier text where the stream repeats itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import Document
from bench.data.documents import Entry
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods.closed_book import ClosedBook
from methods.knn_lm import KnnLm
from tests.conftest import TEXT


@pytest.fixture(scope="module")
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def test_the_mixture_is_that_of_the_nearest_states_votes(lm: BaseModel) -> None:
    method = KnnLm(lm, KnnLm.Config(k=2, share=0.4, temperature=0.5))
    method.reset()
    width = lm.model.config.hidden_size
    method.keys = torch.zeros(3, width)
    method.keys[:, 0] = torch.tensor([1.0, 2.0, 9.0])
    method.tokens = torch.tensor([5, 6, 6])
    base = torch.randn(1, len(lm.tokenizer), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    mixture = method.mix_next_token(base, torch.zeros(1, width), torch.tensor([3])).exp()[0]
    near = torch.tensor([-1 / 0.5, -4 / 0.5]).exp()  # squared distances 1 and 4; the third state is too far
    votes = near / near.sum()
    expected = 0.6 * base.exp()[0]
    expected[5] += 0.4 * votes[0]
    expected[6] += 0.4 * votes[1]
    torch.testing.assert_close(mixture, expected)


def test_the_text_of_a_stream_is_likelier_than_closed_book_once_it_repeats_itself(lm: BaseModel) -> None:
    documents = [Document(f"d{i}", f"{text} {i // 3}") for i in range(2) for text in TEXT]
    entries = [Entry(document) for document in documents]
    nll = {}
    for kind in (ClosedBook, KnnLm):
        loop = Loop(kind(lm), entries, documents)
        loop.run()
        nll[kind] = [event.nll or 0.0 for event in loop.document_events]
    assert nll[KnnLm][0] == pytest.approx(nll[ClosedBook][0]), "nothing is stored yet"
    assert all(knn < 0.9 * closed for knn, closed in zip(nll[KnnLm][3:], nll[ClosedBook][3:], strict=True))


def test_distances_follow_the_bank_when_it_grows_is_loaded_or_is_reset(lm: BaseModel) -> None:
    method, fresh = KnnLm(lm), KnnLm(lm)
    method.reset()
    ids, hidden = lm.encode(TEXT[0]), torch.ones(1, lm.model.config.hidden_size)
    base = torch.zeros(1, len(lm.tokenizer)).log_softmax(-1)

    def mixture(knn: KnnLm) -> torch.Tensor:
        return knn.mix_next_token(base, hidden, ids)

    states, mixtures = [method.state_dict()], [mixture(method)]
    for text in TEXT[:2]:
        method.observe(Document(text, text))
        states.append(method.state_dict())
        mixtures.append(mixture(method))
    for state, expected in zip(states, mixtures, strict=True):
        for knn in (method, fresh):
            knn.load_state_dict(state)
            assert torch.equal(mixture(knn), expected)
    method.reset()
    assert torch.equal(mixture(method), base)
