"""Error bars, differences and tests: the only place where any of them is computed.

An error always has a name. ``SE_stream`` is the standard error over streams (each stream one observation, the papers'
convention); ``SE_doc`` is over questions clustered by the document that answers them. Both stand beside one mean: that
of the streams' means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from bench.errors import BenchError

Kind = Literal["SE_stream", "SE_doc"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error. ``n`` is the number of independent units: streams, or documents."""

    mean: float
    se: float | None
    """None where a single unit leaves nothing to estimate it from."""
    kind: Kind
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Confidence interval by Student's t with n - 1 degrees of freedom; None without a standard error."""
        if self.se is None:
            return None
        half = _t_quantile((1 + level) / 2, self.n - 1) * self.se
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Two-sided p of the mean being 0, by the same t distribution.

        None without a standard error, and where that is 0: identical units show no spread to test against.
        """
        from scipy.special import stdtr

        return None if not self.se else float(2 * stdtr(self.n - 1, -abs(self.mean) / self.se))

    def smallest_detectable(self, level: float = 0.05, power: float = 0.8) -> float | None:
        """Smallest true value that a test at ``level`` would find with probability ``power`` (Bloom 1995)."""
        if self.se is None:
            return None
        return (_t_quantile(1 - level / 2, self.n - 1) + _t_quantile(power, self.n - 1)) * self.se

    def __str__(self) -> str:
        return show(self.mean, self.se)


class Item(NamedTuple):
    """One scored unit: a question with its score, or a document with its NLL per token (weight: its tokens)."""

    stream: str
    unit: str
    """Identifies it within the stream; the same in every method's items."""
    document: str
    """The cluster: units about one document rise and fall together."""
    value: float
    weight: float = 1.0


class Both(NamedTuple):
    """One mean with both of its errors."""

    stream: Estimate
    document: Estimate


def stream_error(means: Sequence[float]) -> Estimate:
    """Mean of the streams' means; SE_stream = their standard deviation (K - 1 in the divisor) / sqrt(K).

    Raises:
        ValueError: no stream.
    """
    values = np.asarray(means, dtype=float)
    if not values.size:
        raise ValueError("An error over streams needs at least one stream.")
    se = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
    return Estimate(float(values.mean()), se, "SE_stream", values.size)


def clustered_error(
    values: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
) -> Estimate:
    """Weighted mean of ``values`` with the cluster-robust standard error SE_doc, ``n`` clusters of any size.

    SE^2 = G / (G - 1) * sum over clusters g of (sum over i in g of w_i (v_i - mean))^2 / (sum of w)^2: the sandwich
    estimator of Liang and Zeger (1986) for a mean, with the small-sample factor that Cameron and Miller (2015,
    section II.B) give, G clusters and one parameter. It is the usual error of a ratio of two cluster totals.

    Raises:
        ValueError: no value, or the lengths differ.
    """
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    if not len(v) == len(clusters) == len(w) or not len(v):
        raise ValueError(f"Got {len(v)} values, {len(clusters)} clusters and {len(w)} weights.")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]
    mean = float(w @ v / w.sum())
    residuals = np.bincount(index, weights=w * (v - mean))
    g = len(numbers)
    se = float(np.sqrt(g / (g - 1) * (residuals @ residuals)) / w.sum()) if g > 1 else None
    return Estimate(mean, se, "SE_doc", g)


def stream_means(items: Iterable[Item]) -> dict[str, float]:
    """Weighted mean of each stream's items, by stream name in order."""
    by_stream: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_stream[item.stream].append(item)
    return {
        name: float(np.average([item.value for item in group], weights=[item.weight for item in group]))
        for name, group in sorted(by_stream.items())
    }


def summarize(items: Sequence[Item]) -> Both:
    """The mean over streams with both errors. A unit that comes several times (several seeds) is averaged first.

    Every stream has the same weight in both errors, so that they belong to one and the same mean.

    Raises:
        ValueError: no items.
    """
    return _both(list(_merged(items).values()))


