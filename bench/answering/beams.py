"""Beam search: one group of beams, or several whose beams avoid each other's tokens (Vijayakumar et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import Answer, Prefill
from bench.lm.base_model import decode


class _Beam(NamedTuple):
    total: float
    """Sum of the log-probabilities of what was written, less the penalties."""
    ids: list[int]


class _Ended(NamedTuple):
    mean: float
    """The sum for each token, the stop token included."""
    ids: list[int]
    stopped: bool


class _Choice(NamedTuple):
    """A continuation of a beam by a token, and the sum that it then has."""

    total: float
    beam: int
    token: int


class _Group:
    """The beams of one group of a prompt. It is over when as many beams have stopped as it has."""

    def __init__(self, size: int, stops: Sequence[int]) -> None:
        self.size, self.stops = size, stops
        self.beams = [_Beam(0.0, [])]
        self.ended: list[_Ended] = []

    @property
    def is_over(self) -> bool:
        return len(self.ended) >= self.size

    @property
    def totals(self) -> list[float]:
        """The sums of all beams; at first there is only one."""
        return [beam.total for beam in self.beams] + [-math.inf] * (self.size - len(self.beams))

    def write(self, best: Sequence[_Choice], going_on: Sequence[_Choice]) -> list[int]:
        """Go on by one token; returns the beam that each one continues.

        ``best`` are the best continuations, and ``going_on`` the best without a stop token.
        """
        for total, beam, token in best:
            if token in self.stops:
                ids = self.beams[beam].ids
                self.ended.append(_Ended(total / (len(ids) + 1), ids, True))
        self.beams = [_Beam(total, [*self.beams[beam].ids, token]) for total, beam, token in going_on]
        return [beam for _, beam, _ in going_on]

    def close(self) -> None:
        """End all beams, if it is not over."""
        if not self.is_over:
            self.ended += [_Ended(total / len(ids), ids, False) for total, ids in self.beams]


def beam_answers(prefill: Prefill, decoding: Decoding) -> list[Answer]:
    """The best continuation of every prompt by its mean log-probability, as in transformers with early stopping.

    A beam stops if the stop token is among the best continuations of its group, of which there are as many as beams.
    The groups of a prompt write one after another: a token's log-probability is less by ``diversity_penalty`` for each
    beam of an earlier group that has just written it.
    """
    lm, beams, size = prefill.lm, decoding.beams, decoding.beams // decoding.groups
    stops = sorted(lm.stop_ids)
    prompts = [[_Group(size, stops) for _ in range(decoding.groups)] for _ in prefill.logits]
    alive = prompts
    batch = prefill.batch.copy()
    batch.select([row for row in range(len(prompts)) for _ in range(beams)])
    log_probs = prefill.logits.log_softmax(-1).expand(-1, beams, -1)  # (prompts, beams, V)
    for step in range(1, decoding.max_new_tokens + 1):
        rows: list[list[int]] = [[] for _ in alive]
        penalty = torch.zeros_like(log_probs[:, 0])  # (prompts, V)
        for place, own in enumerate(log_probs.split(size, dim=1)):
            at_work = [groups[place] for groups in alive]
            writing = [not group.is_over for group in at_work]
            for k, (group, choices) in enumerate(zip(at_work, _choices(at_work, own - penalty[:, None]), strict=True)):
                parents = group.write(*choices) if writing[k] else range(size)
                rows[k] += [k * beams + place * size + parent for parent in parents]
            written = [[k, beam.ids[-1]] for k, group in enumerate(at_work) if writing[k] for beam in group.beams]
            if written:
                at = torch.tensor(written, device=lm.device).unbind(1)
                penalty.index_put_(at, penalty.new_tensor(decoding.diversity_penalty), accumulate=True)
        going = [k for k, groups in enumerate(alive) if not all(group.is_over for group in groups)]
        if not going or step == decoding.max_new_tokens:
            break
        alive = [alive[k] for k in going]
        batch.select([row for k in going for row in rows[k]])
        last = [beam.ids[-1] for groups in alive for group in groups for beam in group.beams]
        tokens = torch.tensor(last, device=lm.device)[:, None]
        batch.extend(tokens, torch.ones_like(tokens))
        log_probs = batch.read(1).log_softmax(-1).view(len(alive), beams, -1)
    answers = []
    for groups in prompts:
        for group in groups:
            group.close()
        best = max((ended for group in groups for ended in group.ended), key=lambda ended: ended.mean)
        answers.append(Answer(decode(lm.tokenizer, best.ids), best.stopped))
    return answers


def _choices(groups: Sequence[_Group], log_probs: Tensor) -> Iterator[tuple[list[_Choice], list[_Choice]]]:
    """For :meth:`_Group.write`, of a group of each prompt: ``log_probs`` (prompts, size, V) come after its beams."""
    size, vocabulary = log_probs.shape[1:]
    continued = torch.tensor([group.totals for group in groups], device=log_probs.device)[..., None] + log_probs
    best = continued.flatten(1).topk(size)
    continued[..., groups[0].stops] = -torch.inf
    going_on = continued.flatten(1).topk(size)
    sums = torch.stack([best.values, going_on.values], 1).tolist()  # of all prompts, since a GPU is waited for
    places = torch.stack([best.indices, going_on.indices], 1).tolist()
    for of_prompt in zip(sums, places, strict=True):
        first, second = (
            [_Choice(total, *divmod(place, vocabulary)) for total, place in zip(*both, strict=True)]
            for both in zip(*of_prompt, strict=True)
        )
        yield first, second
