"""MBC: the codebook, and a bank that is a histogram of its codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import Document
from bench.base_model import BaseModel
from bench.meta import Trainer
from methods.mbc import Codebook, Mbc
from tests.conftest import TEXT
from tests.methods.test_mac import EPISODES, SMALL


def make(lm: BaseModel, seed: int = 0, **settings: object) -> Mbc:
    method = Mbc(lm, Mbc.Config(training={**SMALL, "codes": 5, **settings}), seed)
    with torch.no_grad():
        method.codebook.vectors.copy_(torch.randn(method.codebook.vectors.shape, generator=torch.manual_seed(1)))
    method.reset()
    return method


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


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
    rows = method.rows_of(EPISODES * 3)[0].detach().double()
    rows = rows + torch.randn(rows.shape, generator=torch.manual_seed(0))
    for row in rows:
        method.remember(row[None])
    codes = method.codebook.nearest(rows)
    assert method.counts.tolist() == torch.bincount(codes.flatten(), minlength=5).tolist()
    queries = torch.randn(4, 3, 32).double()
    flat = method.aggregator(queries, method.codebook.vectors[codes].flatten(0, 1)[None])
    taken = method.counts.nonzero()[:, 0]
    logs = method.counts[taken].double().log()[None, None, None]
    counted = method.aggregator(queries, method.codebook.vectors[taken][None], logs)
    assert (flat - counted).abs().max() < 1e-12


def test_a_question_recalls_the_same_from_counts_and_from_rows(lm: BaseModel) -> None:
    method = make(lm)
    rows = method.bank_of([e.document for e in EPISODES]).detach()
    for episode in EPISODES:
        method.observe(episode.document)
    from_rows, from_counts = (method.recall(["Who?"], bank).key_values for bank in (rows, method.kept()))
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
    quantized, codes = method.stored(rows)
    assert torch.equal(codes, method.codebook.nearest(rows))
    torch.testing.assert_close(quantized, method.codebook.vectors[codes])
    quantized.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows)) and method.codebook.vectors.grad is None


def test_the_codebooks_loss_by_hand(lm: BaseModel) -> None:
    method = make(lm, codes=1, least_usage=0)
    rows = method.codebook.vectors.detach() + torch.full((2, 1, 32), 2.0)
    rows.requires_grad_(True)
    loss = method.penalty(rows, torch.zeros(2, 1, dtype=torch.long))
    assert loss.item() == pytest.approx(4 + 0.25 * 4)
    loss.backward()
    torch.testing.assert_close(rows.grad, torch.full((2, 1, 32), 0.25 * 2 * 2.0 / 64))
    torch.testing.assert_close(method.codebook.vectors.grad, torch.full((1, 32), -2 * 2.0 / 32))


def test_codes_that_no_row_takes_are_replaced_by_rows() -> None:
    book = Codebook(3, 2)
    with torch.no_grad():
        book.vectors.copy_(torch.tensor([[1.0, 0], [50, 50], [60, 60]]))
        book.usage.copy_(torch.tensor([0.9, 0.1, 1e-5]))
    rows = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    book.revive(rows, torch.tensor([[0, 0]]), decay=0.5, least=0.01)
    assert book.vectors[:2].tolist() == [[1, 0], [50, 50]]
    assert book.vectors[2].tolist() in rows[0].tolist()
    mean = (0.95 + 0.05 + 5e-6) / 3
    torch.testing.assert_close(book.usage, torch.tensor([0.95, 0.05, mean]))


def test_a_training_step_looks_up_its_codes_once(lm: BaseModel) -> None:
    method = make(lm, backprop_ratio=0.5)
    looked_up: list[torch.Size] = []
    whole = method.codebook.nearest

    def nearest(rows: torch.Tensor) -> torch.Tensor:
        looked_up.append(rows.shape)
        return whole(rows)

    method.codebook.nearest = nearest  # type: ignore[method-assign]
    method.outer_step(EPISODES, [])
    assert looked_up == [(4, 3, 32)]


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
