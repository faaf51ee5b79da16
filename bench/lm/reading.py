"""Reading: the context that a document's tokens are predicted from, both for scoring and for learning."""

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
    """Context of a segment: by default all tokens before it in its document, or half a window if not all fit into one.

    ``context_tokens`` limits it to that number of tokens. With a ``cache`` the segment attends to the keys and values
    of earlier segments instead of reading their tokens again.
    """

    context_tokens: int | None = None
    cache: CarriedCache | None = None

    def log_probs(self, lm: BaseModel, batch: TokenBatch) -> Iterator[Tensor]:
        """Log-probabilities of the batch's tokens, one window at a time; see :meth:`BaseModel.window_log_probs`."""
        if self.cache is not None:
            return self.cache.log_probs(lm, batch)
        batch = self._limit_context(batch)
        return lm.window_log_probs(batch.token_ids, batch.context_ids)

    def windows(self, lm: BaseModel, batch: TokenBatch) -> int:
        """Number of windows in which the batch is read."""
        if self.cache is not None:
            return len(list(self.cache.windows(lm, batch)))
        batch = self._limit_context(batch)
        return len(lm.windows(len(batch), len(batch.context_ids)))

    def _limit_context(self, batch: TokenBatch) -> TokenBatch:
        begin, before = batch.context_ids[:1], batch.context_ids[1:]
        if self.context_tokens is None or len(before) <= self.context_tokens:
            return batch
        return replace(batch, context_ids=torch.cat([begin, before[len(before) - self.context_tokens :]]))


class CarriedCache:
    """Keys and values of a document's segments, computed when each segment was read (Dai et al. 2019).

    No gradient flows into them, and later updates of the weights do not change them. Positions continue from segment
    to segment. Before they would leave the model's window, the last half window is read again from position 0, so that
    positions stay in the trained range. A text that fits into the window is read once. A new document starts empty.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Empty the cache."""
        self.layers: Layers = ()
        self._before: Layers = ()
        self._segment: Document | None = None

    def is_last_segment(self, document: Document) -> bool:
        """True if this is the segment that was read last."""
        return document is self._segment

    def log_probs(self, lm: BaseModel, batch: TokenBatch) -> Iterator[Tensor]:
        """Log-probabilities of the batch's tokens, one window at a time, differentiable if gradients are enabled.

        A segment is added to the cache when it is first read. When it is read again, it sees the cache from before it.
        """
        ids = torch.cat([batch.context_ids, batch.token_ids])
        is_reread, layers = self.is_last_segment(batch.document), self._initial_layers(batch)
        windows = list(self.windows(lm, batch))
        self._before, self._segment = layers, batch.document
        for overlap, first, stop in windows:
            if overlap is not None:
                with torch.no_grad():
                    _, layers = continue_layers(lm, ids[first - 1 - overlap : first - 1], ())
            logits, layers = continue_layers(lm, ids[first - 1 : stop - 1], layers, ids[: stop - 1])
            yield -torch.nn.functional.cross_entropy(logits, ids[first:stop], reduction="none")
        if not is_reread:
            self.layers = layers

    def windows(self, lm: BaseModel, batch: TokenBatch) -> Iterator[tuple[int | None, int, int]]:
        """(tokens of context to read again or None, first predicted, end) of each window; see BaseModel.windows.

        The last token before a window is its first input. The cache ends before that token.
        """
        half = max(1, lm.window // 2)
        layers = self._initial_layers(batch)
        held = layers[0][0].shape[-2] if layers else 0  # tokens in the cache
        first = len(batch.context_ids)
        end = first + len(batch)
        while first < end:
            overlap = None
            if held + end - first > lm.window and held >= half:
                overlap = held = min(half, first) - 1
            stop = min(end, first + lm.window - held)
            yield overlap, first, stop
            held += stop - first
            first = stop

    def _initial_layers(self, batch: TokenBatch) -> Layers:
        if self.is_last_segment(batch.document):
            return self._before
        return self.layers if len(batch.context_ids) > 1 else ()

    def state_dict(self) -> dict[str, Tensor]:
        """Copy of the keys and values by layer."""
        pairs = {f"{i}.{side}": pair[k] for i, pair in enumerate(self.layers) for k, side in enumerate(_SIDES)}
        return {name: tensor.clone() for name, tensor in pairs.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that :meth:`state_dict` returned."""
        self.clear()
        keys, values = ([state[f"{i}.{side}"].clone() for i in range(len(state) // 2)] for side in _SIDES)
        self.layers = tuple(zip(keys, values, strict=True))


_SIDES = ("keys", "values")


def continue_layers(lm: BaseModel, ids: Tensor, layers: Layers, text: Tensor | None = None) -> tuple[Tensor, Layers]:
    """Logits of ``ids`` after the cached tokens, (tokens, vocabulary) in float32, and the keys and values of both.

    The logits are mixed if ``text`` is given: all that was read, up to the end of ``ids``.
    """
    if not len(ids):
        return ids.new_zeros((0, 0), dtype=torch.float32), ()
    cache: Any = DynamicCache()
    for i, (keys, values) in enumerate(layers):
        cache.update(keys, values, i)
    held = cache.get_seq_length()
    positions = torch.arange(held, held + len(ids), device=lm.device)
    logits, hidden = lm.read(input_ids=ids[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
    logits = logits[0].float()
    if lm.mixes and text is not None:
        logits = lm.mixed(logits, hidden[0], text)
    return logits, tuple((layer.keys.detach(), layer.values.detach()) for layer in cache.layers)
