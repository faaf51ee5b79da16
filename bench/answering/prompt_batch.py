"""Batches of prompts: padding, key/value cache, greedy decoding and the likelihood of given answers.

Shapes: B rows (one per prompt, or two with contrast prompts), T tokens, P prefix positions, V vocabulary, C hidden
size, H key/value heads, D head size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bench.lm.base_model import BaseModel, decode

if TYPE_CHECKING:
    from bench.answering.prompts import Prompt


class PaddedBatch:
    """A left-padded batch with its cache: token ids or embeddings, mask, positions, and key/value prefixes.

    If any prompt has a contrast prompt, the contrast prompts follow as the second half of the batch.
    """

    def __init__(self, lm: BaseModel, prompts: Sequence[Prompt]) -> None:
        self.contrast: Tensor | None = None
        if any(p.contrast_prompt is not None for p in prompts):
            contrast = torch.tensor([p.contrast for p in prompts], device=lm.device)
            self.contrast = contrast[:, None, None]  # (prompts, 1, 1)
            prompts = [*prompts, *(p if p.contrast_prompt is None else p.contrast_prompt for p in prompts)]
        rows = [p.ids for p in prompts]
        soft = any(p.prefix is not None for p in prompts)
        lengths = [len(row) + (p.prefix_length if soft else 0) for row, p in zip(rows, prompts, strict=True)]
        width = max(lengths)
        self.mask = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)  # (B, T)
        ids = torch.full((len(rows), width), lm.eos_id, device=lm.device)  # (B, T)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = row
            self.mask[i, width - lengths[i] :] = 1
        self.inputs: dict[str, Tensor] = {"input_ids": ids}
        if soft:
            embedded = lm.embeddings(ids).clone()  # (B, T, C)
            for i, prompt in enumerate(prompts):
                if prompt.prefix is not None:
                    end = width - len(rows[i])
                    embedded[i, end - len(prompt.prefix) : end] = prompt.prefix.to(embedded)
            self.inputs = {"inputs_embeds": embedded}
        self.cache: Any = DynamicCache(config=lm.model.config)
        if any(p.key_values for p in prompts):
            self._fill_cache(lm, prompts)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]  # (B, T)

    def _fill_cache(self, lm: BaseModel, prompts: Sequence[Prompt]) -> None:
        longest = max(p.prefix_length for p in prompts)
        layers = next(len(p.key_values) for p in prompts if p.key_values)
        for layer in range(layers):
            pairs = [p.key_values[layer] if p.key_values else None for p in prompts]  # each (H, prefix length, D)
            like = next(pair for pair in pairs if pair is not None)
            keys, values = (
                tensor.new_zeros(len(prompts), tensor.shape[0], longest, tensor.shape[-1])  # (B, H, P, D)
                for tensor in like
            )
            for i, pair in enumerate(pairs):
                if pair is not None:
                    start = longest - pair[0].shape[-2]
                    keys[i, :, start:], values[i, :, start:] = pair
            self.cache.update(keys.to(lm.model.dtype), values.to(lm.model.dtype), layer)
        prefix_mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=lm.device)  # (B, P)
        for i, prompt in enumerate(prompts):
            prefix_mask[i, longest - prompt.prefix_length :] = 1
        self.mask = torch.cat([prefix_mask, self.mask], dim=1)  # (B, P + T)

    def extend(self, ids: Tensor, mask: Tensor, window: int) -> None:
        """Set the tokens to read next, after those in the cache: ``ids`` and ``mask`` (0 for padding), (prompts, T).

        Padding is on the right. It may reach beyond the window, where positions are undefined.
        """
        if self.contrast is not None:
            ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)  # (B, T)
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)  # (T,)
        self.inputs = {"input_ids": ids}
        self.mask = torch.cat([self.mask, mask], dim=1)  # (B, tokens in the cache + T)
        self.positions = (self.positions[:, -1:] + steps).clamp(max=window - 1)  # (B, T)

    def select(self, indices: Sequence[int]) -> None:
        """Keep only the prompts with these indices."""
        rows = torch.tensor(indices, device=self.mask.device)
        if self.contrast is not None:
            half = len(self.contrast)
            self.contrast, rows = self.contrast[rows], torch.cat([rows, half + rows])
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def copy(self) -> PaddedBatch:
        """Copy the batch, so that it can be continued in more than one way."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        # these layers replace their tensors as they grow; others may write into them
        replacing = (DynamicLayer, DynamicSlidingWindowLayer)
        other.cache.layers = [
            copy.copy(layer) if type(layer) in replacing else copy.deepcopy(layer) for layer in self.cache.layers
        ]
        return other


