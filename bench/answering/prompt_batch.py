"""Batches of prompts: greedy decoding and the likelihood of given answers, from prompts that are read once.

Shapes: B rows (one per prompt), T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from bench.lm.base_model import BaseModel, decode
from bench.lm.batch import Batch, CachedBatch, RereadBatch, Row, parts_of_like_length

if TYPE_CHECKING:
    from bench.answering.prompts import Prompt


class Answer(NamedTuple):
    """What the model writes after a prompt.

    ``ended`` is True if it ended the answer itself, by a stop token or a newline, within the tokens it may write; None
    if the prompt was not read.
    """

    text: str
    ended: bool | None


TARGET_ROWS = 16
"""Most given answers that are read together."""
UNANSWERED = Answer("", None)
"""The answer to a prompt that does not fit into the model's window."""


def layout(lm: BaseModel, prompt: Prompt) -> Hashable:
    """What must be equal for prompts to be read together: nothing if the base reads padded rows as it reads each."""
    if lm.abilities.padding_after_prefixes if prompt.key_values else lm.abilities.padding:
        return None
    contrast_length = None if prompt.contrast_prompt is None else len(prompt.contrast_prompt.ids)
    return len(prompt.ids), prompt.prefix_length, contrast_length


class PromptBatch:
    """Prompts that are read together, and their contrast prompts, if any, in a batch of their own."""

    def __init__(self, lm: BaseModel, prompts: Sequence[Prompt]) -> None:
        kind: Callable[[BaseModel, Sequence[Row]], Batch] = CachedBatch if lm.abilities.cache else RereadBatch
        self.batches = [kind(lm, prompts)]
        contrasts = [prompt for prompt in prompts if prompt.contrast_prompt is not None]
        if contrasts:
            self.contrast = torch.tensor([prompt.contrast for prompt in prompts], device=lm.device)[:, None, None]
            self.batches.append(kind(lm, [prompt.contrast_prompt or prompt for prompt in prompts]))

    def read(self, keep: int) -> Tensor:
        """Logits at the last ``keep`` positions, (B, keep, V), contrasted if there are contrast prompts."""
        logits, *contrast_logits = [batch.read(keep) for batch in self.batches]
        if not contrast_logits:
            return logits
        contrasted = (1 + self.contrast) * logits - self.contrast * contrast_logits[0]
        return torch.where(torch.isneginf(logits), logits, contrasted)  # -inf minus -inf is not a number

    def extend(self, ids: Tensor, mask: Tensor) -> None:
        """Set the tokens to read next: ``ids`` and ``mask`` (0 for padding, which is on the right), (B, T)."""
        for batch in self.batches:
            batch.extend(ids, mask)

    def select(self, indices: Sequence[int]) -> None:
        """Keep only the prompts with these indices."""
        for batch in self.batches:
            batch.select(indices)
        if len(self.batches) > 1:
            self.contrast = self.contrast[torch.tensor(indices, device=self.contrast.device)]

    def copy(self) -> PromptBatch:
        """Copy the batch, so that it can be continued in more than one way."""
        other = copy.copy(self)
        other.batches = [batch.copy() for batch in self.batches]
        return other


class Prefill:
    """A batch of prompts that the model has read. Decoding and likelihoods both continue from it."""

    def __init__(self, lm: BaseModel, prompts: Sequence[Prompt]) -> None:
        self.lm = lm
        self.batch = PromptBatch(lm, prompts)
        self.logits = self.batch.read(1)  # (prompts, 1, V)

    def greedy_answers(self, max_new_tokens: int) -> list[Answer]:
        """Greedy continuation of every prompt until it stops; finished prompts leave the batch."""
        stops = self.lm.stop_ids
        batch, logits = self.batch.copy(), self.logits
        written: list[list[int]] = [[] for _ in logits]
        ended = [True] * len(written)
        alive = list(range(len(written)))
        for step in range(1, max_new_tokens + 1):
            tokens = logits[:, -1].argmax(-1)  # (prompts alive,)
            chosen = tokens.tolist()  # the only read of the device in a step
            going = [k for k, token in enumerate(chosen) if token not in stops]
            for k in going:
                written[alive[k]].append(chosen[k])
                ended[alive[k]] = step < max_new_tokens
            if not going or step == max_new_tokens:
                break
            if len(going) < len(alive):
                batch.select(going)
                tokens = tokens[torch.tensor(going, device=tokens.device)]
                alive = [alive[k] for k in going]
            batch.extend(tokens[:, None], torch.ones_like(tokens[:, None]))
            logits = batch.read(1)  # (prompts alive, 1, V)
        return [Answer(decode(self.lm.tokenizer, ids), end) for ids, end in zip(written, ended, strict=True)]

    def mean_nll(self, targets: Sequence[Tensor]) -> list[float]:
        """Mean -log p (nats) over the tokens of each prompt's target."""
        losses: dict[int, Tensor] = {}
        for part in parts_of_like_length(list(map(len, targets)), TARGET_ROWS):
            inputs = [targets[i][:-1] for i in part]  # the last token is predicted, not read
            ids = pad_sequence(inputs, batch_first=True, padding_value=self.lm.eos_id)  # (rows, T)
            logits = self.logits[part]
            if ids.shape[1]:
                batch = self.batch.copy()
                batch.select(part)
                batch.extend(ids, pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True))
                logits = torch.cat([logits, batch.read(ids.shape[1])], dim=1)  # (rows, 1 + T, V)
            for i, row in zip(part, logits, strict=True):
                losses[i] = functional.cross_entropy(row[: len(targets[i])], targets[i])
        in_order = torch.stack([losses[i] for i in range(len(targets))])
        means: list[float] = in_order.tolist()  # one read of the device for all
        return means
