"""Estimates: means with their errors, intervals and p-values, and paired differences.

Every error has a name. ``SE_stream`` is the standard error over streams (each stream is one observation). ``SE_doc``
is the standard error over questions, clustered by the document that answers them. Both belong to the same mean: the
mean of the stream means. With several seeds both include what the seeds add (:mod:`reports.spread`).
:mod:`reports.ranks` compares all methods, and :mod:`reports.agreement` two rankings of them. No other module computes
errors or tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.seeds import seed_for
from reports.spread import Run, Runs, Term, seed_term

ErrorKind = Literal["SE_stream", "SE_doc"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error. ``n`` is the number of independent units: streams, or documents."""

    mean: float
    se: float | None
    """None if there is a single unit."""
    kind: ErrorKind
    n: int
    degrees: float
    """Degrees of freedom of the error: n - 1, or fewer if the seeds are a part of it."""

    def half_width(self) -> float | None:
        """Half the width of the 95 % confidence interval by Student's t; None without a standard error."""
        return None if self.se is None else _t_quantile(self.degrees) * self.se

    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval by Student's t; None without a standard error."""
        half = self.half_width()
        return None if half is None else (self.mean - half, self.mean + half)

    def p_value(self) -> float | None:
        """Two-sided p-value of the null hypothesis that the mean is 0, by the same t distribution.

        None without a standard error. If there is no spread it is 1 for a mean of 0 and else 2 / 2^n, by the signs of
        the n units alone: differences of scores that are counts are often equal by chance.
        """
        from scipy.special import stdtr

        if self.se is None:
            return None
        if abs(self.mean) < NOTHING or self.se < NOTHING:
            return 1.0 if abs(self.mean) < NOTHING else 2.0 ** (1 - self.n)
        return float(2 * stdtr(self.degrees, -abs(self.mean) / self.se))

    def __str__(self) -> str:
        return show(self.mean, self.half_width())


NOTHING = 1e-12
"""A mean or a standard error below this is a rounding error of 0."""


class Item(NamedTuple):
    """One scored unit: a question with its score, or a document with its NLL per token (weight: its tokens)."""

    stream: str
    unit: str
    """Identifier within the stream, the same for every method, seed and order."""
    document: str
    """The cluster: units about one document are correlated."""
    value: float
    weight: float = 1.0
    seed: int = 0
    order: int = 0
    training: str = ""
    """As in :class:`reports.spread.Run`."""

    @classmethod
    def of(cls, run: Run, unit: str, document: str, value: float, weight: float = 1.0) -> Self:
        """An item of this run."""
        return cls(run.stream, unit, document, value, weight, run.seed, run.order, run.training)


class EstimatePair(NamedTuple):
    """One mean with both of its errors: SE_stream and SE_doc."""

    stream: Estimate
    document: Estimate


@dataclass(frozen=True)
class Sample:
    """The items of one row, averaged over its seeds and orders."""

    units: Mapping[tuple[str, str], Item]
    """By stream and unit."""
    seeds: Term | None
    """What the seeds add to the variance of the mean; None with a single seed."""
    runs: Runs = field(default_factory=dict)
    """The mean of each run, if there are several seeds."""

    @classmethod
    def of(cls, items: Sequence[Item]) -> Self:
        """The sample of a row's items."""
        groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
        for item in items:
            groups[item.stream, item.unit].append(item)
        units = {
            key: group[0] if len(group) == 1 else group[0]._replace(value=_mean([item.value for item in group]))
            for key, group in groups.items()
        }
        if all(item.seed == items[0].seed for item in items):
            return cls(units, None)
        runs = run_means(items)
        return cls(units, seed_term(runs), runs)

    @cached_property
    def by_stream(self) -> dict[str, float]:
        """The mean of each stream."""
        return stream_means(self.units.values())

    @property
    def mean(self) -> float:
        """The mean of the stream means."""
        return _mean(list(self.by_stream.values()))

    @property
    def extra(self) -> list[Term]:
        """The seeds' term, if there is one."""
        return [] if self.seeds is None else [self.seeds]

    @cached_property
    def trainings(self) -> Mapping[int, str]:
        """The trained weights of each seed by their hash; {} unless each seed has its own."""
        of = {run.seed: run.training for run in self.runs}
        return of if self.seeds and "" not in of.values() and len(set(of.values())) == len(of) else {}

    def minus(self, other: Sample) -> list[Term]:
        """What the seeds add to the variance of the difference from another sample.

        Seeds are paired if each stands for the same trained weights in both. Else equal numbers have nothing in common.
        """
        if self.trainings and self.trainings == other.trainings and self.runs.keys() == other.runs.keys():
            term = seed_term({run: value - other.runs[run] for run, value in self.runs.items()})
            return [] if term is None else [term]
        return [*self.extra, *other.extra]


