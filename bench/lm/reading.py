"""Reading: what a document's tokens are predicted from, for scoring and for learning alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bench.data.documents import Document
from bench.lm.base_model import BaseModel, TokenBatch

Layers = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of every layer, each (1, key/value heads, tokens, head size)."""


@dataclass(frozen=True)
class Reading:
    """What a segment is read behind: by default all of its document that came before, as far as the window reaches.

    ``context_tokens`` allows at most so many of the document's tokens before it. With ``memory`` they are not read
    again: the segment attends to their keys and values.
    """

    context_tokens: int | None = None
    memory: Memory | None = None

    def log_probs(self, lm: BaseModel, batch: TokenBatch) -> Iterator[Tensor]:
        """Log-probabilities of the batch's tokens, a window at a time; see :meth:`BaseModel.window_log_probs`."""
        if self.memory is not None:
            return self.memory.log_probs(lm, batch)
        batch = self._cut(batch)
        return lm.window_log_probs(batch.token_ids, batch.context_ids)

    def windows(self, lm: BaseModel, batch: TokenBatch) -> int:
        """The number of windows in which the batch is read."""
        if self.memory is not None:
            return len(list(self.memory.windows(lm, batch)))
        batch = self._cut(batch)
        return len(lm.windows(len(batch), len(batch.context_ids)))

    def _cut(self, batch: TokenBatch) -> TokenBatch:
        begin, before = batch.context_ids[:1], batch.context_ids[1:]
        if self.context_tokens is None or len(before) <= self.context_tokens:
            return batch
        return replace(batch, context_ids=torch.cat([begin, before[len(before) - self.context_tokens :]]))


class Memory:
    """Keys and values of a document's segments, as they were computed when each was read (Dai et al. 2019).

    No gradient flows into them, and later updates of the weights do not change them. Positions go on from segment to
    segment. Where they would leave the model's window, the last half window is read again from position 0, so that
    every architecture sees positions it knows; a text that fits is read once. A new document starts empty.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.layers: Layers = ()
        self._before: Layers = ()
        self._read: Document | None = None

    def holds(self, document: Document) -> bool:
        """Whether this is the segment that was read last."""
        return document is self._read

    def log_probs(self, lm: BaseModel, batch: TokenBatch) -> Iterator[Tensor]:
        """Log-probabilities of the batch's tokens, a window at a time, differentiable where gradients are enabled.

        The first time a segment is read, it is remembered; read again, it finds what it found then.
        """
        everything = torch.cat([batch.context_ids, batch.token_ids])
        again, layers = self.holds(batch.document), self._start(batch)
        windows = list(self.windows(lm, batch))
        self._before, self._read = layers, batch.document
        for kept, first, stop in windows:
            if kept is not None:
                with torch.no_grad():
                    _, layers = _forward(lm, everything[first - 1 - kept : first - 1], ())
            logits, layers = _forward(lm, everything[first - 1 : stop - 1], layers)
            yield -torch.nn.functional.cross_entropy(logits, everything[first:stop], reduction="none")
        if not again:
            self.layers = layers

    def windows(self, lm: BaseModel, batch: TokenBatch) -> Iterator[tuple[int | None, int, int]]:
        """(tokens to read again before it or None, first predicted, end) of each window, as :meth:`BaseModel.windows`.

        The last token before a window is its first input; what is remembered ends before that token.
        """
        half = max(1, lm.window // 2)
        start = self._start(batch)
        held = start[0][0].shape[-2] if start else 0
        first = len(batch.context_ids)
        end = first + len(batch)
        while first < end:
            kept = None
            if held + end - first > lm.window and held >= half:
                kept = held = min(half, first) - 1
            stop = min(end, first + lm.window - held)
            yield kept, first, stop
            held += stop - first
            first = stop

    def _start(self, batch: TokenBatch) -> Layers:
        if self.holds(batch.document):
            return self._before
        return self.layers if len(batch.context_ids) > 1 else ()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the keys and values by layer."""
        pairs = {f"{i}.{side}": pair[k] for i, pair in enumerate(self.layers) for k, side in enumerate(_SIDES)}
        return {name: tensor.clone() for name, tensor in pairs.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.clear()
        keys, values = ([state[f"{i}.{side}"].clone() for i in range(len(state) // 2)] for side in _SIDES)
        self.layers = tuple(zip(keys, values, strict=True))


_SIDES = ("keys", "values")


def _forward(lm: BaseModel, ids: Tensor, layers: Layers) -> tuple[Tensor, Layers]:
    """Logits of ``ids`` behind what is remembered, (tokens, vocabulary) in float32, and the keys and values of both."""
    if not len(ids):
        return ids.new_zeros((0, 0), dtype=torch.float32), ()
    cache: Any = DynamicCache()
    for i, (keys, values) in enumerate(layers):
        cache.update(keys, values, i)
    held = cache.get_seq_length()
    positions = torch.arange(held, held + len(ids), device=lm.device)
    output = lm.model(input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
    return output.logits[0].float(), tuple((layer.keys.detach(), layer.values.detach()) for layer in cache.layers)
