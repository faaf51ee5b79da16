"""The next-token hook: a method's own distribution in place of the base's, wherever the harness reads probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.errors import RunError

MixNextToken = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From log-probabilities (T, V), hidden states (T, d) and ids (n,), n >= T, to log-probabilities (T, V)."""

LARGEST_DIFFERENCE = 0.02
"""Largest total variation distance between a position's distribution alone and among others: rounding is below it."""
LARGEST_GAIN = 0.1
"""Most nats by which the token that follows may be likelier among others than alone."""
CHECKED = 4
"""Positions that are mixed alone; the middle one of the differences decides, since one neighbour may take the place of
another that is as near."""


@contextmanager
def head_inputs(model: Any, alone: bool = False) -> Iterator[list[Tensor]]:
    """Collect what the output layer reads, (B, T, d) for each forward pass; ``alone``: without computing its logits."""
    seen: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        seen.append(inputs[0])
        return (inputs[0][:, :0],) if alone else None

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def mixed(mix: MixNextToken, logits: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    """The hook's log-probabilities (T, V), float32, in place of the ``logits`` (T, V) after the last T of the ``ids``.

    In scoring, the hook could read at one position what comes after it. So a few positions, drawn anew each time, are
    also mixed alone, as in decoding, and must give the same distributions. That is done before, since the hook could
    remember.

    Raises:
        RunError: it does not, or the hook returns something other than a distribution for each position.
    """
    with torch.autocast(logits.device.type, enabled=False):  # answers are decoded under it, scores are not
        return _mixed(mix, logits.float().log_softmax(-1), hidden.float(), ids)


def _mixed(mix: MixNextToken, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    if not len(log_probs):
        return log_probs
    count = len(log_probs)
    seen = len(ids) - count + 1  # ids up to the first position
    drawn = secrets.SystemRandom().sample(range(count), min(count, CHECKED)) if count > 1 else []
    alone = {
        at: _distributions(mix, log_probs[at : at + 1], hidden[at : at + 1], ids[: seen + at])[0].detach()
        for at in drawn
    }
    result = _distributions(mix, log_probs, hidden, ids)
    distances, gains = [], []
    for at, own in alone.items():
        among, follows = result[at].detach(), ids[seen + at : seen + at + 1]  # none after the last id
        distances.append(0.5 * (own.exp() - among.exp()).abs().sum().item())
        gains.append((among[follows] - own[follows]).sum().item())
    distance, nats = (sorted(values)[len(values) // 2] if values else 0.0 for values in (distances, gains))
    if not (distance <= LARGEST_DIFFERENCE and nats <= LARGEST_GAIN):
        raise RunError(
            f"mix_next_token gives a position among {count} another distribution than alone (total variation "
            f"{distance:.2g}, {nats:.2g} nats at the token that follows, in the middle one of {len(drawn)}). It may "
            f"use the hidden state of a position and the ids up to it only."
        )
    return result


def _distributions(mix: MixNextToken, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    result = mix(log_probs, hidden, ids)
    if not isinstance(result, Tensor) or result.shape != log_probs.shape:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise RunError(f"mix_next_token returned {shape}; it must return log-probabilities {tuple(log_probs.shape)}.")
    totals = result.detach().float().logsumexp(-1)
    if not torch.allclose(totals, torch.zeros_like(totals), atol=1e-3):
        worst = totals[totals.abs().nan_to_num(torch.inf).argmax()].exp().item()
        raise RunError(
            f"mix_next_token returned probabilities that sum to {worst:.3g}: normalise them, for example with "
            f"log_softmax, or mix with torch.logaddexp and weights that sum to 1."
        )
    return result.float()
