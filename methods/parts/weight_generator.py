"""The generator of one layer's weight update (Generative Adapter, Chen et al. 2024), and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.contract.meta_training import TrainingConfig
from methods.parts.partial_isometry import PartialIsometry

Encoding = Literal["sequential", "parallel", "concat"]
"""Ways to read a context: chunks in turn, each under the update from those before; each chunk by the bare base; or
chunks of a whole window by the bare base."""
Target = Literal["attention_output", "mlp_output", "both"]
"""Adapted layers of a block: the last linear layer of its attention, of its MLP, or both."""


class GeneratorTraining(TrainingConfig):
    """The generators and their training (Chen et al. 2024); the defaults are for a hidden size of 4,096."""

    steps: int = pydantic.Field(default=14332, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=64, ge=1, description="documents, with their questions, per step")
    learning_rate: float = pydantic.Field(default=1e-4, gt=0, description="of the outer optimizer, Adam")
    warmup: int = pydantic.Field(default=100, ge=0, description="outer steps in which the rate rises to learning_rate")
    target: Target = pydantic.Field(
        default="attention_output",
        description="adapted layers of each block: the last linear layer of its attention, of its MLP, or both",
    )
    blocks: tuple[pydantic.NonNegativeInt, ...] | None = pydantic.Field(
        default=None, min_length=1, description="blocks to adapt, counted from 0; null: all"
    )
    inner: int | None = pydantic.Field(default=None, ge=1, description="d_r, width of the state; null: hidden size / 4")
    rank: int | None = pydantic.Field(default=None, ge=1, description="rank kept by normalize=svd; null: d_r / 8")
    scale: float = pydantic.Field(default=1 / 16, gt=0, description="factor of the update (alpha / d_r)")
    normalize: Literal["svd", "frobenius", "none"] = pydantic.Field(
        default="svd",
        description="normalisation of the state before it becomes an update: the largest singular values set to 1 and "
        "the others to 0, a scaling to the same Frobenius norm, or none",
    )
    decomposition: Literal["exact", "randomized"] = pydantic.Field(
        default="exact", description="SVD of normalize=svd: full, or a sketch refined by one power iteration"
    )
    drop_near_equal: bool = pydantic.Field(
        default=False, description="in training, no update from a state with two nearly equal singular values"
    )
    keys: Literal["block_input", "module_input"] = pydantic.Field(
        default="block_input",
        description="source of the keys: the residual stream before the block, as for the values, or the adapted "
        "layer's own input, as for the queries",
    )
    values: Literal["token", "next_token"] = pydantic.Field(
        default="token", description="value that a token's key is bound to: its own, or the next token's"
    )
    gate: bool = pydantic.Field(
        default=False, description="weight each token's key by a sigmoid of the base's last hidden state"
    )
    encoding: Encoding = pydantic.Field(
        default="sequential",
        description="chunks are read by the base with the update from all chunks before, each by the bare base "
        "(parallel), or by the bare base in chunks of a whole window (concat)",
    )
    chunk: int = pydantic.Field(default=1024, ge=2, description="most tokens that are read at a time")
    first_documents: int = pydantic.Field(default=8, ge=1, description="most documents per state at the start")
    documents: int = pydantic.Field(default=8, ge=1, description="most documents per state at the end")
    grown: float = pydantic.Field(
        default=0.5, gt=0, le=1, description="share of the steps after which a state has its final number of documents"
    )
    questions: int = pydantic.Field(default=256, ge=1, description="most questions per step")
    qa_from: float = pydantic.Field(
        default=0.8, ge=0, le=1, description="share of the steps that train on text alone, before those on questions"
    )
    text: Literal["both", "reconstruction", "completion"] = pydantic.Field(
        default="both", description="text to predict in these steps: that in the state, what follows it, or both"
    )
    align: float = pydantic.Field(
        default=0, ge=0, description="weight of the alignment of queries with answer tokens, added to the answers' loss"
    )
    aligned_first: float = pydantic.Field(
        default=0, ge=0, le=1, description="share of the steps, at the start, that train the alignment alone"
    )
    remember: bool = pydantic.Field(
        default=False,
        description="cache the bare base's activations of each training document; a training that was killed then "
        "resumes exactly but for rounding, since it reads the documents again in other batches",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first_documents > self.documents:
            raise ValueError("first_documents must be at most documents")
        if self.remember and self.encoding == "sequential":
            raise ValueError(
                "remember needs encoding=parallel or concat: otherwise activations change from step to step"
            )
        if self.gate and self.encoding == "sequential":
            raise ValueError(
                "gate needs encoding=parallel or concat: otherwise the last hidden state comes after the update"
            )
        return self

    def documents_at(self, progress: float) -> int:
        """Most documents per state at a share of the steps; grows by a constant factor per step.

        Growth begins when the first stage, that of the alignment alone, has ended.
        """
        growth = self.documents / self.first_documents
        elapsed, duration = max(0.0, progress - self.aligned_first), max(1e-9, self.grown - self.aligned_first)
        return int(self.first_documents * growth ** min(1.0, elapsed / duration) + 0.5)


class ChunkStates(NamedTuple):
    """The states that chunks of text add to one layer, and the keys of their tokens."""

    states: Tensor  # (chunks, d_r, d_r)
    keys: Tensor  # (chunks, length, d_r)


class Generator(nn.Module):
    """The generator of one adapted layer: adds text to the layer's state S, and turns S into an update of its weights.

    With h the hidden state of a token after an RMSNorm, S is the sum over tokens of (K h)^T (V h). The update is
    scale O N^T Q, where N is the normalised S (Chen et al. 2024, equations 3 and 7 to 9; the norm is in their code
    only).
    """

    def __init__(self, hidden: int, inputs: int, outputs: int, config: GeneratorTraining) -> None:
        super().__init__()
        self.config = config
        inner = config.inner or max(1, hidden // 4)
        self.rank: int = min(inner, config.rank or max(1, inner // 8))
        key_width = inputs if config.keys == "module_input" else hidden
        self.gain = nn.Parameter(torch.ones(hidden))
        self.key_gain = nn.Parameter(torch.ones(inputs)) if config.keys == "module_input" else None
        self.K = nn.Parameter(torch.empty(inner, key_width))
        self.V = nn.Parameter(torch.empty(inner, hidden))
        self.Q = nn.Parameter(torch.empty(inner, inputs))
        self.O = nn.Parameter(torch.zeros(outputs, inner))  # no update before training
        self.gate = nn.Linear(hidden, 1) if config.gate else None
        for matrix in (self.K, self.V, self.Q):
            nn.init.kaiming_normal_(matrix, a=5**0.5)
        if config.keys == "module_input":  # queries and keys project the same input, and start out equal
            self.Q.data.copy_(self.K.data)

    def keys_and_values(
        self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens, 0 for padding; arguments as in :meth:`chunk_states`."""
        hidden, mask = hidden.to(self.gain.dtype), mask.to(self.gain.dtype)[..., None]  # mask: (rows, length, 1)
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.gain, 1e-6)  # (rows, length, hidden size)
        key_input = normed
        if self.key_gain is not None:
            key_input = functional.rms_norm(inputs.to(self.gain.dtype), inputs.shape[-1:], self.key_gain, 1e-6)
        keys, values = functional.linear(key_input, self.K) * mask, functional.linear(normed, self.V) * mask
        if self.gate is not None and last is not None:
            normed_last = functional.rms_norm(last.to(self.gain.dtype), last.shape[-1:], eps=1e-6)
            keys = keys * torch.sigmoid(self.gate(normed_last))  # gate: (rows, length, 1)
        if self.config.values == "next_token":
            keys, values = keys[:, :-1] * mask[:, 1:], values[:, 1:]  # length - 1 pairs
        return keys, values  # (rows, length, d_r) each

    def chunk_states(self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None) -> ChunkStates:
        """States of chunks, one per row.

        ``hidden`` is the block's input (rows, length, hidden size), ``inputs`` the layer's own input (rows, length,
        inputs), ``mask`` 1 for tokens and 0 for padding (rows, length), and ``last``, which only the gate needs, the
        base's last hidden state (rows, length, hidden size).
        """
        keys, values = self.keys_and_values(hidden, inputs, mask, last)
        return ChunkStates(keys.mT @ values, keys)

    def normalize(self, state: Tensor) -> Tensor:
        """N of states S, (..., d_r, d_r), and 0 for S = 0.

        Its Frobenius norm is sqrt(rank), unless ``none``; with ``svd`` it is less for a state of a lower rank.
        """
        if self.config.normalize == "none":
            return state
        if self.config.normalize == "frobenius":
            norm = torch.linalg.matrix_norm(state, keepdim=True)  # (..., 1, 1)
            norm = torch.where(norm > torch.finfo(state.dtype).tiny, norm, 1.0)  # else its gradient overflows
            scaled: Tensor = state * math.sqrt(self.rank) / norm
            return scaled
        apply: Callable[..., Tensor] = PartialIsometry.apply
        isometry: Tensor = apply(state, self.rank, self.config.decomposition == "randomized")  # (..., d_r, d_r)
        if self.config.drop_near_equal and torch.is_grad_enabled():
            isometry = isometry * self._distinct_mask(torch.linalg.svdvals(state.detach()))
        return isometry

    def _distinct_mask(self, values: Tensor) -> Tensor:
        """0 for a state with nearly equal consecutive singular values (..., d_r), else 1: (..., 1, 1)."""
        gaps = (values[..., :-1] - values[..., 1:])[..., : self.rank]
        near = (gaps < 1e-7) | (gaps < 1e-7 * values[..., :1])
        return (~near.any(-1)).to(values.dtype)[..., None, None]

    def forward(self, inputs: Tensor, normal: Tensor) -> Tensor:
        """The unmerged update's output (rows, length, outputs): inputs (rows, length, inputs), N (rows, d_r, d_r)."""
        return self.config.scale * functional.linear(self.query(inputs) @ normal, self.O)

    def query(self, inputs: Tensor) -> Tensor:
        """Queries (..., d_r) of the layer's inputs (..., inputs)."""
        return functional.linear(inputs.to(self.Q.dtype), self.Q)

    def update(self, normal: Tensor) -> Tensor:
        """The update of the layer's weights, (outputs, inputs), from N (d_r, d_r)."""
        return self.config.scale * self.O @ normal.mT @ self.Q

    def factors(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """B (outputs, rank) and A (rank, inputs) whose product is the update; the rank is d_r without ``svd``."""
        normal = self.normalize(state)
        if self.config.normalize != "svd":
            return self.config.scale * self.O, normal.mT @ self.Q
        left, values, right = torch.linalg.svd(normal)
        left, right = left[:, : self.rank] * values[: self.rank], right[: self.rank]  # (d_r, rank), (rank, d_r)
        return self.config.scale * self.O @ right.mT, left.mT @ self.Q
