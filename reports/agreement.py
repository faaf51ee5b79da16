"""Agreement of two rankings of the same methods: Kendall's tau-b, with an interval by a bootstrap over streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.seeds import seed_for

RESAMPLES = 2000
FEWEST = 4
"""With fewer streams there are too few different resamples for an interval."""
DECIMALS = 12
"""Scores that are equal to this many decimals are ties: the rest is rounding error."""

Scores = npt.NDArray[np.float64]


class Agreement(NamedTuple):
    """Kendall's tau-b between two rankings."""

    tau: float
    """1 if all pairs of methods have the same order in both, -1 if all have the opposite one."""
    interval: tuple[float, float] | None
    """95 % interval over streams; None with fewer than :data:`FEWEST`."""
    methods: int
    streams: tuple[int, ...]
    """The number of streams or, if the two rankings are from streams of their own, that of each."""

    def __str__(self) -> str:
        text = f"{self.tau:.2f}"
        if self.interval is None:
            return f"{text} (no interval: it takes {FEWEST} streams)"
        low, high = self.interval
        streams = " and ".join(map(str, self.streams))
        return f"{text} (95 % interval {low:.2f} to {high:.2f}, bootstrap over {streams} streams)"


def agreement(a: Scores, b: Scores, same_streams: bool = True, known: Sequence[bool] | None = None) -> Agreement | None:
    """The agreement of the rankings of methods by mean score; ``a`` and ``b`` have the shape (methods, streams).

    Scores on the same streams are resampled together, those on streams of different datasets each on their own. Each
    resample draws one stream less than there are, with replacement: the variance of its means is then that of the means
    over streams, without the factor (K - 1) / K of the usual bootstrap (Rao and Wu 1988). The interval lies between the
    2.5 % and 97.5 % quantiles of tau-b. It is about the streams alone: methods and their seeds, models and datasets
    are fixed.

    Of the pairs of methods, in the order of ``itertools.combinations``, only those that are ``known`` count; by default
    all do. None if one of the rankings has no order: fewer than two methods, or all are tied.

    Raises:
        ValueError: the numbers of methods differ, or those of streams if they are the same; or there is no stream.
    """
    (methods, *streams), (_, other) = a.shape, b.shape
    if len(a) != len(b) or not (streams[0] and other) or (same_streams and streams != [other]):
        raise ValueError(f"Scores of the shapes {a.shape} and {b.shape} do not rank the same methods on streams.")
    if not same_streams:
        streams.append(other)
    tau = float(tau_b(a.mean(1), b.mean(1), known))
    if np.isnan(tau):
        return None
    if min(streams) < FEWEST:
        return Agreement(tau, None, methods, tuple(streams))
    rng = np.random.default_rng(seed_for("agreement", *streams))
    draws = [rng.integers(count, size=(RESAMPLES, count - 1)) for count in streams]
    taus = tau_b(a[:, draws[0]].mean(2).T, b[:, draws[-1]].mean(2).T, known)
    low, high = np.quantile(np.nan_to_num(taus), [0.025, 0.975])  # a resample without an order: no agreement
    return Agreement(tau, (float(low), float(high)), methods, tuple(streams))


def tau_b(a: Scores, b: Scores, known: Sequence[bool] | None = None) -> Scores:
    """Kendall's (1945) tau-b along the last axis: (concordant - discordant pairs) / sqrt(untied in a * untied in b).

    Only the ``known`` pairs count; by default all do. NaN where all of them are tied in ``a`` or in ``b``. scipy has
    the same for one pair of rankings at a time.
    """
    left, right = np.triu_indices(a.shape[-1], 1)
    counted = np.ones(len(left)) if known is None else np.asarray(known, dtype=float)
    in_a, in_b = (counted * np.sign(np.round(of[..., left] - of[..., right], DECIMALS)) for of in (a, b))
    untied = np.sqrt((in_a**2).sum(-1) * (in_b**2).sum(-1))
    with np.errstate(invalid="ignore"):
        return np.asarray((in_a * in_b).sum(-1) / untied)
