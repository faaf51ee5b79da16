"""Modules of the memory-bank methods: cross-attention from questions to the rows of a bank, and prefix heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, each (B, key/value heads, positions, head size)."""


class CrossBlock(nn.Module):
    """Pre-norm cross-attention to the rows of a bank, then a pre-norm feed-forward net (GELU), both residual."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.row_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, heads * head_width, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head_width, width, bias=False)
        # at the start, a query attends to the rows most similar to it and passes their values on unchanged
        nn.init.orthogonal_(self.query.weight)
        nn.init.orthogonal_(self.value.weight)
        with torch.no_grad():
            self.key.weight.copy_(self.query.weight)
            self.out.weight.copy_(self.value.weight.T)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries (B, T, width) after attending to rows (B or 1, R, width); with R = 0, only the feed-forward net acts.

        ``bias``, (B or 1, heads or 1, T or 1, R), is added to the attention logits. -inf hides a row; each query must
        see at least one.
        """
        if rows.shape[1]:
            queries = queries + self.attend(self.query_norm(queries), self.row_norm(rows), bias)
        outputs: Tensor = queries + self.feed_forward(queries)
        return outputs

    def attention_weights(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Attention weights of queries (B, T, width) over rows (R, width): (B, heads, T, R), each row sums to 1."""
        q = self.query(self.query_norm(queries)).unflatten(-1, (self.heads, -1))  # (B, T, heads, head width)
        k = self.key(self.row_norm(rows)).unflatten(-1, (self.heads, -1))  # (R, heads, head width)
        weights: Tensor = (torch.einsum("bthw,rhw->bhtr", q, k) * k.shape[-1] ** -0.5).softmax(-1)
        return weights

    def attend(self, queries: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        """The attention alone, (B, T, width)."""
        batch, length = queries.shape[:2]
        q, k, v = (  # (B, heads, T, head width) and twice (B or 1, heads, R, head width)
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(queries), self.key(rows), self.value(rows))
        )
        shared = len(rows) == 1
        if shared:  # one long row of queries, so that the rows need not be copied for each question
            q = q.transpose(0, 1).flatten(1, 2)[None]  # (1, heads, B * T, head width)
            if bias is not None and (bias.shape[0], bias.shape[2]) != (1, 1):
                expanded = bias.expand(batch, -1, length, -1)  # (B, heads or 1, T, R)
                bias = expanded.transpose(0, 1).flatten(1, 2)[None]  # (1, heads or 1, B * T, R)
        outputs = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if shared:
            outputs = outputs[0].unflatten(1, (batch, length)).transpose(0, 1)  # (B, heads, T, head width)
        projected: Tensor = self.out(outputs.transpose(1, 2).flatten(2))  # (B, T, width)
        return projected


class Aggregator(nn.Module):
    """A stack of cross-attention blocks without positions, so the order of the rows has no effect."""

    def __init__(self, blocks: int, width: int, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, heads, head_width, hidden) for _ in range(blocks))

    def forward(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries after all blocks, (B, T, width); see :meth:`CrossBlock.forward`."""
        for block in self.blocks:
            queries = block(queries, rows, bias)
        return queries

    def attention_weights(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Attention weights of the first block over rows (R, width): (B, heads, T, R)."""
        first = self.blocks[0]
        assert isinstance(first, CrossBlock)
        return first.attention_weights(queries, rows)


class PerPositionNets(nn.Module):
    """A residual net (LayerNorm, linear, activation, linear) with separate weights for each position.

    If the widths differ, the residual path is a linear map, also separate for each position.
    """

    def __init__(
        self, positions: int, width: int, hidden: int, out: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.activation = activation
        self.scale, self.shift = nn.Parameter(torch.ones(positions, width)), nn.Parameter(torch.zeros(positions, width))
        self.first, self.second = (
            nn.Parameter(torch.empty(positions, fan_in, fan_out).uniform_(-(fan_in**-0.5), fan_in**-0.5))
            for fan_in, fan_out in ((width, hidden), (hidden, out))
        )
        self.first_bias = nn.Parameter(torch.zeros(positions, hidden))
        self.second_bias = nn.Parameter(torch.zeros(positions, out))
        self.skip = None if width == out else nn.Parameter(torch.randn(positions, width, out) * width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, positions, width) -> (B, positions, out)."""
        normed = functional.layer_norm(x, x.shape[-1:]) * self.scale + self.shift  # (B, positions, width)
        inner = self.activation(torch.einsum("bpw,pwh->bph", normed, self.first) + self.first_bias)
        residual = x if self.skip is None else torch.einsum("bpw,pwo->bpo", x, self.skip)
        outputs: Tensor = residual + torch.einsum("bph,pho->bpo", inner, self.second) + self.second_bias
        return outputs


class PrefixHead(nn.Module):
    """Key/value prefixes from T vectors. Each (layer, key or value, position) is a slot with a net for it alone.

    The vectors are repeated, in order, to fill the slots. If T does not divide the number of slots, the first vectors
    are repeated once more than the others. ``base_shape`` is :attr:`BaseModel.key_value_shape`.
    """

    def __init__(self, base_shape: tuple[int, int, int], tokens: int, width: int, hidden: int, positions: int) -> None:
        super().__init__()
        layers, heads, head_size = base_shape
        self.shape = (layers, 2, positions, heads, head_size)
        slots = layers * 2 * positions
        times, rest = divmod(slots, tokens)
        repeats = torch.tensor([times + (i < rest) for i in range(tokens)])
        self.source: Tensor  # (slots,), the vector that each slot is made from
        self.register_buffer("source", torch.arange(tokens).repeat_interleave(repeats), persistent=False)
        self.nets = PerPositionNets(slots, width, hidden, heads * head_size, functional.gelu)

    def forward(self, vectors: Tensor) -> KeyValues:
        """(B, T, width) -> the prefix of every layer."""
        slots = self.nets(vectors[:, self.source])  # (B, layers * 2 * positions, heads * head size)
        slots = slots.unflatten(-1, self.shape[-2:]).unflatten(1, self.shape[:3])
        layers = slots.permute(1, 2, 0, 4, 3, 5)  # (layers, key or value, B, heads, positions, head size)
        return [(layer[0], layer[1]) for layer in layers]


class AlignmentHead(nn.Module):
    """Key/value prefixes from m vectors: each makes one position of every layer.

    Each (layer, key or value) has a net of its own. ``base_shape`` is :attr:`BaseModel.key_value_shape`.
    """

    def __init__(self, base_shape: tuple[int, int, int], width: int, hidden: int) -> None:
        super().__init__()
        layers, heads, head_size = base_shape
        self.shape = (layers, 2, heads, head_size)
        self.nets = PerPositionNets(layers * 2, width, hidden, heads * head_size, functional.gelu)

    def forward(self, vectors: Tensor) -> KeyValues:
        """(B, m, width) -> the prefix of every layer, with m positions."""
        inputs = vectors.flatten(0, 1)[:, None].expand(-1, self.shape[0] * 2, -1)  # (B * m, layers * 2, width)
        outputs = self.nets(inputs).view(*vectors.shape[:2], *self.shape)  # (B, m, layers, 2, heads, head size)
        layers = outputs.permute(2, 3, 0, 4, 1, 5)  # (layers, key or value, B, heads, m, head size)
        return [(layer[0], layer[1]) for layer in layers]
