"""Batches of prompts as a model reads them, and what it goes on to write or is asked about from there."""

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


class Rows:
    """A left-padded batch: token ids or embeddings, mask, positions, and a cache that holds key/value prefixes.

    Where prompts have one against them, these follow as a second half of the batch.
    """

    def __init__(self, lm: BaseModel, made: Sequence[Prompt]) -> None:
        self.contrast: Tensor | None = None
        if any(p.against is not None for p in made):
            self.contrast = torch.tensor([p.contrast for p in made], device=lm.device)[:, None, None]
            made = [*made, *(p if p.against is None else p.against for p in made)]
        rows = [p.ids for p in made]
        soft = any(p.prefix is not None for p in made)
        lengths = [len(row) + (p.prefix_length if soft else 0) for row, p in zip(rows, made, strict=True)]
        width = max(lengths)
        self.mask = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)
        ids = torch.full((len(rows), width), lm.eos_id, device=lm.device)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = row
            self.mask[i, width - lengths[i] :] = 1
        self.inputs: dict[str, Tensor] = {"input_ids": ids}
        if soft:
            embedded = lm.embeddings(ids).clone()
            for i, prompt in enumerate(made):
                if prompt.prefix is not None:
                    end = width - len(rows[i])
                    embedded[i, end - len(prompt.prefix) : end] = prompt.prefix.to(embedded)
            self.inputs = {"inputs_embeds": embedded}
        self.cache: Any = DynamicCache(config=lm.model.config)
        if any(p.key_values for p in made):
            self._fill_cache(lm, made)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]

    def _fill_cache(self, lm: BaseModel, made: Sequence[Prompt]) -> None:
        longest = max(p.prefix_length for p in made)
        layers = next(len(p.key_values) for p in made if p.key_values)
        for layer in range(layers):
            pairs = [p.key_values[layer] if p.key_values else None for p in made]
            like = next(pair for pair in pairs if pair is not None)
            for side in (0, 1):
                padded = like[side].new_zeros(len(made), like[side].shape[0], longest, like[side].shape[-1])
                for i, pair in enumerate(pairs):
                    if pair is not None:
                        padded[i, :, longest - pair[side].shape[-2] :] = pair[side]
                if side == 0:
                    keys = padded
            self.cache.update(keys.to(lm.model.dtype), padded.to(lm.model.dtype), layer)
        before = torch.zeros(len(made), longest, dtype=torch.long, device=lm.device)
        for i, prompt in enumerate(made):
            before[i, longest - prompt.prefix_length :] = 1
        self.mask = torch.cat([before, self.mask], dim=1)

    def extend(self, ids: Tensor, mask: Tensor, window: int) -> None:
        """The tokens to read next behind what the cache holds, (rows, length); ``mask`` is 0 for padding behind them.

        Padding may reach beyond the window, where positions are not defined.
        """
        if self.contrast is not None:
            ids, mask = ids.repeat(2, 1), mask.repeat(2, 1)
        steps = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        self.inputs = {"input_ids": ids}
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.positions = (self.positions[:, -1:] + steps).clamp(max=window - 1)

    def select(self, going: Sequence[int]) -> None:
        """Keep these rows only."""
        chosen = torch.tensor(going, device=self.mask.device)
        if self.contrast is not None:
            half = len(self.contrast)
            self.contrast, chosen = self.contrast[chosen], torch.cat([chosen, half + chosen])
        self.cache.batch_select_indices(chosen)
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]

    def copy(self) -> Rows:
        """Rows that can go on in another way than these."""
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
    """Logits at the last ``keep`` positions of left-padded rows, shape (rows, keep, vocabulary), float32."""
    options = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(lm.model.forward).parameters else {}
    output = lm.model(
        **inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **options
    )
    logits: Tensor = output.logits[:, -keep:].float()
    return logits


def logits_of(lm: BaseModel, rows: Rows, keep: int) -> Tensor:
    """The same of such a batch, (prompts, keep, vocabulary), contrasted where there are prompts against others."""
    logits = forward(lm, rows.inputs, rows.mask, rows.positions, rows.cache, keep)
    if rows.contrast is None:
        return logits
    behind, against = logits.chunk(2)
    return (1 + rows.contrast) * behind - rows.contrast * against


class Read:
    """A batch of prompts that the model has read once: its answers and the likelihood of others go on from there."""

    def __init__(self, lm: BaseModel, made: Sequence[Prompt]) -> None:
        self.lm = lm
        self.rows = Rows(lm, made)
        self.logits = logits_of(lm, self.rows, 1)

    def answers(self, limit: int) -> list[str]:
        """The greedy continuation of every prompt, up to where it stops; finished rows leave the batch."""
        stops = self.lm.newline_ids | {self.lm.eos_id}
        rows, logits = self.rows.copy(), self.logits
        written: list[list[int]] = [[] for _ in logits]
        alive = list(range(len(written)))
        for step in range(1, limit + 1):
            chosen = logits[:, -1].argmax(-1)
            going = [k for k, token in enumerate(chosen.tolist()) if token not in stops]
            for k in going:
                written[alive[k]].append(int(chosen[k]))
            if not going or step == limit:
                break
            if len(going) < len(alive):
                rows.select(going)
                chosen = chosen[torch.tensor(going, device=chosen.device)]
                alive = [alive[k] for k in going]
            rows.extend(chosen[:, None], rows.mask.new_ones(len(alive), 1), self.lm.window)
            logits = logits_of(self.lm, rows, 1)
        return [decode(self.lm.tokenizer, ids) for ids in written]

    def nll(self, endings: Sequence[Tensor]) -> list[float]:
        """Mean -log p (nats) over the tokens of each prompt's ending."""
        heads = [ending[:-1] for ending in endings]  # the last token is predicted, not read
        ids = pad_sequence(heads, batch_first=True, padding_value=self.lm.eos_id)
        logits = self.logits
        if ids.shape[1]:
            rows = self.rows.copy()
            rows.extend(ids, pad_sequence([torch.ones_like(head) for head in heads], batch_first=True), self.lm.window)
            logits = torch.cat([logits, logits_of(self.lm, rows, ids.shape[1])], dim=1)
        return [
            functional.cross_entropy(row[: len(ending)], ending).item()
            for row, ending in zip(logits, endings, strict=True)
        ]
