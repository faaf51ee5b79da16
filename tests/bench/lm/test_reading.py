"""Reading: a cache is equivalent to the text that was read, and no token sees later ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import Document
from bench.lm.base_model import BaseModel
from bench.lm.reading import CarriedCache, Reading
from tests.conftest import TEXT

LONG = " ".join(TEXT * 8)
SHORT = " ".join(TEXT)


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@torch.no_grad()
def read(lm: BaseModel, text: str, size: int, reading: Reading) -> Tensor:
    """Log-probabilities of a document's tokens, read in segments of ``size``."""
    segments = [lm.tokens(segment) for segment in lm.segments(Document("d", text), size)]
    return torch.cat([window for segment in segments for window in reading.log_probs(lm, segment)])


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
def test_reading_with_a_cache_equals_one_long_forward_pass(lm: BaseModel, size: int) -> None:
    expected = one_forward(lm, SHORT)
    assert len(expected) < lm.window
    torch.testing.assert_close(read(lm, SHORT, size, Reading(cache=CarriedCache())), expected, atol=1e-4, rtol=1e-4)


def test_a_long_text_read_with_a_cache_equals_the_windows_of_the_base(lm: BaseModel) -> None:
    batch, cache = lm.tokens(Document("d", LONG)), CarriedCache()
    assert len(batch) > 2 * lm.window
    with torch.no_grad():
        windows = list(Reading(cache=cache).log_probs(lm, batch))
        expected = lm.log_probs(batch.token_ids)
    assert Reading(cache=cache).windows(lm, batch) == len(windows) == len(lm.windows(len(batch), 1))
    torch.testing.assert_close(torch.cat(windows), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 20, 48, 96, 150])
def test_positions_stay_inside_the_window_and_context_is_at_least_half_of_it(lm: BaseModel, size: int) -> None:
    cache, seen = CarriedCache(), 0
    for segment in lm.segments(Document("d", LONG), size):
        batch = lm.tokens(segment)
        windows = list(cache.windows(lm, batch))
        assert (windows[0][1], windows[-1][2]) == (len(batch.context_ids), len(batch.context_ids) + len(batch))
        assert all(a[2] == b[1] for a, b in itertools.pairwise(windows)), "every token is predicted once"
        with torch.no_grad():
            list(cache.log_probs(lm, batch))
        seen += len(batch)
        held = cache.layers[0][0].shape[-2]
        assert held <= lm.window
        assert held >= min(seen, lm.window // 2), "enough context is kept"


def test_a_segment_after_a_full_window_equals_a_forward_pass_from_half_of_it(lm: BaseModel) -> None:
    cache, half = CarriedCache(), lm.window // 2
    segments = [lm.tokens(segment) for segment in lm.segments(Document("d", LONG), lm.window)]
    with torch.no_grad():
        list(cache.log_probs(lm, segments[0]))
        log_probs = next(iter(cache.log_probs(lm, segments[1])))
        ids = torch.cat([segments[0].token_ids[-half:], segments[1].token_ids])[: len(log_probs) + half]
        expected = lm.model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1).gather(1, ids[1:, None])[half - 1 :, 0]
    torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=1e-4)


def test_a_limited_context_is_begin_of_text_and_the_last_tokens(lm: BaseModel) -> None:
    segments = [lm.tokens(segment) for segment in lm.segments(Document("d", SHORT), 10)]
    before = torch.cat([segments[0].token_ids, segments[1].token_ids])[-4:]
    with torch.no_grad():
        limited = torch.cat(list(Reading(context_tokens=4).log_probs(lm, segments[2])))
        expected = lm.log_probs(segments[2].token_ids, torch.cat([torch.tensor([lm.bos_id]), before]))
        alone = torch.cat(list(Reading(context_tokens=0).log_probs(lm, segments[2])))
        assert torch.equal(alone, lm.log_probs(segments[2].token_ids))
        wide = torch.cat(list(Reading(context_tokens=1000).log_probs(lm, segments[2])))
        assert torch.equal(wide, torch.cat(list(Reading().log_probs(lm, segments[2]))))
    assert torch.equal(limited, expected)


@pytest.mark.parametrize("context", [None, 0, 5, "carry"])
def test_a_changed_token_changes_nothing_before_it(lm: BaseModel, context: int | str | None) -> None:
    def reading() -> Reading:
        return Reading(cache=CarriedCache()) if context == "carry" else Reading(context_tokens=context)  # type: ignore[arg-type]

    one, other = (read(lm, SHORT[:-1] + end, 8, reading()) for end in ".?")
    same = len(lm.encode(SHORT)) - 1
    assert torch.equal(one[:same], other[:same])
    assert not torch.equal(one, other)


def test_no_gradient_flows_into_the_cache(lm: BaseModel) -> None:
    cache = CarriedCache()
    first, second = (lm.tokens(segment) for segment in lm.segments(Document("d", SHORT), 10)[:2])
    list(cache.log_probs(lm, first))
    assert all(not tensor.requires_grad for pair in cache.layers for tensor in pair)
    before = [tensor.clone() for pair in cache.layers for tensor in pair]
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.1)
    list(cache.log_probs(lm, second))
    after = [tensor[..., :10, :] for pair in cache.layers for tensor in pair]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "later weights do not change the cache"


def test_a_segment_read_again_gives_the_same_result_and_is_cached_once(lm: BaseModel) -> None:
    cache = CarriedCache()
    first, second, third = (lm.tokens(segment) for segment in lm.segments(Document("d", SHORT), 10)[:3])
    with torch.no_grad():
        for batch in (first, second):
            once, again = (torch.cat(list(cache.log_probs(lm, batch))) for _ in range(2))
            assert torch.equal(once, again)
        assert cache.is_last_segment(second.document) and not cache.is_last_segment(first.document)
        torch.cat(list(cache.log_probs(lm, third)))
    assert cache.layers[0][0].shape[-2] == 30


def test_a_new_document_starts_with_an_empty_cache(lm: BaseModel) -> None:
    cache = CarriedCache()
    used = [read(lm, text, 10, Reading(cache=cache)) for text in (TEXT[0], SHORT)][1]
    assert torch.equal(used, read(lm, SHORT, 10, Reading(cache=CarriedCache())))


def test_a_cache_can_be_saved_between_segments(lm: BaseModel) -> None:
    first, second = (lm.tokens(segment) for segment in lm.segments(Document("d", SHORT), 10)[:2])
    cache, resumed = CarriedCache(), CarriedCache()
    with torch.no_grad():
        list(cache.log_probs(lm, first))
        resumed.load_state_dict(cache.state_dict())
        whole, rest = (torch.cat(list(one.log_probs(lm, second))) for one in (cache, resumed))
    assert torch.equal(whole, rest)
    resumed.load_state_dict({})
    assert resumed.layers == ()
