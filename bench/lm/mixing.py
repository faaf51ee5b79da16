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
LARGEST_GAIN, REPETITIONS = 0.1, 7
"""Most nats by which the token that follows may be likelier among others than alone, in the middle one of so many
positions."""


@contextmanager
def head_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Collect what the output layer reads, (B, T, d) for each forward pass inside the block."""
    seen: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def mixed(mix: MixNextToken, logits: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
    """The hook's log-probabilities (T, V), float32, in place of the ``logits`` (T, V) after the last T of the ``ids``.

    In scoring, the hook could read at one position what comes after it. So one position, drawn anew each time, is also
    mixed alone, as in decoding, and must give the same distribution.

    Raises:
        RunError: it does not, or the hook returns something other than a distribution for each position.
    """
    log_probs, hidden = logits.float().log_softmax(-1), hidden.float()
    if not len(log_probs):
        return log_probs
    result = _distributions(mix, log_probs, hidden, ids)
    if len(log_probs) > 1:

        def differences(at: int) -> tuple[float, float]:
            """Total variation from the position alone, and nats at the token that follows (0 after the last id)."""
            seen = ids[: len(ids) - len(log_probs) + at + 1]
            own = _distributions(mix, log_probs[at : at + 1], hidden[at : at + 1], seen)[0].detach()
            among, follows = result[at].detach(), ids[len(seen) : len(seen) + 1]
            nats = (among[follows] - own[follows]).sum().item()
            return 0.5 * (own.exp() - among.exp()).abs().sum().item(), nats

        at = secrets.randbelow(len(log_probs))
        distance, nats = differences(at)
        if distance <= LARGEST_DIFFERENCE and nats > LARGEST_GAIN:  # one neighbour in place of another can do that
            again = [differences(secrets.randbelow(len(log_probs)))[1] for _ in range(REPETITIONS)]
            nats = min(nats, sorted(again)[REPETITIONS // 2])
        if not (distance <= LARGEST_DIFFERENCE and nats <= LARGEST_GAIN):
            raise RunError(
                f"mix_next_token gives position {at} of {len(log_probs)} another distribution than alone (total "
                f"variation {distance:.2g}, {nats:.2g} nats at the token that follows). It may use the hidden state of "
                f"a position and the ids up to it only."
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
