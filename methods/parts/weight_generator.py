"""What a context leaves in an adapted layer: the generator of Generative Adapter (Chen et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.contract.meta_training import Training

Encoding = Literal["sequential", "parallel", "concat"]


class GeneratorTraining(Training):
    """The generator's shape, and how it is trained (Chen et al. 2024); the defaults are for 4,096 hidden units."""

    steps: int = pydantic.Field(default=14332, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=64, ge=1, description="documents, with their questions, in each")
    learning_rate: float = pydantic.Field(default=1e-4, gt=0, description="of the outer optimizer, Adam")
    warmup: int = pydantic.Field(default=100, ge=0, description="outer steps in which the rate rises to learning_rate")
    target: Literal["attention_output", "mlp_output", "both"] = pydantic.Field(
        default="attention_output", description="adapted layers of each block: the last of its attention or of its MLP"
    )
    blocks: tuple[pydantic.NonNegativeInt, ...] | None = pydantic.Field(
        default=None, min_length=1, description="blocks to adapt, from 0; null: all"
    )
    inner: int | None = pydantic.Field(default=None, ge=1, description="d_r, width of the state; null: hidden size / 4")
    rank: int | None = pydantic.Field(default=None, ge=1, description="rank that svd keeps of the state; null: d_r / 8")
    scale: float = pydantic.Field(default=1 / 16, gt=0, description="factor of the update (alpha / d_r)")
    normalize: Literal["svd", "frobenius", "none"] = pydantic.Field(
        default="svd",
        description="the state before it becomes an update: its largest singular values set to 1 and the others to 0, "
        "scaled to the same Frobenius norm, or as it is",
    )
    decomposition: Literal["exact", "randomized"] = pydantic.Field(
        default="exact", description="of normalize=svd: full, or a sketch of the rank refined by one power iteration"
    )
    drop_near_equal: bool = pydantic.Field(
        default=False, description="no update in training where two singular values are nearly equal"
    )
    keys: Literal["block_input", "module_input"] = pydantic.Field(
        default="block_input",
        description="what the keys are made of: the residual stream before the block, as are the values, or what the "
        "adapted layer itself is given, as are the queries",
    )
    values: Literal["token", "next_token"] = pydantic.Field(
        default="token", description="whose value a token's key is bound to: its own, or the next token's"
    )
    gate: bool = pydantic.Field(
        default=False, description="weigh what is written of a token by a sigmoid of the base's last hidden state there"
    )
    encoding: Encoding = pydantic.Field(
        default="sequential",
        description="chunks of the context are read by the base with the update from all before, each by the bare base "
        "(parallel), or by the bare base in chunks of a whole window (concat)",
    )
    chunk: int = pydantic.Field(default=1024, ge=1, description="most tokens that are read at a time")
    first_documents: int = pydantic.Field(default=8, ge=1, description="documents in a training state, at the start")
    documents: int = pydantic.Field(default=8, ge=1, description="documents in a training state, in the end")
    grown: float = pydantic.Field(default=0.5, gt=0, le=1, description="share of the steps after which it is the end's")
    questions: int = pydantic.Field(default=256, ge=1, description="most questions asked in a step")
    qa_from: float = pydantic.Field(
        default=0.8, ge=0, le=1, description="share of the steps before which it learns from text alone, then questions"
    )
    align: float = pydantic.Field(
        default=0, ge=0, description="weight, beside the answers' loss, of each question finding its document's answers"
    )
    aligned_first: float = pydantic.Field(
        default=0, ge=0, le=1, description="share of the steps, the first ones, that do nothing but that"
    )
    remember: bool = pydantic.Field(
        default=False, description="keep what the bare base makes of each training document in memory"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first_documents > self.documents:
            raise ValueError("first_documents must be at most documents")
        if self.remember and self.encoding == "sequential":
            raise ValueError("remember needs encoding=parallel or concat: else the base reads differently in each step")
        if self.gate and self.encoding == "sequential":
            raise ValueError(
                "gate needs encoding=parallel or concat: else the last hidden state comes after the update"
            )
        return self

    def documents_at(self, progress: float) -> int:
        """Documents in a state when a share of the steps is done: grows by the same factor from step to step.

        It begins to grow when the first stage, that of the alignment alone, has ended.
        """
        growth = self.documents / self.first_documents
        since, whole = max(0.0, progress - self.aligned_first), max(1e-9, self.grown - self.aligned_first)
        return int(self.first_documents * growth ** min(1.0, since / whole) + 0.5)


class PartialIsometry(torch.autograd.Function):
    """The matrix whose ``rank`` largest singular values are set to 1 and all others to 0: U_r W_r^T of S = U s W^T.

    The gradient is that of a spectral function of the singular values: with P = U^T G W, f = 1 for those kept, and
    divided differences d, it is U (d- sym P + d+ skew P) W^T where d-/+ _ij = (f_i -/+ f_j) / (s_i -/+ s_j), d- being 0
    where f_i = f_j. So singular values that are near each other do no harm unless the cut is between them. If it is
    ``randomized``, the matrix comes from a sketch refined by one power iteration, and the gradient is of the exact one.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rank: int, randomized: bool) -> Tensor:
        ctx.save_for_backward(state)
        ctx.rank = rank
        if randomized:
            left, values, right = torch.svd_lowrank(state, q=rank, niter=1)
            right = right.mT
        else:
            left, values, right = ctx.decomposed = torch.linalg.svd(state)
        isometry: Tensor = (left * kept_values(values, rank)[..., None, :]) @ right
        return isometry

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        left, values, right = getattr(ctx, "decomposed", None) or torch.linalg.svd(*ctx.saved_tensors)
        kept = kept_values(values, ctx.rank)
        inner = left.mT @ gradients[0] @ right.mT
        tiny = torch.finfo(values.dtype).eps * values[..., :1, None].clamp_min(torch.finfo(values.dtype).tiny)
        gap, total = values[..., :, None] - values[..., None, :], values[..., :, None] + values[..., None, :]
        jump, both = kept[..., :, None] - kept[..., None, :], kept[..., :, None] + kept[..., None, :]
        minus = torch.where((jump == 0) | (gap.abs() <= tiny), 0.0, jump / gap)
        plus = both / total.clamp_min(tiny)
        through = (minus * (inner + inner.mT) + plus * (inner - inner.mT)) / 2
        return left @ through @ right, None, None


def kept_values(values: Tensor, rank: int) -> Tensor:
    """1 for the ``rank`` largest singular values as far as they are not numerically zero, else 0."""
    negligible = values[..., :1] * values.shape[-1] * torch.finfo(values.dtype).eps
    return ((torch.arange(values.shape[-1], device=values.device) < rank) & (values > negligible)).to(values.dtype)


class Written(NamedTuple):
    """What chunks add to a layer's state, (rows, d_r, d_r), and the keys of their tokens, (rows, length, d_r)."""

    state: Tensor
    keys: Tensor


class Generator(nn.Module):
    """What one adapted layer writes of a context into its state S, and the update of its weights that S stands for.

    With H the hidden states behind an RMSNorm: S = sum over tokens of (K h)^T (V h), and the update is
    scale O N^T Q with N the normalised S (Chen et al. 2024, equations 3 and 7 to 9; the norm is in their code alone).
    """

    def __init__(self, hidden: int, inputs: int, outputs: int, plan: GeneratorTraining) -> None:
        super().__init__()
        self.plan = plan
        inner = plan.inner or max(1, hidden // 4)
        self.rank: int = min(inner, plan.rank or max(1, inner // 8))
        keyed = inputs if plan.keys == "module_input" else hidden
        self.gain = nn.Parameter(torch.ones(hidden))
        self.key_gain = nn.Parameter(torch.ones(inputs)) if plan.keys == "module_input" else None
        self.K = nn.Parameter(torch.empty(inner, keyed))
        self.V = nn.Parameter(torch.empty(inner, hidden))
        self.Q = nn.Parameter(torch.empty(inner, inputs))
        self.O = nn.Parameter(torch.zeros(outputs, inner))  # no update at the start
        self.gate = nn.Linear(hidden, 1) if plan.gate else None
        for matrix in (self.K, self.V, self.Q):
            nn.init.kaiming_normal_(matrix, a=5**0.5)
        if plan.keys == "module_input":  # queries meet the keys of what they are themselves
            self.Q.data.copy_(self.K.data)

    def associate(
        self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, (rows, length, d_r), of the same as in :meth:`write`; both are 0 for padding."""
        hidden, mask = hidden.to(self.gain.dtype), mask.to(self.gain.dtype)[..., None]
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.gain, 1e-6)
        keyed = normed
        if self.key_gain is not None:
            keyed = functional.rms_norm(inputs.to(self.gain.dtype), inputs.shape[-1:], self.key_gain, 1e-6)
        keys, values = functional.linear(keyed, self.K) * mask, functional.linear(normed, self.V) * mask
        if self.gate is not None and last is not None:
            ending = functional.rms_norm(last.to(self.gain.dtype), last.shape[-1:], eps=1e-6)
            keys = keys * torch.sigmoid(self.gate(ending))
        if self.plan.values == "next_token":
            keys, values = keys[:, :-1] * mask[:, 1:], values[:, 1:]
        return keys, values

    def write(self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None) -> Written:
        """What each chunk leaves behind: of the block's input (rows, length, hidden size), the layer's own input, a
        0/1 mask and, for the gate, the base's last hidden state."""
        keys, values = self.associate(hidden, inputs, mask, last)
        return Written(keys.mT @ values, keys)

    def normalize(self, state: Tensor) -> Tensor:
        """N of states (..., d_r, d_r); of Frobenius norm sqrt(rank) but with ``none``, and 0 of 0."""
        if self.plan.normalize == "none":
            return state
        if self.plan.normalize == "frobenius":
            norm = torch.linalg.matrix_norm(state, keepdim=True)
            scaled: Tensor = state * math.sqrt(self.rank) / norm.clamp_min(torch.finfo(state.dtype).tiny)
            return scaled
        apply: Callable[..., Tensor] = PartialIsometry.apply
        isometry: Tensor = apply(state, self.rank, self.plan.decomposition == "randomized")
        if self.plan.drop_near_equal and torch.is_grad_enabled():
            isometry = isometry * self._separate(torch.linalg.svdvals(state.detach()))
        return isometry

    def _separate(self, values: Tensor) -> Tensor:
        """0 for a state with consecutive singular values that are nearly equal, else 1: (..., 1, 1)."""
        gaps = (values[..., :-1] - values[..., 1:])[..., : self.rank]
        near = (gaps < 1e-7) | (gaps < 1e-7 * values[..., :1])
        return (~near.any(-1)).to(values.dtype)[..., None, None]

    def forward(self, inputs: Tensor, normal: Tensor) -> Tensor:
        """What the update adds to the layer's output, unmerged: inputs (rows, length, inputs), N (rows, d_r, d_r)."""
        return self.plan.scale * functional.linear(self.query(inputs) @ normal, self.O)

    def query(self, inputs: Tensor) -> Tensor:
        """Queries (..., d_r) of what the layer is given (..., inputs)."""
        return functional.linear(inputs.to(self.Q.dtype), self.Q)

    def update(self, normal: Tensor) -> Tensor:
        """The update of the layer's weights, (outputs, inputs)."""
        return self.plan.scale * self.O @ normal.mT @ self.Q

    def factors(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """B (outputs, rank) and A (rank, inputs) whose product is the update; the rank is d_r but with ``svd``."""
        normal = self.normalize(state)
        if self.plan.normalize != "svd":
            return self.plan.scale * self.O, normal.mT @ self.Q
        left, values, right = torch.linalg.svd(normal)
        left, right = left[:, : self.rank] * values[: self.rank], right[: self.rank]
        return self.plan.scale * self.O @ right.mT, left.mT @ self.Q
