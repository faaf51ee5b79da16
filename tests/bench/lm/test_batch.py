"""A batch with a cache and one without give the same logits, however their rows are continued."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.lm.batch import CachedBatch, RereadBatch, Row
from tests.tiny_models import tiny_base

LM = tiny_base("llama")


def tokens(*values: int) -> Tensor:
    return torch.tensor(values)


def without_padding(logits: Tensor, mask: Tensor) -> Tensor:
    return logits[mask.bool()]


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 10**6)), max_size=3),
    prefix=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_both_batches_give_the_same_logits(lengths: list[int], steps: list[tuple[int, int]], prefix: int) -> None:
    rows = [
        Row(torch.arange(n) * 7 % 50 + 1, LM.embeddings(tokens(*range(prefix))) if prefix else None) for n in lengths
    ]
    cached, reread = CachedBatch(LM, rows), RereadBatch(LM, rows)
    torch.testing.assert_close(cached.read(1), reread.read(1), atol=1e-4, rtol=1e-4)
    for width, seed in steps:
        generator = torch.Generator().manual_seed(seed)
        keep = [i for i in range(len(lengths)) if torch.rand(1, generator=generator) < 0.7] or [0]
        lengths = [lengths[i] for i in keep]
        copies = cached.copy(), reread.copy()
        ids = torch.randint(1, 60, (len(keep), width), generator=generator)
        for batch in (cached, reread):
            batch.select(keep)
            batch.extend(ids, torch.ones_like(ids))
        torch.testing.assert_close(cached.read(width), reread.read(width), atol=1e-4, rtol=1e-4)
        end = torch.full((len(copies[0].mask), 3), 5)
        mask = torch.ones_like(end)
        mask[0, 1:] = 0  # the first row gets one token, and padding
        logits = []
        for batch in copies:
            batch.extend(end, mask)
            logits.append(without_padding(batch.read(3), mask))
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [CachedBatch, RereadBatch])
@torch.no_grad()
def test_a_copy_is_continued_by_itself(build: Callable[[BaseModel, list[Row]], CachedBatch | RereadBatch]) -> None:
    batch = build(LM, [Row(tokens(1, 2, 3)), Row(tokens(4))])
    batch.read(1)
    copy = batch.copy()
    copy.select([1])
    copy.extend(tokens(9)[None], tokens(1)[None])
    copy.read(1)
    pair = torch.tensor([[5], [6]])
    batch.extend(pair, torch.ones_like(pair))
    expected = LM.model(input_ids=tokens(4, 6)[None]).logits[0, -1]
    torch.testing.assert_close(batch.read(1)[1, 0], expected, atol=1e-4, rtol=1e-4)


def test_key_value_prefixes_need_a_cache() -> None:
    pair = torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)
    with pytest.raises(BenchError, match="LlamaForCausalLM takes no key/value prefixes"):
        RereadBatch(LM, [Row(tokens(1, 2), key_values=[pair, pair])])
