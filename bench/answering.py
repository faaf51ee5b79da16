"""How every method's model answers: batched decoding and the likelihood of the gold answers.

The prompt of a question is ``[prefix] begin-of-text [text newline] question``; the answer is `` " " + answer`` and the
end-of-text token (specification: docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.base_model import BaseModel, decode
from bench.decoding import Decoding
from bench.errors import BenchError
from bench.method import Conditioning
from bench.prompt_rows import Read
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
        found = Read(lm, [made[i] for i in batch]).answers(decoding.max_new_tokens)
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
        found = Read(lm, [made[i] for i in batch]).nll([endings[i] for i in batch])
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
            read = Read(lm, [made[i] for i in batch])
            found = read.answers(decoding.max_new_tokens)
        for index, text, value in zip(batch, found, read.nll([endings[i] for i in batch]), strict=True):
            answers[index], values[index] = text, value
    return answers, values
