"""Differentiating through fine-tuning: sequential gradient steps as a function of their token weights.

The inner loop takes one plain SGD step per document (Hu et al. 2023),

    theta_i = theta_(i-1) - rate * grad L_i(theta_(i-1), w_i),    L_i = sum over tokens of w x -log p / divisor,

and the outer gradient is exact: second order, through all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from bench.answering.prompts import prompts
from bench.contract.method import Conditioning
from bench.data.documents import Episode
from bench.lm.base_model import BaseModel, TokenBatch

Parameters = Mapping[str, Tensor]
"""A model's parameters by name."""


@contextmanager
def twice_differentiable(lm: BaseModel, dropout: bool = False) -> Iterator[None]:
    """The model with attention that can be differentiated twice (the fused kernels cannot), in train mode or not."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    lm.model.train(dropout)
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)
        lm.model.eval()


def parameters_of(lm: BaseModel) -> dict[str, Tensor]:
    """The model's parameters as they are, detached."""
    return {name: parameter.detach() for name, parameter in lm.model.named_parameters()}


def logits(lm: BaseModel, parameters: Parameters, ids: Tensor) -> Tensor:
    """Logits of the model with these parameters, shape (rows, length, vocabulary), in float32 or better."""
    output: Any = functional_call(lm.model, dict(parameters), (), {"input_ids": ids, "use_cache": False})
    found: Tensor = output.logits
    return found.to(torch.promote_types(found.dtype, torch.float32))


def token_nll(lm: BaseModel, parameters: Parameters, batch: TokenBatch) -> Tensor:
    """-log p (nats) of a document's tokens under these parameters, shape (tokens,), window by window."""
    everything = torch.cat([batch.context_ids, batch.token_ids])
    pieces = [
        functional.cross_entropy(
            logits(lm, parameters, everything[None, start : stop - 1])[0, first - start - 1 :],
            everything[first:stop],
            reduction="none",
        )
        for start, first, stop in lm.windows(len(batch), len(batch.context_ids))
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, device=lm.device)


def weighted_loss(lm: BaseModel, parameters: Parameters, batch: TokenBatch, weights: Tensor, divisor: float) -> Tensor:
    """Sum over the tokens of weight x -log p, over the divisor."""
    return (token_nll(lm, parameters, batch) * weights).sum() / divisor


def step(
    lm: BaseModel,
    parameters: Parameters,
    batch: TokenBatch,
    weights: Tensor,
    rate: float,
    divisor: float,
    differentiable: bool,
) -> dict[str, Tensor]:
    """The parameters after one inner step. If ``differentiable``, its graph leads back to parameters and weights."""
    names = list(parameters)
    values = [p if p.requires_grad else p.requires_grad_() for p in parameters.values()]
    with torch.enable_grad():
        loss = weighted_loss(lm, dict(zip(names, values, strict=True)), batch, weights, divisor)
        slopes = torch.autograd.grad(loss, values, create_graph=differentiable, materialize_grads=True)
    return {name: p - rate * slope for name, p, slope in zip(names, values, slopes, strict=True)}


def unroll(
    lm: BaseModel,
    parameters: Parameters,
    batches: Sequence[TokenBatch],
    weights: Sequence[Tensor],
    rate: float,
    divisors: Sequence[float],
    differentiable: bool = True,
) -> list[dict[str, Tensor]]:
    """The parameters before the first and after every inner step; nothing leads back beyond the first."""
    reached: list[dict[str, Tensor]] = [{name: p.detach() for name, p in parameters.items()}]
    for batch, w, divisor in zip(batches, weights, divisors, strict=True):
        after = step(lm, reached[-1], batch, w, rate, divisor, differentiable)
        reached.append(after if differentiable else {name: p.detach() for name, p in after.items()})
    return reached


def weight_gradients(
    lm: BaseModel,
    parameters: Parameters,
    batches: Sequence[TokenBatch],
    weights: Sequence[Tensor],
    rate: float,
    divisors: Sequence[float],
    outer_loss: Callable[[Parameters], Tensor],
    checkpoint: bool = False,
) -> tuple[float, list[Tensor], dict[str, Tensor]]:
    """The outer loss after all inner steps, its exact gradient for every token weight, and the parameters reached.

    With ``checkpoint`` only the parameters between the steps are kept, and each step's graph is built once more on
    the way back, so that memory does not grow with the graphs of all steps: with lambda_k = d loss / d theta_k,

        lambda_(i-1) = d <theta_i, lambda_i> / d theta_(i-1),    d loss / d w_i = d <theta_i, lambda_i> / d w_i.
    """
    given = [w.detach().requires_grad_() for w in weights]
    reached = unroll(lm, parameters, batches, given, rate, divisors, differentiable=not checkpoint)
    last = {name: p.detach() for name, p in reached[-1].items()}
    if not checkpoint:
        loss = outer_loss(reached[-1])
        found = torch.autograd.grad(loss, given, materialize_grads=True)
        return loss.item(), list(found), last
    end = {name: p.requires_grad_() for name, p in last.items()}
    loss = outer_loss(end)
    adjoint = list(torch.autograd.grad(loss, list(end.values()), materialize_grads=True))
    slopes: list[Tensor] = []
    for i in reversed(range(len(batches))):
        start = {name: p.detach().requires_grad_() for name, p in reached[i].items()}
        after = step(lm, start, batches[i], given[i], rate, divisors[i], differentiable=True)
        *adjoint, slope = torch.autograd.grad(
            list(after.values()), [*start.values(), given[i]], adjoint, materialize_grads=True
        )
        slopes.insert(0, slope)
    return loss.item(), slopes, {name: p.detach() for name, p in last.items()}


def answer_loss(lm: BaseModel, parameters: Parameters, episodes: Sequence[Episode]) -> Tensor:
    """Mean -log p (nats) over the tokens of all answers (the shortest of each question's) and their ends of text."""
    end = torch.tensor([lm.eos_id], device=lm.device)
    made = prompts(lm, [question for episode in episodes for question in episode.questions], Conditioning(), 0)
    golds = [min(answers, key=len) for episode in episodes for answers in episode.answers]
    endings = [torch.cat([lm.encode(" " + gold), end])[: lm.window - 1] for gold in golds]
    heads = [prompt.ids[: lm.window - len(ending)] for prompt, ending in zip(made, endings, strict=True)]
    rows = [torch.cat([head, ending]) for head, ending in zip(heads, endings, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=lm.eos_id)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    for i, (head, row) in enumerate(zip(heads, rows, strict=True)):
        scored[i, len(head) : len(row)] = True
    # padding stands on the right, where a causal model does not see it from the left
    predicted = logits(lm, parameters, ids[:, :-1])[scored[:, 1:]]
    return functional.cross_entropy(predicted, ids[:, 1:][scored[:, 1:]])


def drift(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) of next-token distributions given by logits (tokens, vocabulary): mean over tokens, nats."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
