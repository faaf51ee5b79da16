"""How every method's model answers: batched decoding and the likelihood of the gold answers.

The prompt of a question is ``[prefix] begin-of-text [text newline] question``; the answer is `` " " + answer`` and the
end-of-text token (specification: docs/rules.md).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from bench.base_model import BaseModel, decode
from bench.decoding import Decoding
from bench.errors import BenchError
from bench.method import Conditioning
from bench.stream import Question

BATCH_ROWS = 128
BATCH_TOKENS = 16384
"""A batch holds at most so many questions, and so many tokens with its padding."""


@dataclass(frozen=True)
class Prompt:
    """One question as the model reads it. ``cut`` counts text tokens that did not fit into the model's window.

    Where there is a prompt ``against`` it, the model answers from (1 + ``contrast``) times the logits behind this one
    minus ``contrast`` times those behind that one.
    """

    ids: Tensor
    prefix: Tensor | None = None
    key_values: Sequence[tuple[Tensor, Tensor]] | None = None
    cut: int = 0
    against: Prompt | None = None
    contrast: float = 0.0

    @property
    def prefix_length(self) -> int:
        """Positions taken by a soft prompt or by key/value prefixes."""
        if self.prefix is not None:
            return len(self.prefix)
        return self.key_values[0][0].shape[-2] if self.key_values else 0


def prompts(lm: BaseModel, questions: Sequence[Question], conditioning: Conditioning, reserve: int) -> list[Prompt]:
    """The prompt of every question, leaving room for ``reserve`` answer tokens.

    Where text and question do not fit into the window, the beginning of the text is left out and counted.

    Raises:
        ValueError: the conditioning does not have one entry per question, or a question alone does not fit.
    """
    for field in ("text", "prefix_embeddings", "prefix_key_values", "documents"):
        value = getattr(conditioning, field)
        if value is not None and len(value) != len(questions):
            raise ValueError(f"Conditioning.{field} has {len(value)} entries for {len(questions)} questions.")
    begin = torch.tensor([lm.bos_id], device=lm.device)
    made = []
    for i, question in enumerate(questions):
        text = conditioning.text[i] if conditioning.text is not None else ""
        ids = lm.encode(f"{text}\n{question.text}" if text else question.text)
        prefix = conditioning.prefix_embeddings[i] if conditioning.prefix_embeddings is not None else None
        key_values = conditioning.prefix_key_values[i] if conditioning.prefix_key_values is not None else None
        prompt = Prompt(ids, prefix, key_values)
        room = lm.window - 1 - prompt.prefix_length - reserve
        cut = max(0, len(ids) - room)
        if cut and len(lm.encode(question.text)) > room:
            raise ValueError(f"Question {question.id} does not fit into the model's window of {lm.window} tokens.")
        prompt = replace(prompt, ids=torch.cat([begin, ids[cut:]]), cut=cut)
        if conditioning.contrast is not None:
            bare = Prompt(torch.cat([begin, lm.encode(question.text)]))
            prompt = replace(prompt, against=bare, contrast=conditioning.contrast)
        made.append(prompt)
    return made


def _batches(made: Sequence[Prompt], extra: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the prompts in batches of similar length, the longest first."""
    sizes = [len(prompt.ids) + prompt.prefix_length + more for prompt, more in zip(made, extra, strict=True)]
    batch: list[int] = []
    for index in sorted(range(len(made)), key=lambda i: -sizes[i]):
        if batch and (len(batch) >= BATCH_ROWS or (len(batch) + 1) * sizes[batch[0]] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class _Rows:
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

    def copy(self) -> _Rows:
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


def _forward(lm: BaseModel, rows: _Rows, keep: int) -> Tensor:
    logits = forward(lm, rows.inputs, rows.mask, rows.positions, rows.cache, keep)
    if rows.contrast is None:
        return logits
    behind, against = logits.chunk(2)
    return (1 + rows.contrast) * behind - rows.contrast * against


class _Read:
    """A batch of prompts that the model has read once: its answers and the likelihood of others go on from there."""

    def __init__(self, lm: BaseModel, made: Sequence[Prompt]) -> None:
        self.lm = lm
        self.rows = _Rows(lm, made)
        self.logits = _forward(lm, self.rows, 1)

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
            logits = _forward(self.lm, rows, 1)
        return [decode(self.lm.tokenizer, ids) for ids in written]

    def nll(self, endings: Sequence[Tensor]) -> list[float]:
        """Mean -log p (nats) over the tokens of each prompt's ending."""
        heads = [ending[:-1] for ending in endings]  # the last token is predicted, not read
        ids = pad_sequence(heads, batch_first=True, padding_value=self.lm.eos_id)
        logits = self.logits
        if ids.shape[1]:
            rows = self.rows.copy()
            rows.extend(ids, pad_sequence([torch.ones_like(head) for head in heads], batch_first=True), self.lm.window)
            logits = torch.cat([logits, _forward(self.lm, rows, ids.shape[1])], dim=1)
        return [
            functional.cross_entropy(row[: len(ending)], ending).item()
            for row, ending in zip(logits, endings, strict=True)
        ]


@torch.no_grad()
def answer(lm: BaseModel, made: Sequence[Prompt], decoding: Decoding) -> list[str]:
    """The model's answer to every prompt, in their order.

    Raises:
        BenchError: a decoding strategy that the installed transformers does not offer.
    """
    if decoding.strategy != "greedy":
        return [_beam(lm, prompt, decoding) for prompt in made]
    answers = [""] * len(made)
    for batch in _batches(made, [decoding.max_new_tokens] * len(made)):
        found = _Read(lm, [made[i] for i in batch]).answers(decoding.max_new_tokens)
        for index, text in zip(batch, found, strict=True):
            answers[index] = text
    return answers


def _beam(lm: BaseModel, prompt: Prompt, decoding: Decoding) -> str:
    """Beam search for one prompt through ``generate`` of transformers."""
    if prompt.prefix is not None or prompt.key_values is not None or prompt.against is not None:
        raise BenchError(
            "Beam search is offered for text prompts only; use greedy decoding with soft prompts and contrasts."
        )
    options: dict[str, Any] = {"num_beams": decoding.beams, "early_stopping": True}
    if decoding.strategy == "diverse_beam":
        options.update(num_beam_groups=decoding.groups, diversity_penalty=decoding.diversity_penalty)
    try:
        output = lm.model.generate(
            prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids[None]),
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            pad_token_id=lm.eos_id,
            eos_token_id=sorted(lm.newline_ids | {lm.eos_id}),
            **options,
        )
    except (ValueError, TypeError, ImportError, AttributeError, OSError) as error:
        raise BenchError(
            f"The installed transformers cannot decode with {decoding.strategy}: {error} "
            f"Use `decoding: {{strategy: greedy}}` or an older transformers."
        ) from None
    return decode(lm.tokenizer, output[0, len(prompt.ids) :].tolist())