def error_kind(streams: int) -> ErrorKind:
    """The error to show of a mean over so many streams: SE_stream, or SE_doc if a single one has no SE_stream."""
    return "SE_stream" if streams > 1 else "SE_doc"


def stream_error(means: Sequence[float], extra: Sequence[Term] = ()) -> Estimate:
    """Mean of the stream means; SE_stream = their standard deviation (K - 1 in the divisor) / sqrt(K).

    ``extra`` holds further terms of the variance of the mean. The degrees of freedom of the sum are Satterthwaite's
    (1946).

    Raises:
        ValueError: there are no streams.
    """
    values = np.asarray(means, dtype=float)
    if not values.size:
        raise ValueError("An error over streams needs at least one stream.")
    own = Term(float(values.var(ddof=1)) / values.size, values.size - 1) if values.size > 1 else None
    return _estimate(float(values.mean()), own, extra, "SE_stream", values.size)


def clustered_error(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    extra: Sequence[Term] = (),
) -> Estimate:
    """Weighted mean of ``values`` with the cluster-robust standard error SE_doc; clusters may differ in size.

    SE^2 = G / (G - 1) * sum over clusters g of (sum over i in g of w_i (v_i - mean))^2 / (sum of w)^2: the sandwich
    estimator of Liang and Zeger (1986) for a mean, with the small-sample factor of Cameron and Miller (2015,
    section II.B) for G clusters and one parameter. It is the usual error of a ratio of two cluster totals. ``extra``
    as in :func:`stream_error`.

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
    own = Term(float(g / (g - 1) * (residuals @ residuals) / w.sum() ** 2), g - 1) if g > 1 else None
    return _estimate(mean, own, extra, "SE_doc", g)


def _estimate(mean: float, own: Term | None, extra: Sequence[Term], kind: ErrorKind, n: int) -> Estimate:
    if own is None:
        return Estimate(mean, None, kind, n, 0.0)
    terms = [own, *extra]
    variance = sum(term.variance for term in terms)
    parts = sum(term.variance**2 / term.degrees for term in terms)
    return Estimate(mean, float(np.sqrt(variance)), kind, n, variance**2 / parts if parts else own.degrees)


def stream_means(items: Iterable[Item]) -> dict[str, float]:
    """Weighted mean of each stream's items, by stream name, sorted."""
    by_stream: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_stream[item.stream].append(item)
    return {stream: _weighted_mean(group) for stream, group in sorted(by_stream.items())}


def run_means(items: Iterable[Item]) -> dict[Run, float]:
    """Weighted mean of each run's items, in the order of streams, seeds and orders."""
    by_run: dict[Run, list[Item]] = defaultdict(list)
    for item in items:
        by_run[Run(item.stream, item.seed, item.order, item.training)].append(item)
    return {run: _weighted_mean(group) for run, group in sorted(by_run.items())}


def run_items(runs: Runs) -> list[Item]:
    """A score of each run as one item."""
    return [Item.of(run, "", "", value) for run, value in runs.items()]


def _weighted_mean(items: Sequence[Item]) -> float:
    return float(np.average([item.value for item in items], weights=[item.weight for item in items]))


def mean_over_streams(items: Sequence[Item]) -> Estimate:
    """The mean of the stream means of ``items``, with SE_stream. A unit with several seeds or orders is averaged first.

    Raises:
        ValueError: there are no items.
    """
    sample = Sample.of(items)
    return stream_error(list(sample.by_stream.values()), sample.extra)


