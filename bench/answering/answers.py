"""Answering of prompts, the same for every method: batched decoding and the likelihood of the gold answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from bench.answering.beams import beam_answers
from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import UNANSWERED, Answer, Prefill, layout
from bench.answering.prompts import Prompt, answer_ids, make_room_for_answer
from bench.lm.base_model import BaseModel

BATCH_ROWS = 128
"""Most rows in a batch: prompts, or beams."""
BATCH_TOKENS = 16384
"""Most tokens in a batch, padding included."""


def _batches(
    lm: BaseModel, prompts: Sequence[Prompt], answer_lengths: Sequence[int], beams: int = 1
) -> Iterator[list[int]]:
    """Indices of the prompts in batches of similar length with their answers, the longest first.

    Each prompt has ``beams`` rows. The prompts of a batch have the same layout, if the base reads rows of unequal
    length in another way than each. A batch is no wider than the window, since some bases read no padding beyond it.
    Prompts that remain unanswered are left out.
    """
    starts = [len(prompt.ids) + prompt.prefix_length for prompt in prompts]
    lengths = [start + more for start, more in zip(starts, answer_lengths, strict=True)]
    groups: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt.unanswered is None:
            groups.setdefault(layout(lm, prompt), []).append(i)
    for group in groups.values():
        batch: list[int] = []
        for index in sorted(group, key=lambda i: -lengths[i]):
            rows = (len(batch) + 1) * beams
            width = max(starts[i] for i in (*batch, index)) + max(answer_lengths[i] for i in (*batch, index))
            if batch and (rows > BATCH_ROWS or rows * lengths[batch[0]] > BATCH_TOKENS or width > lm.window):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def answer(lm: BaseModel, prompts: Sequence[Prompt], decoding: Decoding) -> list[Answer]:
    """Answer every prompt; the answers are in the order of the prompts, also of those that remain unanswered."""
    answers = [UNANSWERED] * len(prompts)
    with lm.inference():
        for batch in _batches(lm, prompts, [decoding.max_new_tokens] * len(prompts), decoding.beams):
            written = _written(Prefill(lm, [prompts[i] for i in batch]), decoding)
            for index, own in zip(batch, written, strict=True):
                answers[index] = own
    return answers


def _written(prefill: Prefill, decoding: Decoding) -> list[Answer]:
    """The answers to the prompts that were read."""
    if decoding.strategy == "greedy":
        return prefill.greedy_answers(decoding.max_new_tokens)
    return beam_answers(prefill, decoding)


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
    if not fit:
        with answering():
            answers = answer(lm, prompts, decoding)
        return answers, answer_nll(lm, prompts, golds)
    answers = [UNANSWERED] * len(prompts)
    nll: list[float | None] = [None] * len(prompts)
    with lm.inference():
        longest = [max(decoding.max_new_tokens, len(target)) for target in targets]
        for batch in _batches(lm, prompts, longest, decoding.beams):
            with answering():
                prefill = Prefill(lm, [prompts[i] for i in batch])
                written = _written(prefill, decoding)
            values = prefill.mean_nll([targets[i] for i in batch])
            for index, own, value in zip(batch, written, values, strict=True):
                answers[index], nll[index] = own, value
    return answers, nll
