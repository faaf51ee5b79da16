"""The partial isometry: its gradient, and the number of singular values that it keeps."""

from __future__ import annotations

import pytest
import torch

from methods.parts.partial_isometry import PartialIsometry, rank_mask


@pytest.mark.parametrize("rank", [2, 5])
def test_the_gradient_of_the_partial_isometry_equals_finite_differences(rank: int) -> None:
    state = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: PartialIsometry.apply(s, rank, False), state)


def test_equal_singular_values_leave_the_gradient_finite() -> None:
    state = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).requires_grad_()
    PartialIsometry.apply(state, 3, False).square().sum().backward()
    assert torch.isfinite(state.grad).all()
    exact = torch.eye(4).mul_(2).requires_grad_()
    PartialIsometry.apply(exact, 2, False).sum().backward()
    assert torch.isfinite(exact.grad).all(), "even where the cut is between equal ones"


def test_the_rank_is_counted_from_the_largest_singular_value() -> None:
    assert rank_mask(torch.tensor([5.0, 4.0, 3.0, 0.0]), 2).tolist() == [1, 1, 0, 0]
    assert rank_mask(torch.tensor([5.0, 4.0, 3e-7, 0.0]), 4).tolist() == [1, 1, 0, 0]
    assert rank_mask(torch.zeros(3), 2).tolist() == [0, 0, 0]