def summarize(items: Sequence[Item]) -> EstimatePair:
    """The mean over streams with both errors. A unit with several seeds or orders is averaged first.

    All streams have the same weight in both errors, so both belong to the same mean.

    Raises:
        ValueError: there are no items.
    """
    sample = Sample.of(items)
    units = list(sample.units.values())
    return EstimatePair(
        stream_error(list(sample.by_stream.values()), sample.extra), _over_documents(units, sample.extra)
    )


def mean_over_documents(items: Sequence[Item]) -> Estimate:
    """The mean over all questions, whatever their streams, with SE_doc. A unit with several seeds is averaged first.

    Raises:
        ValueError: there are no items.
    """
    sample = Sample.of(items)
    units = list(sample.units.values())
    return clustered_error([item.value for item in units], [item.document for item in units], None, sample.extra)


def paired_difference(a: Sequence[Item], b: Sequence[Item]) -> EstimatePair:
    """Mean of a - b, matched by (stream, unit), with both errors.

    Pairing removes what the units have in common (the difficulty of a question), which is most of their spread.

    Raises:
        BenchError: ``a`` and ``b`` do not have the same units; the message names the first unmatched one.
    """
    left, right = Sample.of(a), Sample.of(b)
    return EstimatePair(difference(left, right, "SE_stream"), difference(left, right, "SE_doc"))


