"""Beam search: one group of beams, or several whose beams avoid each other's tokens (Vijayakumar et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
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


class _Group:
    """The beams of one group of a prompt. It is over when as many beams have stopped as it has."""

    def __init__(self, size: int, stops: Sequence[int]) -> None:
        self.size, self.stops = size, stops
        self.beams = [_Beam(0.0, [])]
        self.ended: list[_Ended] = []

    @property
    def is_over(self) -> bool:
        return len(self.ended) >= self.size

    def write(self, log_probs: Tensor) -> list[int]:
        """Go on by one token: ``log_probs`` (size, V) come after each beam; returns the beam that each continues."""
        totals = torch.tensor([beam.total for beam in self.beams], device=log_probs.device)
        continued = totals[:, None] + log_probs[: len(self.beams)]  # (beams, V); one beam at first
        best = continued.flatten().topk(self.size)
        for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            beam, token = divmod(place, log_probs.shape[-1])
            if token in self.stops:
                ids = self.beams[beam].ids
                self.ended.append(_Ended(total / (len(ids) + 1), ids, True))
        continued[:, self.stops] = -torch.inf
        best = continued.flatten().topk(self.size)
        places = [divmod(place, log_probs.shape[-1]) for place in best.indices.tolist()]
        self.beams = [
            _Beam(total, [*self.beams[beam].ids, token])
            for total, (beam, token) in zip(best.values.tolist(), places, strict=True)
        ]
        return [beam for beam, _ in places]

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
        rows = []
        for first, groups, own in zip(range(0, beams * len(alive), beams), alive, log_probs, strict=True):
            penalty = torch.zeros_like(own[0])  # (V,)
            for group, part in zip(groups, own.split(size), strict=True):
                parents = list(range(size))
                if not group.is_over:
                    parents = group.write(part - penalty)
                    for beam in group.beams:
                        penalty[beam.ids[-1]] += decoding.diversity_penalty
                rows += [first + parent for parent in parents]
                first += size
        going = [k for k, groups in enumerate(alive) if not all(group.is_over for group in groups)]
        if not going or step == decoding.max_new_tokens:
            break
        alive = [alive[k] for k in going]
        batch.select([row for k in going for row in rows[k * beams : (k + 1) * beams]])
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
