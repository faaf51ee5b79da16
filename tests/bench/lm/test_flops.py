"""Counting of floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.lm.base_model import BaseModel
from bench.lm.flops import FlopCounter, ReadingMeter
from tests.conftest import TEXT

A, B, V = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True), torch.ones(4)
AB = 2 * 3 * 4 * 5


def gradients(lm: BaseModel) -> list[Tensor]:
    lm.model.zero_grad()
    lm.log_probs(lm.encode(TEXT[0])).sum().backward()
    return [parameter.grad.clone() for parameter in lm.model.parameters()]


def first_order() -> None:
    (A @ B).sum().backward()


def second_order() -> None:
    """The product C, its gradient dA = dC B', and back: through dA towards dC, and through C towards A."""
    (first,) = torch.autograd.grad((A @ B).square().sum(), A, create_graph=True)
    first.square().sum().backward(inputs=[A])


def under_inference_mode() -> None:
    with torch.inference_mode():
        torch.nn.functional.linear(A, B.T, torch.ones(5))


@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda: A @ B, AB),
        (lambda: A @ V, 2 * 3 * 4),
        (lambda: torch.einsum("nij,njk->nik", A.expand(7, 3, 4), B.expand(7, 4, 5)), 7 * AB),
        (first_order, 3 * AB),
        (second_order, 4 * AB),
        (lambda: torch.func.grad(lambda a: (a @ B).square().sum())(A), 2 * AB),
        (lambda: torch.func.vmap(torch.mv, (None, 0))(A, V.expand(5, 4)), AB),
        (under_inference_mode, AB),
        (lambda: A + A, 0),
    ],
)
def test_products_are_counted(run: Callable[[], object], flops: int) -> None:
    with FlopCounter() as counter:
        run()
    assert counter.flops == flops


def test_counters_can_be_nested_and_entered_again() -> None:
    inner = FlopCounter()
    with FlopCounter() as outer:
        with inner:
            A @ B
        A @ B
        with inner:
            A @ B
    assert (inner.flops, outer.flops) == (2 * AB, 3 * AB)


def test_the_counts_of_a_model_are_those_of_pytorch_and_change_no_bit(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    with FlopCounter() as fused:
        counted = gradients(lm)
    assert all(torch.equal(a, b) for a, b in zip(counted, gradients(lm), strict=True))
    lm.model.set_attn_implementation("eager")  # PyTorch has no formula for the fused kernel of CPUs
    with FlopCounter() as counter, FlopCounterMode(display=False) as reference:
        gradients(lm)
    assert counter.flops == reference.get_total_flops() > 0
    assert fused.flops > counter.flops, "the backward pass of the fused kernel computes the scores again"


def test_the_meter_is_near_the_count_for_the_base_and_adds_no_hook(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    hooks = [len(module._forward_pre_hooks) for module in lm.model.modules()]
    with FlopCounter() as counter, ReadingMeter(lm) as meter, torch.no_grad():
        lm.log_probs(lm.encode(TEXT[0]))
        cache = lm.model(lm.encode(TEXT[1])[None], use_cache=True).past_key_values
        lm.model(inputs_embeds=lm.embeddings(lm.encode(TEXT[2])[None]), past_key_values=cache)
    assert meter.flops == pytest.approx(counter.flops, rel=0.03)
    assert meter.backward == 0
    with FlopCounter() as counter, ReadingMeter(lm) as meter:
        gradients(lm)
    assert meter.flops + meter.backward == pytest.approx(counter.flops, rel=0.03)
    assert [len(module._forward_pre_hooks) for module in lm.model.modules()] == hooks