def forward(
    lm: BaseModel, inputs: Mapping[str, Tensor], mask: Tensor, positions: Tensor, cache: Any, keep: int
) -> Tensor:
    """Logits at the last ``keep`` positions of left-padded rows, shape (B, keep, V), float32."""
    options = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(lm.model.forward).parameters else {}
    output = lm.model(
        **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **options
    )
    logits: Tensor = output.logits[:, -keep:].float()  # (B, keep, V)
    return logits


def logits_of(lm: BaseModel, batch: PaddedBatch, keep: int) -> Tensor:
    """Logits at the last ``keep`` positions, (prompts, keep, V), contrasted if there are contrast prompts."""
    logits = forward(lm, batch.inputs, batch.mask, batch.positions, batch.cache, keep)  # (B, keep, V)
    if batch.contrast is None:
        return logits
    logits, contrast_logits = logits.chunk(2)  # (prompts, keep, V) each
    return (1 + batch.contrast) * logits - batch.contrast * contrast_logits


class Prefill:
    """A batch of prompts that the model has read. Decoding and likelihoods both continue from its cache."""

    def __init__(self, lm: BaseModel, prompts: Sequence[Prompt]) -> None:
        self.lm = lm
        self.batch = PaddedBatch(lm, prompts)
        self.logits = logits_of(lm, self.batch, 1)  # (prompts, 1, V)

    def greedy_answers(self, max_new_tokens: int) -> list[str]:
        """Greedy continuation of every prompt until it stops; finished prompts leave the batch."""
        stops = self.lm.newline_ids | {self.lm.eos_id}
        batch, logits = self.batch.copy(), self.logits
        written: list[list[int]] = [[] for _ in logits]
        alive = list(range(len(written)))
        for step in range(1, max_new_tokens + 1):
            tokens = logits[:, -1].argmax(-1)  # (prompts alive,)
            going = [k for k, token in enumerate(tokens.tolist()) if token not in stops]
            for k in going:
                written[alive[k]].append(int(tokens[k]))
            if not going or step == max_new_tokens:
                break
            if len(going) < len(alive):
                batch.select(going)
                tokens = tokens[torch.tensor(going, device=tokens.device)]
                alive = [alive[k] for k in going]
            batch.extend(tokens[:, None], batch.mask.new_ones(len(alive), 1), self.lm.window)
            logits = logits_of(self.lm, batch, 1)  # (prompts alive, 1, V)
        return [decode(self.lm.tokenizer, ids) for ids in written]

    def mean_nll(self, targets: Sequence[Tensor]) -> list[float]:
        """Mean -log p (nats) over the tokens of each prompt's target."""
        inputs = [target[:-1] for target in targets]  # the last token is predicted, not read
        ids = pad_sequence(inputs, batch_first=True, padding_value=self.lm.eos_id)  # (prompts, T)
        logits = self.logits
        if ids.shape[1]:
            batch = self.batch.copy()
            batch.extend(ids, pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True), self.lm.window)
            logits = torch.cat([logits, logits_of(self.lm, batch, ids.shape[1])], dim=1)  # (prompts, 1 + T, V)
        return [
            functional.cross_entropy(row[: len(target)], target).item()
            for row, target in zip(logits, targets, strict=True)
        ]
