"""Reading: what is remembered stands for what was read, and nothing looks ahead."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import Document
from bench.lm.base_model import BaseModel
from bench.lm.reading import Memory, Reading
from tests.conftest import TEXT

LONG = " ".join(TEXT * 8)
SHORT = " ".join(TEXT)


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@torch.no_grad()
def read(lm: BaseModel, text: str, size: int, reading: Reading) -> Tensor:
    """Log-probabilities of a document's tokens, read in segments of ``size``."""
    pieces = [lm.tokens(piece) for piece in lm.segments(Document("d", text), size)]
    return torch.cat([part for piece in pieces for part in reading.log_probs(lm, piece)])


@torch.no_grad()
def one_forward(lm: BaseModel, text: str) -> Tensor:
    ids = torch.cat([torch.tensor([lm.bos_id]), lm.encode(text)])
    log_probs = lm.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
    return log_probs.gather(1, ids[1:, None])[:, 0]


def test_by_default_a_text_is_read_as_the_base_reads_it(lm: BaseModel) -> None:
    for text in (SHORT, LONG):
        batch = lm.tokens(Document("d", text))
        with torch.no_grad():
            assert torch.equal(torch.cat(list(Reading().log_probs(lm, batch))), lm.log_probs(batch.token_ids))
        assert Reading().windows(lm, batch) == len(lm.windows(len(batch), 1))


@pytest.mark.parametrize("size", [1, 7, 50])
def test_what_is_remembered_equals_one_long_forward(lm: BaseModel, size: int) -> None:
    expected = one_forward(lm, SHORT)
    assert len(expected) < lm.window
    torch.testing.assert_close(read(lm, SHORT, size, Reading(memory=Memory())), expected, atol=1e-4, rtol=1e-4)


def test_a_whole_long_text_is_remembered_window_by_window_as_the_base_reads_it(lm: BaseModel) -> None:
    batch, memory = lm.tokens(Document("d", LONG)), Memory()
    assert len(batch) > 2 * lm.window
    with torch.no_grad():
        pieces = list(Reading(memory=memory).log_probs(lm, batch))
        expected = lm.log_probs(batch.token_ids)
    assert Reading(memory=memory).windows(lm, batch) == len(pieces) == len(lm.windows(len(batch), 1))
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 20, 48, 96, 150])
def test_positions_stay_inside_the_window_and_context_above_half_of_it(lm: BaseModel, size: int) -> None:
    memory, seen = Memory(), 0
    for piece in lm.segments(Document("d", LONG), size):
        batch = lm.tokens(piece)
        windows = list(memory.windows(lm, batch))
        assert (windows[0][1], windows[-1][2]) == (len(batch.context_ids), len(batch.context_ids) + len(batch))
        assert all(a[2] == b[1] for a, b in itertools.pairwise(windows)), "every token is predicted once"
        with torch.no_grad():
            list(memory.log_probs(lm, batch))
        seen += len(batch)
        held = memory.layers[0][0].shape[-2]
        assert held <= lm.window
        assert held >= min(seen, lm.window // 2), "enough is remembered"


def test_a_segment_that_reads_a_full_window_again_equals_that_window(lm: BaseModel) -> None:
    memory, half = Memory(), lm.window // 2
    pieces = [lm.tokens(piece) for piece in lm.segments(Document("d", LONG), lm.window)]
    with torch.no_grad():
        list(memory.log_probs(lm, pieces[0]))
        found = next(iter(memory.log_probs(lm, pieces[1])))
        ids = torch.cat([pieces[0].token_ids[-half:], pieces[1].token_ids])[: len(found) + half]
        expected = lm.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[half - 1 :, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_limited_context_is_begin_of_text_and_the_last_tokens(lm: BaseModel) -> None:
    pieces = [lm.tokens(piece) for piece in lm.segments(Document("d", SHORT), 10)]
    before = torch.cat([pieces[0].token_ids, pieces[1].token_ids])[-4:]
    with torch.no_grad():
        found = torch.cat(list(Reading(context_tokens=4).log_probs(lm, pieces[2])))
        expected = lm.log_probs(pieces[2].token_ids, torch.cat([torch.tensor([lm.bos_id]), before]))
        alone = torch.cat(list(Reading(context_tokens=0).log_probs(lm, pieces[2])))
        assert torch.equal(alone, lm.log_probs(pieces[2].token_ids))
        wide = torch.cat(list(Reading(context_tokens=1000).log_probs(lm, pieces[2])))
        assert torch.equal(wide, torch.cat(list(Reading().log_probs(lm, pieces[2]))))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("context", [None, 0, 5, "carry"])
def test_a_changed_token_changes_nothing_before_it(lm: BaseModel, context: int | str | None) -> None:
    def reading() -> Reading:
        return Reading(memory=Memory()) if context == "carry" else Reading(context_tokens=context)  # type: ignore[arg-type]

    one, other = (read(lm, SHORT[:-1] + end, 8, reading()) for end in ".?")
    same = len(lm.encode(SHORT)) - 1
    assert torch.equal(one[:same], other[:same])
    assert not torch.equal(one, other)


def test_no_gradient_flows_into_what_is_remembered(lm: BaseModel) -> None:
    memory = Memory()
    first, second = (lm.tokens(piece) for piece in lm.segments(Document("d", SHORT), 10)[:2])
    list(memory.log_probs(lm, first))
    assert all(not tensor.requires_grad for pair in memory.layers for tensor in pair)
    remembered = [tensor.clone() for pair in memory.layers for tensor in pair]
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.1)
    list(memory.log_probs(lm, second))
    kept = [tensor[..., :10, :] for pair in memory.layers for tensor in pair]
    assert all(torch.equal(a, b) for a, b in zip(remembered, kept, strict=True)), "later weights change no memory"


def test_a_segment_read_again_finds_what_it_found_and_is_remembered_once(lm: BaseModel) -> None:
    memory = Memory()
    first, second, third = (lm.tokens(piece) for piece in lm.segments(Document("d", SHORT), 10)[:3])
    with torch.no_grad():
        for batch in (first, second):
            once, again = (torch.cat(list(memory.log_probs(lm, batch))) for _ in range(2))
            assert torch.equal(once, again)
        assert memory.holds(second.document) and not memory.holds(first.document)
        torch.cat(list(memory.log_probs(lm, third)))
    assert memory.layers[0][0].shape[-2] == 30


def test_a_new_document_starts_without_memory(lm: BaseModel) -> None:
    memory = Memory()
    used = [read(lm, text, 10, Reading(memory=memory)) for text in (TEXT[0], SHORT)][1]
    assert torch.equal(used, read(lm, SHORT, 10, Reading(memory=Memory())))


def test_a_memory_can_be_saved_between_segments(lm: BaseModel) -> None:
    first, second = (lm.tokens(piece) for piece in lm.segments(Document("d", SHORT), 10)[:2])
    memory, resumed = Memory(), Memory()
    with torch.no_grad():
        list(memory.log_probs(lm, first))
        resumed.load_state_dict(memory.state_dict())
        whole, rest = (torch.cat(list(one.log_probs(lm, second))) for one in (memory, resumed))
    assert torch.equal(whole, rest)
    resumed.load_state_dict({})
    assert resumed.layers == ()
