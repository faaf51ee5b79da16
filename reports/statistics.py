"""Error bars, paired differences and significance tests. No other module computes any of them.

Every error has a name. ``SE_stream`` is the standard error over streams (each stream is one observation, the papers'
convention). ``SE_doc`` is the standard error over questions, clustered by the document that answers them. Both belong
to the same mean: the mean of the stream means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from bench.errors import BenchError

ErrorKind = Literal["SE_stream", "SE_doc"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error. ``n`` is the number of independent units: streams, or documents."""

    mean: float
    se: float | None
    """None if there is a single unit."""
    kind: ErrorKind
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Confidence interval by Student's t with n - 1 degrees of freedom; None without a standard error."""
        if self.se is None:
            return None
        half = _t_quantile((1 + level) / 2, self.n - 1) * self.se
        return self.mean - half, self.mean + half

    def p_value(self) -> float | None:
        """Two-sided p-value of the null hypothesis that the mean is 0, by the same t distribution.

        None without a standard error, or if it is 0: identical units have no spread to test against.
        """
        from scipy.special import stdtr

        return None if not self.se else float(2 * stdtr(self.n - 1, -abs(self.mean) / self.se))

    def smallest_detectable(self, level: float = 0.05, power: float = 0.8) -> float | None:
        """Smallest true value that a test at ``level`` detects with probability ``power`` (Bloom 1995)."""
        if self.se is None:
            return None
        return (_t_quantile(1 - level / 2, self.n - 1) + _t_quantile(power, self.n - 1)) * self.se

    def __str__(self) -> str:
        return show(self.mean, self.se)


class Item(NamedTuple):
    """One scored unit: a question with its score, or a document with its NLL per token (weight: its tokens)."""

    stream: str
    unit: str
    """Identifier within the stream, the same for every method."""
    document: str
    """The cluster: units about one document are correlated."""
    value: float
    weight: float = 1.0


class EstimatePair(NamedTuple):
    """One mean with both of its errors: SE_stream and SE_doc."""

    stream: Estimate
    document: Estimate


def stream_error(means: Sequence[float]) -> Estimate:
    """Mean of the stream means; SE_stream = their standard deviation (K - 1 in the divisor) / sqrt(K).

    Raises:
        ValueError: there are no streams.
    """
    values = np.asarray(means, dtype=float)
    if not values.size:
        raise ValueError("An error over streams needs at least one stream.")
    se = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
    return Estimate(float(values.mean()), se, "SE_stream", values.size)


def clustered_error(
    values: Sequence[float], clusters: Sequence[Hashable], weights: Sequence[float] | None = None
) -> Estimate:
    """Weighted mean of ``values`` with the cluster-robust standard error SE_doc; clusters may differ in size.

    SE^2 = G / (G - 1) * sum over clusters g of (sum over i in g of w_i (v_i - mean))^2 / (sum of w)^2: the sandwich
    estimator of Liang and Zeger (1986) for a mean, with the small-sample factor of Cameron and Miller (2015,
    section II.B) for G clusters and one parameter. It is the usual error of a ratio of two cluster totals.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    v = np.asarray(values, dtype=float)
    w = np.ones_like(v) if weights is None else np.asarray(weights, dtype=float)
    if not len(v) == len(clusters) == len(w) or not len(v):
        raise ValueError(f"Got {len(v)} values, {len(clusters)} clusters and {len(w)} weights.")
    indices: dict[Hashable, int] = {}
    cluster_of = [indices.setdefault(cluster, len(indices)) for cluster in clusters]
    mean = float(w @ v / w.sum())
    residuals = np.bincount(cluster_of, weights=w * (v - mean))
    g = len(indices)
    se = float(np.sqrt(g / (g - 1) * (residuals @ residuals)) / w.sum()) if g > 1 else None
    return Estimate(mean, se, "SE_doc", g)


def stream_means(items: Iterable[Item]) -> dict[str, float]:
    """Weighted mean of each stream's items, by stream name, sorted."""
    by_stream: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_stream[item.stream].append(item)
    return {
        name: float(np.average([item.value for item in group], weights=[item.weight for item in group]))
        for name, group in sorted(by_stream.items())
    }