def _shortened(prompt: Prompt, ending: int, window: int) -> Prompt:
    """The prompt without those tokens after its first that a very long gold answer leaves no room for."""
    over = max(0, prompt.prefix_length + len(prompt.ids) + ending - window)
    against = None if prompt.against is None else _shortened(prompt.against, ending, window)
    if not over and against is prompt.against:
        return prompt
    return replace(prompt, ids=torch.cat([prompt.ids[:1], prompt.ids[1 + over :]]), against=against)


@torch.no_grad()
def answer_nll(lm: BaseModel, made: Sequence[Prompt], golds: Sequence[str]) -> list[float]:
    """Mean -log p (nats) over the tokens of " " + answer and end of text, for each prompt."""
    endings = _endings(lm, golds)
    values = [0.0] * len(made)
    made = [_shortened(prompt, len(ending), lm.window) for prompt, ending in zip(made, endings, strict=True)]
    for batch in _batches(made, [len(ending) for ending in endings]):
        found = _Read(lm, [made[i] for i in batch]).nll([endings[i] for i in batch])
        for index, value in zip(batch, found, strict=True):
            values[index] = value
    return values


def _endings(lm: BaseModel, golds: Sequence[str]) -> list[Tensor]:
    end = torch.tensor([lm.eos_id], device=lm.device)
    return [torch.cat([lm.encode(" " + text), end]) for text in golds]


@torch.no_grad()
def answer_and_nll(
    lm: BaseModel,
    made: Sequence[Prompt],
    golds: Sequence[str],
    decoding: Decoding,
    answering: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[str], list[float]]:
    """What :func:`answer` and :func:`answer_nll` give, the prompts being read once for both where that can be.

    Reading and answering happen inside of ``answering()``, entered once or more; what only the likelihoods need, not.
    """
    endings = _endings(lm, golds)
    fit = all(_shortened(p, len(ending), lm.window) is p for p, ending in zip(made, endings, strict=True))
    if decoding.strategy != "greedy" or not fit:
        with answering():
            answers = answer(lm, made, decoding)
        return answers, answer_nll(lm, made, golds)
    answers, values = [""] * len(made), [0.0] * len(made)
    for batch in _batches(made, [max(decoding.max_new_tokens, len(ending)) for ending in endings]):
        with answering():
            read = _Read(lm, [made[i] for i in batch])
            found = read.answers(decoding.max_new_tokens)
        for index, text, value in zip(batch, found, read.nll([endings[i] for i in batch]), strict=True):
            answers[index], values[index] = text, value
    return answers, values
