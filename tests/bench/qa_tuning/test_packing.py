"""Packing: items in one row have the losses that they have alone, and each sees its document and itself only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bench.answering.prompts import answer_ids, build_prompts
from bench.conformance import fixtures
from bench.contract.method import Conditioning
from bench.data.documents import Episode, episodes
from bench.lm.base_model import BaseModel
from bench.qa_tuning.packing import Item, items, pack, packed_losses, unpacked_losses, why_not_packed
from tests.tiny_models import tiny_base

EPISODE = episodes(fixtures.entries(1))[0]
BOTH = range(2)


def all_items(lm: BaseModel) -> list[Item]:
    return [item for flag in (True, False) for item in items(lm, EPISODE, BOTH, flag)]


def ids(*tokens: int) -> torch.Tensor:
    return torch.tensor(tokens)


def test_a_pack_by_hand() -> None:
    document = (9, 1, 2)  # 9 is the begin token
    row = pack([Item(ids(*document, 3, 4), ids(5, 8)), Item(ids(*document, 6), ids(7, 8)), Item(ids(9, 3), ids(5, 8))])
    assert row.ids.tolist() == [9, 1, 2, 3, 4, 5, 6, 7, 3, 5]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 1, 2]
    assert row.places.tolist() == [4, 5, 6, 7, 8, 9]
    assert row.targets.tolist() == [5, 8, 7, 8, 5, 8]
    assert row.items.tolist() == [0, 0, 1, 1, 2, 2]
    seen = [[place for place in range(10) if row.visible[token, place]] for token in (2, 5, 7, 9)]
    assert seen == [[0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7], [0, 8, 9]]


def test_a_single_item_is_a_plain_row() -> None:
    row = pack([Item(ids(9, 1, 2), ids(3, 4, 8))])
    assert row.ids.tolist() == [9, 1, 2, 3, 4]
    assert row.positions.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(row.visible, torch.ones(5, 5, dtype=torch.bool).tril())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon"])
def test_packed_losses_and_gradients_are_those_of_each_item_alone(architecture: str) -> None:
    lm = tiny_base(architecture)
    lm.model.double()
    own = all_items(lm)
    alone = torch.cat([unpacked_losses(lm, [item]) for item in own])
    together = packed_losses(lm, own)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)
    parameters = list(lm.model.parameters())
    pairs = [torch.autograd.grad(loss.sum(), parameters, allow_unused=True) for loss in (together, alone)]
    for ours, expected in zip(*pairs, strict=True):
        if expected is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)  # norms are computed in float32


def test_rows_of_unequal_length_read_together_have_the_losses_of_each_alone() -> None:
    lm = fixtures.base_model()
    lm.model.double()
    own = all_items(lm)
    assert len({len(item.prompt) + len(item.answer) for item in own}) > 1
    expected = torch.cat([unpacked_losses(lm, [item]) for item in own])
    torch.testing.assert_close(unpacked_losses(lm, own), expected, rtol=1e-10, atol=1e-10)


def test_the_items_are_what_the_harness_asks() -> None:
    lm = fixtures.base_model()
    question, golds = EPISODE.questions[1], EPISODE.answers[1]
    (item,) = items(lm, EPISODE, [1], True)
    (prompt,) = build_prompts(lm, [question], Conditioning(text=[EPISODE.document.text]), 16)
    assert torch.equal(item.prompt, prompt.ids)
    assert torch.equal(item.answer, answer_ids(lm, [question.text], [min(golds, key=len)])[0])
    (closed,) = items(lm, EPISODE, [1], False)
    assert torch.equal(closed.prompt, build_prompts(lm, [question], Conditioning(), 16)[0].ids)


def test_a_long_document_is_cut_as_the_harness_cuts_it_and_a_question_that_does_not_fit_is_left_out() -> None:
    lm = fixtures.base_model()
    document = dataclasses.replace(EPISODE.document, text=EPISODE.document.text * 40)
    (item,) = items(lm, dataclasses.replace(EPISODE, document=document), [0], True)
    assert len(item.prompt) == lm.window - 16
    question = dataclasses.replace(EPISODE.questions[0], text="why " * 2 * lm.window)
    assert items(lm, Episode(EPISODE.document, (question,), (("x",),)), [0], True) == []


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("llama", None), ("mistral", "does not read items in one row"), ("bloom", "takes no mask of its own")],
)
def test_a_base_that_does_not_read_the_mask_is_noticed(architecture: str, reason: str | None) -> None:
    """Mistral's attention has a window here: a row with a mask of its own would be read without it."""
    lm = tiny_base(architecture)
    answer = why_not_packed(lm, all_items(lm))
    assert (answer is None) if reason is None else (answer is not None and reason in answer)
