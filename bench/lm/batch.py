"""Batches of rows that a base reads once and then continues, token by token or several tokens at a time.

:class:`CachedBatch` keeps what was read in the cache of transformers, and pads the rows to one length.
:class:`RereadBatch` reads each row anew, alone: slow, and right for every causal model.

Shapes: B rows, T tokens, P prefix positions, V vocabulary, C hidden size, H key/value heads, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.lm.base_model import BaseModel

KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of every layer, each (H, P, D)."""


@dataclass(frozen=True)
class Row:
    """What a row begins with: token ids (T,), after a soft prompt (P, C) or key/value prefixes."""

    ids: Tensor
    prefix: Tensor | None = None
    key_values: KeyValues | None = None

    @property
    def prefix_length(self) -> int:
        """Positions taken by the soft prompt or the key/value prefixes."""
        if self.prefix is not None:
            return len(self.prefix)
        return self.key_values[0][0].shape[-2] if self.key_values else 0


class Batch(Protocol):
    """Rows that are read and continued. All have the same effect on the logits as reading each row alone."""

    def read(self, keep: int) -> Tensor:
        """Read what was not read yet: logits at its last ``keep`` positions, (B, keep, V), float32."""
        ...

    def extend(self, ids: Tensor, mask: Tensor) -> None:
        """Set the tokens to read next: ``ids`` and ``mask`` (0 for padding, which is on the right), (B, T)."""
        ...

    def select(self, indices: Sequence[int]) -> None:
        """Keep only the rows with these indices."""
        ...

    def copy(self) -> Batch:
        """Copy the batch, so that it can be continued in more than one way."""
        ...