def difference(a: Sample, b: Sample, kind: ErrorKind) -> Estimate:
    """Mean of a - b with this error, as in :func:`paired_difference`.

    Seeds count as in :meth:`Sample.minus`.

    Raises:
        BenchError: as :func:`paired_difference`.
    """
    if unmatched := sorted(a.units.keys() ^ b.units.keys()):
        stream, unit = unmatched[0]
        raise BenchError(
            f"The two cannot be compared: only one of them has {unit} of stream {stream} "
            f"({len(unmatched)} unmatched in all). Run both on the same streams."
        )
    extra = a.minus(b)
    if kind == "SE_stream":
        return stream_error([mean - b.by_stream[stream] for stream, mean in a.by_stream.items()], extra)
    return _over_documents(
        [unit._replace(value=unit.value - b.units[key].value) for key, unit in a.units.items()], extra
    )


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates of one kind, as of several datasets, each with the same weight.

    It is about these datasets, not about others that might have been chosen. Degrees of freedom are Satterthwaite's.

    Raises:
        ValueError: there are no estimates.
    """
    count = len(estimates)
    if not count:
        raise ValueError("A mean of estimates needs at least one.")
    mean, n = _mean([estimate.mean for estimate in estimates]), sum(estimate.n for estimate in estimates)
    terms = [Term((e.se / count) ** 2, e.degrees) for e in estimates if e.se is not None]
    own, *further = terms if len(terms) == count else [None]
    return _estimate(mean, own, [term for term in further if term is not None], estimates[0].kind, n)


RESAMPLES = 9999
"""Resamples of the bootstrap, and of the permutation test if there are more permutations."""

Array = npt.NDArray[Any]


class Pairs(NamedTuple):
    """What two rows have in each independent unit, a stream or a document; three arrays of the shape (units,).

    The paired difference of their means is (a - b).sum() / weights.sum().
    """

    a: Array
    b: Array
    weights: Array


def pairs(a: Sample, b: Sample, kind: ErrorKind) -> Pairs:
    """The units of :func:`difference` with this error, which both samples have."""
    if kind == "SE_stream":
        return Pairs(
            np.array(list(a.by_stream.values())), np.array(list(b.by_stream.values())), np.ones(len(a.by_stream))
        )
    documents: dict[str, int] = {}
    weights = _stream_weights(list(a.units.values()))
    index = [documents.setdefault(unit.document, len(documents)) for unit in a.units.values()]
    columns = (
        [weight * unit.value for weight, unit in zip(weights, a.units.values(), strict=True)],
        [weight * b.units[key].value for weight, key in zip(weights, a.units, strict=True)],
        weights,
    )
    return Pairs(*(np.bincount(index, weights=column) for column in columns))


def bootstrap_interval(parts: Sequence[Pairs]) -> tuple[float, float] | None:
    """Bias-corrected and accelerated 95 % bootstrap interval (Efron 1987) of the paired difference; None for one unit.

    Whole units are drawn with replacement. With several parts, as of several datasets, units are drawn within each,
    and the interval is that of the mean of the differences. Seeds are those that ran: they are not drawn.
    """
    from scipy.stats import bootstrap

    if min(len(part.weights) for part in parts) < 2:
        return None

    def statistic(*draws: Array, axis: int) -> Array:
        of_parts = [
            (part.a - part.b)[draw].sum(axis) / part.weights[draw].sum(axis)
            for part, draw in zip(parts, draws, strict=True)
        ]
        return np.asarray(sum(of_parts) / len(parts))

    mean = float(statistic(*(np.arange(len(part.weights)) for part in parts), axis=0))
    spread = max(float(np.ptp((part.a - part.b) / part.weights)) for part in parts)
    if spread < NOTHING:  # the acceleration is 0 / 0
        return mean, mean
    found = bootstrap(
        [np.arange(len(part.weights)) for part in parts],
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        confidence_level=0.95,
        method="BCa",
        rng=np.random.default_rng(seed_for("bootstrap")),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def permutation_p_value(parts: Sequence[Pairs]) -> float | None:
    """Two-sided p-value of the null hypothesis that in each unit the two rows could be swapped; None for one unit.

    The statistic is the paired difference, with several parts the mean of their differences. All swaps are tried if
    they are at most :data:`RESAMPLES` (:func:`is_exact`), else as many random ones. Seeds are those that ran.
    """
    from scipy.stats import permutation_test

    a, b = (np.concatenate([getattr(part, name) / part.weights.sum() for part in parts]) for name in ("a", "b"))
    if len(a) < 2:
        return None
    found = permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=np.random.default_rng(seed_for("permutation")),
    )
    return float(found.pvalue)


def is_exact(units: int) -> bool:
    """True if a permutation test of so many units tries all swaps."""
    return 1 << units <= RESAMPLES


BATCH = 200
"""Resamples at a time: they are as many arrays of units."""
POWER = 0.8
"""Share of repetitions in which a planned comparison shall find the gap."""
LEVEL = 0.05
"""Level of the tests: of all pairs of methods together, of a plan (two-sided), of an alarm."""
MOST_UNITS = 20_000
"""The largest plan that is made."""


class Plan(NamedTuple):
    """How many streams or documents would resolve a gap between two rows."""

    kind: ErrorKind
    """Which of the two the units are."""
    units: int
    """Units at hand."""
    smallest: float
    """The smallest gap that these resolve."""
    needed: int | None
    """Units that resolve the gap; None if not even :data:`MOST_UNITS` do, as when the seeds spread too much."""
    range: tuple[int | None, int | None]
    """The same for the ends of the 95 % interval of the variance between units, which is itself an estimate."""


def plan(a: Sample, b: Sample, gap: float, kind: ErrorKind) -> Plan | None:
    """The units that a paired t test at :data:`LEVEL` needs to find a true difference ``gap`` with :data:`POWER`.

    The power is that of the noncentral t distribution (Cohen 1988, section 2), without the tail of the wrong sign. The
    variance between units is the observed one. What the seeds add stays as it is: new streams bring no new seeds. None
    for one unit, or if the rows differ by the same amount in all units.
    """
    from scipy.special import stdtrit
    from scipy.stats import chi2, nct

    own = difference(Sample(a.units, None), Sample(b.units, None), kind)
    if own.se is None or own.se < NOTHING:
        return None
    extra, degrees, variance = a.minus(b), own.n - 1, own.se**2 * own.n
    counts = np.arange(2, MOST_UNITS + 1)

    def power(size: Array | float, units: Array | int, variance: float) -> Array:
        terms = [Term(variance / units, units - 1), *extra]  # type: ignore[arg-type]
        total = sum(term.variance for term in terms)
        satterthwaite = total**2 / sum(term.variance**2 / term.degrees for term in terms)
        return np.asarray(nct.sf(stdtrit(satterthwaite, 1 - LEVEL / 2), satterthwaite, size / np.sqrt(total)))

    def needed(variance: float) -> int | None:
        for part in np.array_split(counts, len(counts) // 500):  # not by halving: with seeds it can fall again
            if (found := power(gap, part, variance) >= POWER).any():
                return int(part[found.argmax()])
        return None

    error = np.sqrt(own.se**2 + sum(term.variance for term in extra))
    gaps = error * np.arange(1, 10_001) / 100  # even with one degree of freedom 17 errors are found
    smallest = gaps[(power(gaps, own.n, variance) >= POWER).argmax()]
    low, high = (needed(variance * degrees / float(chi2.ppf(q, degrees))) for q in (0.975, 0.025))
    return Plan(kind, own.n, float(smallest), needed(variance), (low, high))


def ratio(numerators: Runs, denominators: Runs) -> Estimate:
    """Ratio of two means over the same runs, with SE_stream by linearisation (Cochran 1977, section 6.4).

    Raises:
        ValueError: the mean of the denominators is 0, or the runs differ.
    """
    value, residuals = _linearised(numerators, denominators)
    error = _mean_of_runs(residuals)
    return Estimate(value, error.se, error.kind, error.n, error.degrees)


def ratio_by_run(numerators: Runs, denominators: Runs) -> dict[Run, float]:
    """A value of each run, such that their mean and its SE_stream are those of :func:`ratio`.

    Ratios of one method can thus be paired with those of another one, or joined by a line, run by run.

    Raises:
        ValueError: as :func:`ratio`.
    """
    value, residuals = _linearised(numerators, denominators)
    return {run: value + residual for run, residual in residuals.items()}


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate in another unit."""
    se = None if estimate.se is None else abs(factor) * estimate.se
    return replace(estimate, mean=factor * estimate.mean, se=se)


