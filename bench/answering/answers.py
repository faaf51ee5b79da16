"""Answering of prompts, the same for every method: batched decoding and the likelihood of the gold answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import UNANSWERED, Answer, Prefill, layout
from bench.answering.prompts import Prompt, answer_ids, make_room_for_answer
from bench.errors import BenchError
from bench.lm.base_model import BaseModel, decode

BATCH_ROWS = 128
"""Most prompts in a batch."""
BATCH_TOKENS = 16384
"""Most tokens in a batch, padding included."""


def _batches(lm: BaseModel, prompts: Sequence[Prompt], answer_lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of the prompts in batches of similar length with their answers, the longest first.

    The prompts of a batch have the same layout, if the base reads rows of unequal length in another way than each.
    Prompts that remain unanswered are left out.
    """
    lengths = [len(p.ids) + p.prefix_length + more for p, more in zip(prompts, answer_lengths, strict=True)]
    groups: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt.unanswered is None:
            groups.setdefault(layout(lm, prompt), []).append(i)
    for group in groups.values():
        batch: list[int] = []
        for index in sorted(group, key=lambda i: -lengths[i]):
            if batch and (len(batch) >= BATCH_ROWS or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def answer(lm: BaseModel, prompts: Sequence[Prompt], decoding: Decoding) -> list[Answer]:
    """Answer every prompt; the answers are in the order of the prompts, also of those that remain unanswered.

    Raises:
        BenchError: a decoding strategy that the installed transformers does not offer.
    """
    if decoding.strategy != "greedy":
        with lm.inference():
            return [UNANSWERED if p.unanswered is not None else _beam_search(lm, p, decoding) for p in prompts]
    answers = [UNANSWERED] * len(prompts)
    with lm.inference():
        for batch in _batches(lm, prompts, [decoding.max_new_tokens] * len(prompts)):
            written = Prefill(lm, [prompts[i] for i in batch]).greedy_answers(decoding.max_new_tokens)
            for index, own in zip(batch, written, strict=True):
                answers[index] = own
    return answers


def _beam_search(lm: BaseModel, prompt: Prompt, decoding: Decoding) -> Answer:
    """Answer one prompt by beam search, with ``generate`` of transformers."""
    if prompt.prefix is not None or prompt.key_values is not None or prompt.contrast_prompt is not None:
        raise BenchError(
            "Beam search supports text prompts only. Use greedy decoding with soft prompts, prefixes and contrasts."
        )
    if lm.mixes:
        raise BenchError("Beam search does not support methods with mix_next_token. Use greedy decoding.")
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
            use_cache=lm.abilities.cache,
            eos_token_id=sorted(lm.stop_ids),
            **options,
        )
    except (ValueError, TypeError, ImportError, AttributeError, OSError) as error:
        raise BenchError(
            f"The installed transformers cannot decode with {decoding.strategy}: {error} "
            f"Use `decoding: {{strategy: greedy}}` or an older transformers."
        ) from None
    written = output[0, len(prompt.ids) :].tolist()
    kept = list(itertools.takewhile(lambda token: token not in lm.stop_ids, written))
    return Answer(decode(lm.tokenizer, kept), ended=len(kept) < len(written))


def answer_nll(lm: BaseModel, prompts: Sequence[Prompt], golds: Sequence[str]) -> list[float | None]:
    """Mean -log p (nats) over the tokens of " " + answer and end of text, for each prompt.

    None for a prompt that remains unanswered, or whose gold answer does not fit into the window.
    """
    targets = answer_ids(lm, [prompt.question for prompt in prompts], golds)
    prompts = [make_room_for_answer(p, len(target), lm.window) for p, target in zip(prompts, targets, strict=True)]
    nll: list[float | None] = [None] * len(prompts)
    with lm.inference():
        for batch in _batches(lm, prompts, [len(target) for target in targets]):
            values = Prefill(lm, [prompts[i] for i in batch]).mean_nll([targets[i] for i in batch])
            for index, value in zip(batch, values, strict=True):
                nll[index] = value
    return nll


def answer_and_nll(
    lm: BaseModel,
    prompts: Sequence[Prompt],
    golds: Sequence[str],
    decoding: Decoding,
    answering: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[Answer], list[float | None]]:
    """Results of :func:`answer` and :func:`answer_nll`; the prompts are read only once for both if possible.

    Reading and answering run inside ``answering()``, which is entered once or more. The likelihoods run outside it.
    """
    targets = answer_ids(lm, [prompt.question for prompt in prompts], golds)
    fit = all(make_room_for_answer(p, len(t), lm.window) is p for p, t in zip(prompts, targets, strict=True))
    if decoding.strategy != "greedy" or not fit:
        with answering():
            answers = answer(lm, prompts, decoding)
        return answers, answer_nll(lm, prompts, golds)
    answers = [UNANSWERED] * len(prompts)
    nll: list[float | None] = [None] * len(prompts)
    with lm.inference():
        for batch in _batches(lm, prompts, [max(decoding.max_new_tokens, len(target)) for target in targets]):
            with answering():
                prefill = Prefill(lm, [prompts[i] for i in batch])
                written = prefill.greedy_answers(decoding.max_new_tokens)
            values = prefill.mean_nll([targets[i] for i in batch])
            for index, own, value in zip(batch, written, values, strict=True):
                answers[index], nll[index] = own, value
    return answers, nll
