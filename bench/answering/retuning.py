"""Retuning: steps on closed-book questions before the questions of a probe, undone after they are answered.

The procedure is that of the code of Hu et al. (2023), with a limit on the steps: Adam without weight decay at a
constant rate, batches of 16 questions in a new order in each epoch, and early stopping on held-out questions, here by
their loss, there by the F1 of decoded answers. Fewer than 16 steps are all taken, and no question is held out. The loss
is the mean -log p over the tokens of the shortest gold answers and their ends of text. Dropout is off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from bench.answering.prompts import closed_book_rows
from bench.answering.retune import Retune
from bench.contract.gradient import build_optimizer
from bench.data.documents import Episode
from bench.lm.base_model import BaseModel, same_bits
from bench.lm.batch import parts_of_like_length
from bench.seeds import seed_for

BATCH = 16
"""Questions in a step (16 in the CaMeLS code, where 64 was intended)."""
ROWS = 8
"""Most questions of a step that are read together."""
HELD_OUT = 64
"""Most held-out questions; at most half of all."""
VALIDATE_EVERY = 16
"""Steps between two computations of the held-out loss. It is also computed before the first step and after the last.

With fewer steps it would cost more than they do.
"""
PATIENCE = 3
"""Computations in a row without a new lowest loss after which the steps end."""

Weights = Mapping[str, Tensor]
"""Copies of the base's tensors by name."""


def one_each(episodes: Sequence[Episode]) -> list[Episode]:
    """An episode for each question."""
    return [
        Episode(episode.document, (question,), (answers,))
        for episode in episodes
        for question, answers in zip(episode.questions, episode.answers, strict=True)
    ]


@contextmanager
def retuned(lm: BaseModel, episodes: Sequence[Episode], retune: Retune, seed: int) -> Iterator[None]:
    """Context in which the model is tuned, from its present weights, on the questions of ``episodes``.

    All weights of the base learn. Whatever a method has added to the model (adapters, hooks) takes part in the forward
    pass and stays as it is. On exit the base's weights, gradients and ``requires_grad`` are as before, bit for bit.
    The same weights are tuned in the same way for the same ``seed``. With fewer than two questions nothing is tuned.
    """
    questions = one_each(episodes)
    if len(questions) < 2:
        yield
        return
    generator = torch.Generator().manual_seed(seed_for(seed, "retune"))
    order = torch.randperm(len(questions), generator=generator).tolist()
    size = min(HELD_OUT, len(order) // 2) if retune.steps >= VALIDATE_EVERY else 0
    held_out = [questions[i] for i in order[:size]]
    before = _weights(lm)
    state = [(p, p.requires_grad, p.grad) for p in lm.model.parameters()]
    try:
        best = _tune(lm, before, _batches([questions[i] for i in order[len(held_out) :]], generator), held_out, retune)
        if best is not None:
            _set_weights(lm, best)
            del best
        yield
    finally:
        _set_weights(lm, before)
        for parameter, flag, gradient in state:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def _tune(
    lm: BaseModel, before: Weights, batches: Iterator[list[Episode]], held_out: list[Episode], retune: Retune
) -> Weights | None:
    """Take the steps; returns the weights with the lowest held-out loss, None if they are the last ones."""
    learning = [tensor for _, tensor in lm.named_tensors() if isinstance(tensor, Parameter)]
    lm.model.eval()
    lm.model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    optimizer = build_optimizer("adam", learning, retune.rate)
    best: Weights | None = before if held_out else None
    lowest, waited = _mean_loss(lm, held_out) if held_out else math.inf, 0
    for step in range(1, retune.steps + 1):
        # of the base's weights only: an adapter's tensors need not be parameters of the model
        gradients = torch.autograd.grad(answer_loss(lm, next(batches)), learning, allow_unused=True)
        for parameter, gradient in zip(learning, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del gradients
        if held_out and (step % VALIDATE_EVERY == 0 or step == retune.steps):
            loss = _mean_loss(lm, held_out)
            if loss < lowest:
                lowest, waited, best = loss, 0, None  # the old copy goes before there is a new one
                best = None if step == retune.steps else _weights(lm)
            elif (waited := waited + 1) == PATIENCE:
                break
    return best


def _batches(questions: list[Episode], generator: torch.Generator) -> Iterator[list[Episode]]:
    """Endless batches, in a new order in each epoch."""
    while True:
        for batch in torch.randperm(len(questions), generator=generator).split(BATCH):
            yield [questions[i] for i in batch.tolist()]


def _mean_loss(lm: BaseModel, episodes: list[Episode]) -> float:
    """The answers' loss: a mean over batches, weighted by their number of questions."""
    batches = [episodes[i : i + BATCH] for i in range(0, len(episodes), BATCH)]
    with lm.inference():
        return sum(answer_loss(lm, batch).item() * len(batch) for batch in batches) / len(episodes)


def answer_loss(lm: BaseModel, episodes: Sequence[Episode]) -> Tensor:
    """Mean -log p (nats) over the tokens of all answers (the shortest of each question) and their ends of text.

    The rows are those of :func:`closed_book_rows`. Differentiable if gradients are enabled.
    """
    ids, scored = closed_book_rows(lm, episodes)  # (questions, longest)
    begins = scored.int().argmax(1)
    starts, ends = torch.stack([begins, begins + scored.sum(1)]).tolist()  # of the answers
    losses = []
    for part in parts_of_like_length(ends, ROWS):
        begin, end = min(starts[i] for i in part), max(ends[i] for i in part)
        own, answers = ids[part, :end], scored[part, begin:end]
        logits, _ = lm.read(end - begin, input_ids=own[:, :-1], use_cache=False)  # (questions, end - begin, V)
        losses.append(functional.cross_entropy(logits.float()[answers], own[:, begin:][answers], reduction="sum"))
    return torch.stack(losses).sum() / scored.sum()


def _weights(lm: BaseModel) -> Weights:
    """The present weights; those that have not changed are the base's own copy."""
    pristine = ((name, tensor.detach(), lm.pristine(name)) for name, tensor in lm.named_tensors())
    return {name: own if same_bits(own, tensor) else tensor.clone() for name, tensor, own in pristine}


@torch.no_grad()
def _set_weights(lm: BaseModel, weights: Weights) -> None:
    for name, tensor in lm.named_tensors():
        tensor.copy_(weights[name])