class CachedBatch:
    """A left-padded batch with its cache: token ids or embeddings, mask, positions, and key/value prefixes."""

    def __init__(self, lm: BaseModel, rows: Sequence[Row]) -> None:
        self.lm = lm
        self.texts = [row.ids for row in rows]
        """Tokens that each row has read, without its prefix, for the next-token hook."""
        soft = any(row.prefix is not None for row in rows)
        lengths = [len(row.ids) + (row.prefix_length if soft else 0) for row in rows]
        width = max(lengths)
        self.mask = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)  # (B, T)
        ids = torch.full((len(rows), width), lm.eos_id, device=lm.device)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, width - len(row.ids) :] = row.ids
            self.mask[i, width - lengths[i] :] = 1
        self.inputs: dict[str, Tensor] = {"input_ids": ids}
        if soft:
            embedded = lm.embeddings(ids).clone()  # (B, T, C)
            for i, row in enumerate(rows):
                if row.prefix is not None:
                    end = width - len(row.ids)
                    embedded[i, end - len(row.prefix) : end] = row.prefix.to(embedded)
            self.inputs = {"inputs_embeds": embedded}
        self.cache: Any = DynamicCache(config=lm.model.config)
        if any(row.key_values for row in rows):
            self._fill_cache(rows)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]  # (B, T)

    def _fill_cache(self, rows: Sequence[Row]) -> None:
        longest = max(row.prefix_length for row in rows)
        layers = next(len(row.key_values) for row in rows if row.key_values)
        for layer in range(layers):
            pairs = [row.key_values[layer] if row.key_values else None for row in rows]  # each (H, prefix length, D)
            like = next(pair for pair in pairs if pair is not None)
            keys, values = (
                tensor.new_zeros(len(rows), tensor.shape[0], longest, tensor.shape[-1])  # (B, H, P, D)
                for tensor in like
            )
            for i, pair in enumerate(pairs):
                if pair is not None:
                    start = longest - pair[0].shape[-2]
                    keys[i, :, start:], values[i, :, start:] = pair
            self.cache.update(keys.to(self.lm.model.dtype), values.to(self.lm.model.dtype), layer)
        prefix_mask = torch.zeros(len(rows), longest, dtype=torch.long, device=self.lm.device)  # (B, P)
        for i, row in enumerate(rows):
            prefix_mask[i, longest - row.prefix_length :] = 1
        self.mask = torch.cat([prefix_mask, self.mask], dim=1)  # (B, P + T)

    def read(self, keep: int) -> Tensor:
        """Logits as :meth:`Batch.read` says."""
        logits, hidden = _forward(self.lm, self.inputs, self.mask, self.positions, self.cache, keep)
        if self.lm.mixes:
            for i, text in enumerate(self.texts):
                real = self.mask[i, -logits.shape[1] :].bool()  # (keep,), False at padding
                logits[i, real] = self.lm.mixed(logits[i, real], hidden[i, -len(real) :][real], text)
        return logits

    def extend(self, ids: Tensor, mask: Tensor) -> None:
        """Set the tokens to read next. Padding may reach beyond the window, where positions are undefined."""
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)  # (T,)
        self.inputs = {"input_ids": ids}
        self.mask = torch.cat([self.mask, mask], dim=1)  # (B, tokens in the cache + T)
        self.positions = (self.positions[:, -1:] + steps).clamp(max=self.lm.window - 1)  # (B, T)
        if self.lm.mixes:
            new = (row[real.bool()] for row, real in zip(ids, mask, strict=True))
            self.texts = [torch.cat([text, more]) for text, more in zip(self.texts, new, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Keep only the rows with these indices."""
        rows = torch.tensor(indices, device=self.mask.device)
        self.cache.reorder_cache(rows)  # unlike batch_select_indices, every kind of layer has it
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.texts = [self.texts[i] for i in indices]

    def copy(self) -> CachedBatch:
        """Copy the batch, so that it can be continued in more than one way."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        # these layers replace their tensors as they grow; others may write into them
        replacing = (DynamicLayer, DynamicSlidingWindowLayer)
        other.cache.layers = [
            copy.copy(layer) if type(layer) in replacing else copy.deepcopy(layer) for layer in self.cache.layers
        ]
        return other


class RereadBatch:
    """Rows that are read one at a time, without a cache and without padding, from their beginning each time.

    Raises:
        BenchError: a row has key/value prefixes, which need a cache.
    """

    def __init__(self, lm: BaseModel, rows: Sequence[Row]) -> None:
        if any(row.key_values for row in rows):
            raise BenchError(f"{type(lm.model).__name__} takes no key/value prefixes. Use another base.")
        self.lm = lm
        self.prefixes = [row.prefix for row in rows]
        self.ids = [row.ids for row in rows]
        self.new: list[int] | None = None
        """Tokens that :meth:`extend` added to each row."""

    def read(self, keep: int) -> Tensor:
        """Logits as :meth:`Batch.read` says; 0 at padding."""
        return torch.cat([self._read_row(i, keep) for i in range(len(self.ids))])

    def _read_row(self, i: int, keep: int) -> Tensor:
        ids, prefix = self.ids[i][None], self.prefixes[i]  # (1, tokens so far)
        inputs = {"input_ids": ids}
        if prefix is not None:
            embedded = self.lm.embeddings(ids)  # (1, tokens so far, C)
            inputs = {"inputs_embeds": torch.cat([prefix.to(embedded)[None], embedded], dim=1)}
        new = keep if self.new is None else self.new[i]
        logits, hidden = self.lm.read(new, **inputs, use_cache=False)
        logits = logits.float()  # (1, new, V); new may be 0
        if self.lm.mixes:
            logits = self.lm.mixed(logits[0], hidden[0], self.ids[i])[None]
        return functional.pad(logits, (0, 0, 0, keep - new))  # (1, keep, V)

    def extend(self, ids: Tensor, mask: Tensor) -> None:
        """Add these tokens to the rows."""
        self.new = mask.sum(1).tolist()
        self.ids = [torch.cat([old, row[:new]]) for old, row, new in zip(self.ids, ids, self.new, strict=True)]

    def select(self, indices: Sequence[int]) -> None:
        """Keep only the rows with these indices."""
        self.prefixes, self.ids = [self.prefixes[i] for i in indices], [self.ids[i] for i in indices]
        self.new = None if self.new is None else [self.new[i] for i in indices]

    def copy(self) -> RereadBatch:
        """Copy the batch, so that it can be continued in more than one way."""
        return copy.copy(self)  # no method changes a list in place


def parts_of_like_length(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in parts of so many rows, the shortest first: rows of like length have little padding together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (order[first : first + rows] for first in range(0, len(order), rows))


def forward(
    lm: BaseModel, inputs: Mapping[str, Tensor], mask: Tensor, positions: Tensor, cache: Any, keep: int
) -> Tensor:
    """Logits at the last ``keep`` positions of left-padded rows, shape (B, keep, V), float32."""
    return _forward(lm, inputs, mask, positions, cache, keep)[0]


def _forward(
    lm: BaseModel, inputs: Mapping[str, Tensor], mask: Tensor, positions: Tensor, cache: Any, keep: int
) -> tuple[Tensor, Tensor]:
    """The logits of :func:`forward`, and the hidden states of :meth:`BaseModel.read`."""
    logits, hidden = lm.read(
        keep, **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return logits.float(), hidden