def _linearised(numerators: Runs, denominators: Runs) -> tuple[float, dict[Run, float]]:
    top, bottom = _mean_of_runs(numerators).mean, _mean_of_runs(denominators).mean
    if numerators.keys() != denominators.keys() or not bottom:
        raise ValueError(f"There is no ratio of {dict(numerators)} to {dict(denominators)}.")
    value = top / bottom
    return value, {run: (numerators[run] - value * denominators[run]) / bottom for run in numerators}


def slope(points: Mapping[float, Sequence[Item]]) -> Estimate:
    """Mean slope of the least-squares lines through the points of each run, with SE_stream.

    Raises:
        ValueError: there are fewer than two positions, or a run lacks one of them.
    """
    if len(points) < 2:
        raise ValueError("A slope needs two positions.")
    places = np.array(sorted(points))
    centred = places - places.mean()
    runs = [run_means(points[place]) for place in sorted(points)]
    if any(of.keys() != runs[0].keys() for of in runs):
        raise ValueError("A slope needs each run at every position.")
    weights = centred / (centred @ centred)
    return _mean_of_runs({run: float(weights @ [of[run] for of in runs]) for run in runs[0]})


def _mean_of_runs(runs: Runs) -> Estimate:
    return mean_over_streams(run_items(runs))


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


def show(mean: float, error: float | None, digits: int = 3) -> str:
    """``"0.123 ± 0.004"``. An error that would round to 0 is shown as "<0.001", an unknown one as "n/a"."""
    return f"{show_number(mean, digits)} ± {show_error(error, digits)}"


def show_number(number: float, digits: int = 3) -> str:
    """A number alone; no "-0"."""
    return f"{round(number, digits) + 0.0:.{digits}f}"


def show_error(error: float | None, digits: int = 3) -> str:
    """An error alone, as in :func:`show`."""
    smallest = 10.0**-digits
    return "n/a" if error is None else f"<{smallest:.{digits}f}" if error < smallest / 2 else f"{error:.{digits}f}"


def _over_documents(units: Sequence[Item], extra: Sequence[Term]) -> Estimate:
    """The mean of the stream means of ``units`` with SE_doc: all streams have the same weight."""
    weights = _stream_weights(units)
    return clustered_error([item.value for item in units], [item.document for item in units], weights, extra)


def _stream_weights(units: Sequence[Item]) -> list[float]:
    """Weights of the units that sum to 1 in each stream."""
    totals: dict[str, float] = defaultdict(float)
    for item in units:
        totals[item.stream] += item.weight
    return [item.weight / totals[item.stream] for item in units]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _t_quantile(degrees: float) -> float:
    """How many standard errors reach to an end of the 95 % interval."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))
