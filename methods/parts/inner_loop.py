"""The inner loop: sequential gradient steps as a function of their token weights, and the gradient through them.

It takes one plain SGD step per document (Hu et al. 2023),

    theta_i = theta_(i-1) - rate * grad L_i(theta_(i-1), w_i),    L_i = sum over tokens of w x -log p / divisor.

The outer gradient is exact: second order, through all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from bench.answering.prompts import closed_book_rows
from bench.data.documents import Episode
from bench.lm.base_model import BaseModel, TokenBatch
from methods.parts.parameters import Subset, select

Parameters = Mapping[str, Tensor]
"""A model's parameters by name."""


@contextmanager
def twice_differentiable(lm: BaseModel, dropout: bool = False) -> Iterator[None]:
    """Switch to attention that can be differentiated twice (the fused kernels cannot), with dropout on or off."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    lm.model.train(dropout)
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)
        lm.model.eval()


def parameters_of(lm: BaseModel, subset: Subset = "all") -> dict[str, Tensor]:
    """The model's parameters of a subset as they are, detached."""
    return {name: parameter.detach() for name, parameter in select(lm.model, subset)}


def logits(lm: BaseModel, parameters: Parameters, ids: Tensor, places: Tensor | None = None) -> Tensor:
    """Logits of the model, shape (rows, length, vocabulary), in float32 or better.

    ``parameters`` take the place of the model's own, as far as they go. With ``places``, a mask (rows, length), the
    shape is (places, vocabulary); if the output layer does not learn, it computes no others.
    """
    with ExitStack() as stack:
        if places is not None and not _learns(lm.model.get_output_embeddings().weight, lm, parameters):
            hook = lm.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][places],))
            stack.callback(hook.remove)
        output: Any = functional_call(lm.model, dict(parameters), (), {"input_ids": ids, "use_cache": False})
    scores: Tensor = output.logits
    if places is not None and scores.ndim == 3:
        scores = scores[places]
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _learns(weight: Tensor, lm: BaseModel, parameters: Parameters) -> bool:
    """True if ``parameters`` have one in the place of this weight of the model."""
    return any(parameter is weight for name, parameter in lm.model.named_parameters() if name in parameters)


def token_nll(lm: BaseModel, parameters: Parameters, batch: TokenBatch) -> Tensor:
    """-log p (nats) of a document's tokens under these parameters, shape (tokens,), window by window."""
    ids = torch.cat([batch.context_ids, batch.token_ids])
    pieces = [
        functional.cross_entropy(
            logits(lm, parameters, ids[None, start : stop - 1])[0, first - start - 1 :],
            ids[first:stop],
            reduction="none",
        )
        for start, first, stop in lm.windows(len(batch), len(batch.context_ids))
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0, device=lm.device)


@dataclass(frozen=True)
class InnerStep:
    """A document to step on: its tokens, their weights, shape (tokens,), and the divisor of its summed loss."""

    batch: TokenBatch
    weights: Tensor
    divisor: float


class OuterGradient(NamedTuple):
    """The outer loss with its parts, its gradient for the token weights of each step, and the final parameters."""

    losses: dict[str, float]
    weights: list[Tensor]
    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class InnerLoop:
    """SGD steps of the model ``lm`` at a constant ``rate``."""

    lm: BaseModel
    rate: float

    def step(self, parameters: Parameters, step: InnerStep, differentiable: bool) -> dict[str, Tensor]:
        """Parameters after one step. If ``differentiable``, their graph leads back to parameters and weights."""
        names = list(parameters)
        values = [p if p.requires_grad else p.requires_grad_() for p in parameters.values()]
        with torch.enable_grad():
            nll = token_nll(self.lm, dict(zip(names, values, strict=True)), step.batch)  # (tokens,)
            loss = (nll * step.weights).sum() / step.divisor
            gradients = torch.autograd.grad(loss, values, create_graph=differentiable, materialize_grads=True)
        return {name: p - self.rate * g for name, p, g in zip(names, values, gradients, strict=True)}

    def unroll(
        self, parameters: Parameters, steps: Sequence[InnerStep], differentiable: bool = True
    ) -> list[dict[str, Tensor]]:
        """Parameters before the first step and after each; no graph leads back beyond the first."""
        trajectory: list[dict[str, Tensor]] = [{name: p.detach() for name, p in parameters.items()}]
        for step in steps:
            after = self.step(trajectory[-1], step, differentiable)
            trajectory.append(after if differentiable else {name: p.detach() for name, p in after.items()})
        return trajectory

    def outer_gradient(
        self,
        parameters: Parameters,
        steps: Sequence[InnerStep],
        outer_loss: Callable[[Parameters], Mapping[str, Tensor]],
        checkpoint: bool = False,
    ) -> OuterGradient:
        """The exact gradient, for every token weight, of the outer loss after all steps.

        ``outer_loss`` maps parameters to ``loss`` and its parts. With ``checkpoint`` only the parameters between the
        steps are kept, and the graph of each step is built again on the way back, so that memory does not grow with
        the graphs of all steps: with lambda_k = d loss / d theta_k,

            lambda_(i-1) = d <theta_i, lambda_i> / d theta_(i-1),    d loss / d w_i = d <theta_i, lambda_i> / d w_i.
        """
        steps = [replace(step, weights=step.weights.detach().requires_grad_()) for step in steps]
        trajectory = self.unroll(parameters, steps, differentiable=not checkpoint)
        last = {name: p.detach() for name, p in trajectory[-1].items()}
        if not checkpoint:
            losses = outer_loss(trajectory[-1])
            gradients = list(
                torch.autograd.grad(losses["loss"], [step.weights for step in steps], materialize_grads=True)
            )
            return OuterGradient(_values(losses), gradients, last)
        end = {name: p.requires_grad_() for name, p in last.items()}
        losses = outer_loss(end)
        adjoint = list(torch.autograd.grad(losses["loss"], list(end.values()), materialize_grads=True))
        gradients = []
        for step, before in zip(reversed(steps), reversed(trajectory[:-1]), strict=True):
            start = {name: p.detach().requires_grad_() for name, p in before.items()}
            after = self.step(start, step, differentiable=True)
            *adjoint, gradient = torch.autograd.grad(
                list(after.values()), [*start.values(), step.weights], adjoint, materialize_grads=True
            )
            gradients.insert(0, gradient)
        return OuterGradient(_values(losses), gradients, {name: p.detach() for name, p in last.items()})


def _values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def answer_loss(lm: BaseModel, parameters: Parameters, episodes: Sequence[Episode]) -> Tensor:
    """Mean -log p (nats) over the tokens of all answers (the shortest of each question) and their ends of text."""
    ids, scored = closed_book_rows(lm, episodes)  # (questions, longest)
    predicted = logits(lm, parameters, ids[:, :-1], scored[:, 1:])  # (answer tokens, vocabulary)
    return functional.cross_entropy(predicted, ids[:, 1:][scored[:, 1:]])


def drift(before: Tensor, after: Tensor) -> Tensor:
    """KL(before || after) of next-token distributions given by logits (tokens, vocabulary): mean over tokens, nats."""
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