def mean_over_streams(items: Iterable[Item]) -> Estimate:
    """The mean of the stream means of ``items``, with SE_stream.

    Raises:
        ValueError: there are no items.
    """
    return stream_error(list(stream_means(items).values()))


def summarize(items: Sequence[Item]) -> EstimatePair:
    """The mean over streams with both errors. A unit that occurs several times (several seeds) is averaged first.

    All streams have the same weight in both errors, so both belong to the same mean.

    Raises:
        ValueError: there are no items.
    """
    return _estimate_pair(list(_merged(items).values()))


def paired_difference(a: Sequence[Item], b: Sequence[Item]) -> EstimatePair:
    """Mean of a - b, matched by (stream, unit), with both errors.

    Pairing removes what the units have in common (the difficulty of a question), which is most of their spread.

    Raises:
        BenchError: ``a`` and ``b`` do not have the same units; the message names the first unmatched one.
    """
    return _estimate_pair(_differences(a, b))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Ratio of two means over the same streams, with SE_stream by linearisation (Cochran 1977, section 6.4).

    Raises:
        ValueError: the mean of the denominators is 0, or the lengths differ.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if top.shape != bottom.shape or not bottom.mean():
        raise ValueError(f"There is no ratio of {list(numerators)} to {list(denominators)}.")
    value = float(top.mean() / bottom.mean())
    return Estimate(value, stream_error(list((top - value * bottom) / bottom.mean())).se, "SE_stream", top.size)


def bootstrap_interval(items: Sequence[Item], seed: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean of ``items`` by the percentile cluster bootstrap: whole documents are resampled.

    A check on :func:`clustered_error` that does not assume a t distribution.
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
    """Two-sided p-value of a paired permutation test: a and b are swapped per document, with all its questions.

    Exact if there are few documents, else over 9,999 random swaps.

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
    """Holm's (1979) adjusted p-values: rejecting those below a level keeps the family-wise error rate below it."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def roc_auc(values: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Area under the ROC curve: the probability that a positive item has a larger value than a negative one.

    Ties count half; 0.5 is chance. It is Mann and Whitney's (1947) U over the number of pairs. None if all or no items
    are positive.
    """
    from scipy.stats import mannwhitneyu

    v, mask = np.asarray(values, dtype=float), np.asarray(positive, dtype=bool)
    pairs = int(mask.sum()) * int((~mask).sum())
    if not pairs:
        return None
    return float(mannwhitneyu(v[mask], v[~mask], method="asymptotic").statistic / pairs)  # only U is used, not p


def show(mean: float, se: float | None, digits: int = 3) -> str:
    """``"0.123 ± 0.004"``. An error that would round to 0 is shown as "<0.001", an unknown one as "n/a"."""
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
    if unmatched := sorted(left.keys() ^ right.keys()):
        stream, unit = unmatched[0]
        raise BenchError(
            f"The two cannot be compared: only one of them has {unit} of stream {stream} "
            f"({len(unmatched)} unmatched in all). Run both on the same streams."
        )
    return [item._replace(value=item.value - right[key].value) for key, item in left.items()]


def _stream_weights(items: Sequence[Item]) -> list[float]:
    totals: dict[str, float] = defaultdict(float)
    for item in items:
        totals[item.stream] += item.weight
    return [item.weight / totals[item.stream] for item in items]


def _estimate_pair(items: Sequence[Item]) -> EstimatePair:
    values, documents = [item.value for item in items], [item.document for item in items]
    return EstimatePair(mean_over_streams(items), clustered_error(values, documents, _stream_weights(items)))


def _cluster_totals(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for item, weight in zip(items, _stream_weights(items), strict=True):
        totals[item.document] += (weight * item.value, weight)
    columns = np.array(list(totals.values()))
    return columns[:, 0], columns[:, 1]


def _t_quantile(probability: float, degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