def paired_difference(a: Sequence[Item], b: Sequence[Item]) -> Both:
    """Mean of a - b, matched by (stream, unit), with its error over streams and clustered by document.

    Pairing takes out what the units have in common (how hard a question is), which is most of their spread.

    Raises:
        BenchError: the two do not have the same units; the first that only one has is named.
    """
    return _both(_differences(a, b))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two means over the same streams, its SE_stream by linearisation (Cochran 1977, section 6.4).

    Raises:
        ValueError: the denominators average to 0, or the lengths differ.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if top.shape != bottom.shape or not bottom.mean():
        raise ValueError(f"No ratio of {list(numerators)} to {list(denominators)}.")
    value = float(top.mean() / bottom.mean())
    return Estimate(value, stream_error(list((top - value * bottom) / bottom.mean())).se, "SE_stream", top.size)


def bootstrap_interval(items: Sequence[Item], seed: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the items' mean by resampling whole documents (percentile cluster bootstrap).

    A check on :func:`clustered_error` that assumes no t distribution.
    """
    from scipy import stats

    totals, weights = _cluster_totals(list(_merged(items).values()))
    result = stats.bootstrap(
        (totals, weights),
        lambda total, weight, axis: total.sum(axis=axis) / weight.sum(axis=axis),
        paired=True,
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def sign_flip_p(a: Sequence[Item], b: Sequence[Item], seed: int) -> float:
    """Permutation p of a and b being alike: the two swap places in whole documents, all questions of one together.

    Two-sided; exact where there are few documents, else over 9,999 random swaps.

    Raises:
        BenchError: as :func:`paired_difference`.
    """
    from scipy import stats

    totals, _ = _cluster_totals(_differences(a, b))
    result = stats.permutation_test(
        (totals,),
        lambda total, axis: total.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) adjusted p of a family of tests: those below a level keep the family-wise error under it."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def roc_auc(values: Sequence[float], wanted: Sequence[bool]) -> float | None:
    """Probability that a wanted item has the larger value than another one, ties counting half (Mann and Whitney 1947).

    It is the area under the ROC curve; 0.5 is chance. None where all or none are wanted.
    """
    from scipy.stats import rankdata

    chosen = np.asarray(wanted, dtype=bool)
    many, others = int(chosen.sum()), int((~chosen).sum())
    if not many or not others:
        return None
    below = rankdata(values)[chosen].sum() - many * (many + 1) / 2
    return float(below / (many * others))


def show(mean: float, se: float | None, digits: int = 3) -> str:
    """``"0.123 ± 0.004"``; an error too small for the digits is "< 0.001", an unknown one "n/a": never ± 0.000."""
    smallest = 10.0**-digits
    error = "n/a" if se is None else f"<{smallest:.{digits}f}" if se < smallest / 2 else f"{se:.{digits}f}"
    return f"{round(mean, digits) + 0.0:.{digits}f} ± {error}"


def _merged(items: Iterable[Item]) -> dict[tuple[str, str], Item]:
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.stream, item.unit].append(item)
    return {
        key: group[0] if len(group) == 1 else group[0]._replace(value=float(np.mean([item.value for item in group])))
        for key, group in groups.items()
    }


def _differences(a: Iterable[Item], b: Iterable[Item]) -> list[Item]:
    left, right = _merged(a), _merged(b)
    if alone := sorted(left.keys() ^ right.keys()):
        stream, unit = alone[0]
        raise BenchError(
            f"The two cannot be compared: only one of them has {unit} of stream {stream} ({len(alone)} such cases). "
            f"Run both on the same streams."
        )
    return [item._replace(value=item.value - right[key].value) for key, item in left.items()]


def _stream_weights(items: Sequence[Item]) -> list[float]:
    total: dict[str, float] = defaultdict(float)
    for item in items:
        total[item.stream] += item.weight
    return [item.weight / total[item.stream] for item in items]


def _both(items: Sequence[Item]) -> Both:
    over_streams = stream_error(list(stream_means(items).values()))
    documents = [item.document for item in items]
    return Both(over_streams, clustered_error([item.value for item in items], documents, _stream_weights(items)))


def _cluster_totals(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for item, weight in zip(items, _stream_weights(items), strict=True):
        totals[item.document] += (weight * item.value, weight)
    both = np.array(list(totals.values()))
    return both[:, 0], both[:, 1]


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
