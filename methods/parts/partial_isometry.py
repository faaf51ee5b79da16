"""A matrix with its largest singular values set to 1 and the others to 0, with a stable gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PartialIsometry(torch.autograd.Function):
    """U_r W_r^T of S = U s W^T: the ``rank`` largest singular values are set to 1 and all others to 0.

    The gradient is that of a function f of the singular values, with f = 1 for the ``rank`` largest and f = 0 for the
    others. With P = U^T G W it is U (d- sym P + d+ skew P) W^T, where d-_ij = (f_i - f_j) / (s_i - s_j), 0 if f_i =
    f_j, and d+_ij = (f_i + f_j) / (s_i + s_j). Singular values close to each other are harmless unless the cut is
    between them. With ``randomized`` the matrix comes from a sketch refined by one power iteration; the gradient is
    still the exact one.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rank: int, randomized: bool) -> Tensor:
        ctx.save_for_backward(state)
        ctx.rank = rank
        if randomized:
            u, s, w = torch.svd_lowrank(state, q=rank, niter=1)  # (..., d_r, rank), (..., rank), (..., d_r, rank)
            wt = w.mT
        else:
            u, s, wt = ctx.svd = torch.linalg.svd(state)  # (..., d_r, d_r), (..., d_r), (..., d_r, d_r)
        isometry: Tensor = (u * rank_mask(s, rank)[..., None, :]) @ wt  # (..., d_r, d_r)
        return isometry

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        u, s, wt = getattr(ctx, "svd", None) or torch.linalg.svd(*ctx.saved_tensors)
        f = rank_mask(s, ctx.rank)  # (..., d_r)
        p = u.mT @ gradients[0] @ wt.mT  # (..., d_r, d_r)
        tiny = torch.finfo(s.dtype).eps * s[..., :1, None].clamp_min(torch.finfo(s.dtype).tiny)  # (..., 1, 1)
        s_minus, s_plus = s[..., :, None] - s[..., None, :], s[..., :, None] + s[..., None, :]  # (..., d_r, d_r)
        f_minus, f_plus = f[..., :, None] - f[..., None, :], f[..., :, None] + f[..., None, :]  # (..., d_r, d_r)
        d_minus = torch.where((f_minus == 0) | (s_minus.abs() <= tiny), 0.0, f_minus / s_minus)
        d_plus = f_plus / s_plus.clamp_min(tiny)
        through = (d_minus * (p + p.mT) + d_plus * (p - p.mT)) / 2  # (..., d_r, d_r)
        return u @ through @ wt, None, None


def rank_mask(values: Tensor, rank: int) -> Tensor:
    """1 for the ``rank`` largest singular values unless they are numerically zero, else 0: (..., d_r), sorted."""
    negligible = values[..., :1] * values.shape[-1] * torch.finfo(values.dtype).eps
    return ((torch.arange(values.shape[-1], device=values.device) < rank) & (values > negligible)).to(values.dtype)
