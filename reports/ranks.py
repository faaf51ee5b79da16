"""Comparison of all pairs of methods: which are as good as the best, and between which ranks each lies."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from reports.statistics import LEVEL, ErrorKind, Item, Sample, difference

Key = TypeVar("Key")


@dataclass(frozen=True)
class Standing:
    """The ranks that a method can have: 1 is the best."""

    low: int
    """1 + the number of methods that are significantly better."""
    high: int
    """Number of methods - the number of those that are significantly worse."""
    worse: frozenset[str] = field(default=frozenset(), compare=False)
    """The methods that are significantly worse."""
    is_decided: bool = field(default=True, compare=False)
    """True if a difference between any two of the methods is significant."""

    @property
    def as_good_as_best(self) -> bool:
        """True if no method is significantly better."""
        return self.low == 1

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's (1979) adjusted p-values: rejecting those below a level keeps the family-wise error rate below it."""
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def standings(means: Mapping[str, float], p_values: Mapping[tuple[str, str], float]) -> dict[str, Standing]:
    """The standing of each method by its mean (higher is better) and the two-sided p-values of all pairs.

    The tests are of all pairs, so the choice of the best among the observed means is covered: with a probability of at
    least 1 - :data:`~reports.statistics.LEVEL` every method's true rank is in its interval, and no method that is as
    good as the best is lost.
    """
    better, worse = Counter[str](), defaultdict[str, set[str]](set)
    total = len(means)
    for (a, b), p_value in holm(p_values).items():
        if p_value < LEVEL:
            winner, loser = (a, b) if means[a] > means[b] else (b, a)
            better[loser] += 1
            worse[winner].add(loser)
    return {
        name: Standing(1 + better[name], total - len(worse[name]), frozenset(worse[name]), bool(better))
        for name in means
    }


def compare(rows: Mapping[str, Sequence[Item]], kind: ErrorKind, sign: int) -> dict[str, Standing]:
    """The standings of rows by the mean of their items; ``sign`` is -1 if the lower is the better.

    The units of the tests are streams or documents, as ``kind`` says. Without an error nothing is significant.

    Raises:
        BenchError: two rows do not have the same units.
    """
    samples = {name: Sample.of(items) for name, items in rows.items()}
    differences = {(a, b): difference(samples[a], samples[b], kind) for a, b in itertools.combinations(samples, 2)}
    p_values = {pair: estimate.p_value() for pair, estimate in differences.items()}
    means = {name: sign * sample.mean for name, sample in samples.items()}
    return standings(means, {pair: 1.0 if p_value is None else p_value for pair, p_value in p_values.items()})
