"""How every method's model answers: batched decoding and the likelihood of the gold answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import Read
from bench.answering.prompts import Prompt, endings_of, shortened
from bench.errors import BenchError
from bench.lm.base_model import BaseModel, decode

BATCH_ROWS = 128
BATCH_TOKENS = 16384
"""A batch holds at most so many questions, and so many tokens with its padding."""


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


@torch.no_grad()
def answer_nll(lm: BaseModel, made: Sequence[Prompt], golds: Sequence[str]) -> list[float]:
    """Mean -log p (nats) over the tokens of " " + answer and end of text, for each prompt."""
    endings = endings_of(lm, golds)
    values = [0.0] * len(made)
    made = [shortened(prompt, len(ending), lm.window) for prompt, ending in zip(made, endings, strict=True)]
    for batch in _batches(made, [len(ending) for ending in endings]):
        found = Read(lm, [made[i] for i in batch]).nll([endings[i] for i in batch])
        for index, value in zip(batch, found, strict=True):
            values[index] = value
    return values


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
    endings = endings_of(lm, golds)
    fit = all(shortened(p, len(ending), lm.window) is p for p, ending in zip(made, endings, strict=True))
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
