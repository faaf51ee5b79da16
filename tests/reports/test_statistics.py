"""Error bars and tests: values computed by hand, brute-force versions, and coverage of the intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.errors import BenchError
from reports.spread import Run
from reports.statistics import (
    Item,
    Pairs,
    Sample,
    bootstrap_interval,
    clustered_error,
    difference,
    is_exact,
    mean_of,
    mean_over_streams,
    paired_difference,
    pairs,
    permutation_p_value,
    plan,
    ratio,
    ratio_by_run,
    roc_auc,
    scaled,
    show,
    slope,
    stream_error,
    stream_means,
    summarize,
)


def random_items(rng, shift=0.0, streams=4, documents=15, spread=0.0):
    """Items with random effects of stream (standard deviation ``spread``), document and question; mean ``shift``."""
    items = []
    for k in range(streams):
        stream_effect = rng.normal(0, spread)
        for d in range(documents):
            document_effect = rng.normal(0, 1)
            for q in range(1 + d % 3):
                value = shift + stream_effect + document_effect + rng.normal()
                items.append(Item(f"s{k}", f"d{d}q{q}", f"s{k}d{d}", value))
    return items


def coverage(intervals, truth):
    return float(np.mean([low <= truth <= high for low, high in intervals]))


class TestStreamError:
    def test_hand_computed(self):
        estimate = stream_error([0.1, 0.2, 0.3, 0.4])
        assert estimate.mean == pytest.approx(0.25)
        assert estimate.se == pytest.approx(math.sqrt(0.05 / 3) / 2)
        assert (estimate.kind, estimate.n) == ("SE_stream", 4)

    def test_interval_uses_students_t_with_k_minus_1_degrees(self):
        estimate = stream_error([0.1, 0.2, 0.3, 0.4])
        low, high = estimate.interval()
        assert estimate.degrees == 3
        assert (high - low) / 2 == estimate.half_width() == pytest.approx(3.182446 * estimate.se)  # t table, 97.5 %
        assert str(estimate) == "0.250 ± 0.205"

    def test_one_stream_has_no_error(self):
        estimate = stream_error([0.5])
        assert estimate.se is None
        assert estimate.interval() is None
        assert estimate.half_width() is None
        assert estimate.p_value() is None
        assert str(estimate) == "0.500 ± n/a"

    def test_no_stream_is_an_error(self):
        with pytest.raises(ValueError, match="at least one stream"):
            stream_error([])

    @pytest.mark.parametrize("streams", [4, 8])
    def test_95_percent_interval_covers_95_percent(self, streams):
        rng = np.random.default_rng(0)
        estimates = [stream_error(row) for row in rng.normal(0.3, 0.1, (4000, streams))]
        assert 0.94 <= coverage([estimate.interval() for estimate in estimates], 0.3) <= 0.96

    @pytest.mark.parametrize(("errors", "expected"), [(1, 0.61), (2, 0.86)])
    def test_standard_errors_over_four_streams_cover_less_than_a_reader_expects(self, errors, expected):
        rng = np.random.default_rng(0)
        estimates = [stream_error(row) for row in rng.normal(0.3, 0.1, (4000, 4))]
        intervals = [
            (estimate.mean - errors * estimate.se, estimate.mean + errors * estimate.se) for estimate in estimates
        ]
        assert coverage(intervals, 0.3) == pytest.approx(expected, abs=0.015)


class TestClusteredError:
    def test_hand_computed(self):
        # mean 0.5; cluster residual sums: a = 1, b = -1; SE^2 = 2/1 * (1 + 1) / 4^2
        estimate = clustered_error([1, 1, 0, 0], ["a", "a", "b", "b"])
        assert estimate.mean == 0.5
        assert estimate.se == pytest.approx(0.5)
        assert (estimate.kind, estimate.n) == ("SE_doc", 2)

    def test_single_questions_give_the_ordinary_standard_error(self):
        values = [0.0, 1.0, 0.5, 0.25, 1.0]
        assert clustered_error(values, range(5)).se == pytest.approx(stream_error(values).se)

    def test_repeating_every_question_does_not_reduce_it(self):
        values, clusters = [0.0, 1.0, 0.5, 0.25], ["a", "b", "c", "d"]
        assert clustered_error(values * 2, clusters * 2).se == pytest.approx(clustered_error(values, clusters).se)

    def test_weights_count_as_repetitions(self):
        once = clustered_error([0.0, 1.0, 0.5], ["a", "b", "b"], [2, 1, 3])
        repeated = clustered_error([0.0, 0.0, 1.0, 0.5, 0.5, 0.5], ["a", "a", "b", "b", "b", "b"])
        assert (once.mean, once.se) == pytest.approx((repeated.mean, repeated.se))

    def test_one_cluster_has_no_error(self):
        assert clustered_error([0.0, 1.0], ["a", "a"]).se is None

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="2 values, 1 clusters"):
            clustered_error([0.0, 1.0], ["a"])

    def test_95_percent_interval_covers_95_percent_and_the_plain_one_does_not(self):
        rng = np.random.default_rng(1)
        sizes = 1 + np.arange(50) % 4
        clusters = np.repeat(np.arange(50), sizes).tolist()
        effects = np.repeat(rng.normal(0, 1, (1500, 50)), sizes, axis=1)
        values = 0.3 + effects + rng.normal(0, 0.5, effects.shape)
        assert 0.93 <= coverage([clustered_error(row, clusters).interval() for row in values], 0.3) <= 0.97
        assert coverage([clustered_error(row, range(len(row))).interval() for row in values], 0.3) < 0.9


class TestSummarize:
    def test_both_errors_belong_to_the_mean_of_the_stream_means(self):
        items = [Item("s0", "q0", "a", 1.0), Item("s1", "q0", "b", 0.0), Item("s1", "q1", "c", 0.5)]
        estimates = summarize(items)
        assert estimates.stream.mean == pytest.approx((1.0 + 0.25) / 2)
        assert estimates.document.mean == pytest.approx(estimates.stream.mean)
        assert mean_over_streams(items) == estimates.stream

    def test_weights_make_a_ratio_of_totals(self):
        tokens = [Item("s0", "0", "a", 2.0, 10), Item("s0", "1", "b", 4.0, 30)]
        assert stream_means(tokens) == {"s0": pytest.approx(3.5)}

    def test_orders_are_averaged_and_do_not_count_as_streams(self):
        values = [("s0", 0.0, 0), ("s0", 1.0, 1), ("s1", 1.0, 0), ("s1", 1.0, 1)]
        items = [Item(stream, "q", stream, value, order=order) for stream, value, order in values]
        estimates = summarize(items)
        assert estimates.stream.mean == estimates.document.mean == pytest.approx(0.75)
        assert (estimates.stream.n, estimates.document.n) == (2, 2)
        assert estimates.stream.se == pytest.approx(0.25)  # for two values, half their distance

    def test_seeds_widen_both_errors(self):
        items = [Item(f"s{k}", "q", f"d{k}", 0.4 * k + 0.2 * seed, seed=seed) for k in (0, 1) for seed in (0, 1)]
        estimates = summarize(items)
        # stream means 0.1, 0.5: variance of their mean 0.04; seed means 0.2, 0.4: 0.01
        assert estimates.stream.mean == pytest.approx(0.3)
        assert estimates.stream.se == pytest.approx(math.sqrt(0.04 + 0.01))
        assert estimates.stream.degrees == pytest.approx(0.05**2 / (0.04**2 + 0.01**2))  # Satterthwaite, 1 degree each
        assert estimates.document.se == pytest.approx(math.sqrt(2 * 2 * 0.2**2 / 4 + 0.01))

    def test_one_stream_has_the_seeds_in_its_error_over_documents(self):
        items = [Item("s", f"q{d}", f"d{d}", d + 0.2 * seed, seed=seed) for d in (0, 1) for seed in (0, 1)]
        assert summarize(items).stream.se is None
        assert summarize(items).document.se == pytest.approx(math.sqrt(0.25 + 0.01))


class TestPairedDifference:
    def test_hand_computed(self):
        a = [Item("s0", "q", "a", 0.6), Item("s1", "q", "b", 0.8), Item("s1", "r", "c", 0.2)]
        b = [Item("s0", "q", "a", 0.5), Item("s1", "q", "b", 0.5), Item("s1", "r", "c", 0.3)]
        estimates = paired_difference(a, b)
        assert estimates.stream.mean == pytest.approx((0.1 + 0.1) / 2)
        assert estimates.stream.se == pytest.approx(0, abs=1e-12)
        # differences 0.1, 0.3, -0.1 have weights 1, 1/2, 1/2; SE^2 = 3/2 * (0 + (0.2 / 2)^2 + (0.2 / 2)^2) / 2^2
        assert estimates.document.se == pytest.approx(math.sqrt(1.5 * 0.02 / 4))

    def test_the_order_of_items_does_not_matter(self):
        items = random_items(np.random.default_rng(2))
        zero = paired_difference(items, items[::-1])
        assert (zero.stream.mean, zero.document.mean, zero.document.se) == pytest.approx((0, 0, 0), abs=1e-12)

    def test_a_shared_difficulty_cancels(self):
        rng = np.random.default_rng(3)
        a = random_items(rng)
        b = [item._replace(value=item.value - 0.1) for item in a]
        assert paired_difference(a, b).document.se < 1e-9 < summarize(a).document.se

    def test_the_seeds_of_both_count_and_are_not_paired(self):
        def items(rows):
            values = enumerate(rows)
            return [
                Item(f"s{k}", "q", f"d{k}", value, seed=seed) for k, row in values for seed, value in enumerate(row)
            ]

        a, b, plain = items([(0.1, 0.3), (0.1, 0.3)]), items([(0.0, 0.4), (0.0, 0.4)]), items([(0.2,), (0.2,)])
        assert paired_difference(a, plain).stream.se == pytest.approx(0.1)
        assert paired_difference(a, b).stream.se == pytest.approx(math.sqrt(0.1**2 + 0.2**2))
        assert paired_difference(a, b).stream.mean == pytest.approx(0.0)

    def test_seeds_of_the_same_trainings_are_paired(self):
        """Differences of seeds 0 and 1 are -0.1 and -0.1: they add nothing, where those of each row are far apart."""

        def items(rows, hashes="xy"):
            return [
                Item(f"s{k}", "q", f"d{k}", value, seed=seed, training=hashes[seed])
                for k, row in enumerate(rows)
                for seed, value in enumerate(row)
            ]

        a, b = [(0.1, 0.5), (0.2, 0.6)], [(0.2, 0.6), (0.3, 0.7)]
        assert paired_difference(items(a), items(b)).stream.se == pytest.approx(0)
        apart = pytest.approx(math.sqrt(2 * 0.2**2))
        for other in ("yx", "xz", "xx"):  # other trainings, of one seed or of all
            assert paired_difference(items(a), items(b, other)).stream.se == apart
        assert paired_difference(items(a, "xx"), items(b, "xx")).stream.se == apart, "not trained for each seed"
        # by hand: differences of the seeds' means are 0.1 and 0.3, and their mean has the variance 0.02 / 2
        c = [(0.2, 0.8), (0.3, 0.9)]
        assert paired_difference(items(c), items(a)).stream.se == pytest.approx(0.1)

    def test_unmatched_questions_are_refused_and_the_first_is_named(self):
        a = [Item("s0", "q1", "a", 0.6), Item("s0", "q2", "a", 0.6)]
        with pytest.raises(BenchError, match=r"only one of them has q2 of stream s0 \(1 unmatched in all\)"):
            paired_difference(a, a[:1])

    def test_both_95_percent_intervals_cover_95_percent(self):
        rng = np.random.default_rng(4)
        pairs = [paired_difference(random_items(rng, 0.3), random_items(rng)) for _ in range(600)]
        assert 0.93 <= coverage([pair.stream.interval() for pair in pairs], 0.3) <= 0.97
        assert 0.93 <= coverage([pair.document.interval() for pair in pairs], 0.3) <= 0.97

    def test_only_the_error_over_streams_covers_streams_that_differ(self):
        rng = np.random.default_rng(5)
        pairs = [paired_difference(random_items(rng, 0.3, spread=0.5), random_items(rng)) for _ in range(600)]
        assert 0.93 <= coverage([pair.stream.interval() for pair in pairs], 0.3) <= 0.97
        assert coverage([pair.document.interval() for pair in pairs], 0.3) < 0.9


def runs(*values):
    return {Run(f"s{k}"): value for k, value in enumerate(values)}


class TestRatio:
    def test_hand_computed(self):
        # ratio 0.5; (top - 0.5 bottom) / mean bottom = 0.05, -0.05
        estimate = ratio(runs(0.3, 0.2), runs(0.5, 0.5))
        assert estimate.mean == pytest.approx(0.5)
        assert estimate.se == pytest.approx(0.1)

    def test_proportional_streams_have_no_error(self):
        assert ratio(runs(0.1, 0.2, 0.4), runs(0.2, 0.4, 0.8)).se == pytest.approx(0)

    def test_seeds_count(self):
        top = {Run(f"s{k}", seed): 0.2 + 0.2 * seed for k in (0, 1) for seed in (0, 1)}
        estimate = ratio(top, dict.fromkeys(top, 0.5))
        assert (estimate.mean, estimate.se) == (pytest.approx(0.6), pytest.approx(0.2))  # seeds 0.4 and 0.8

    def test_a_zero_denominator_is_refused(self):
        with pytest.raises(ValueError, match="There is no ratio"):
            ratio(runs(0.1), runs(0.0))

    def test_its_values_by_run_have_the_same_mean_and_error(self):
        rng = np.random.default_rng(7)
        for seeds in (1, 3):
            keys = [Run(f"s{k}", seed) for k in range(5) for seed in range(seeds)]
            top, bottom = ({key: float(rng.uniform(0.2, 1)) for key in keys} for _ in range(2))
            whole = ratio(top, bottom)
            parts = mean_over_streams([Item.of(run, "", "", v) for run, v in ratio_by_run(top, bottom).items()])
            assert (parts.mean, parts.se) == (pytest.approx(whole.mean), pytest.approx(whole.se))
            assert parts.degrees == pytest.approx(whole.degrees)

    def test_in_another_unit_the_error_keeps_its_sign(self):
        estimate = scaled(ratio(runs(0.3, 0.2), runs(0.5, 0.5)), -100)
        assert (estimate.mean, estimate.se, estimate.n) == (pytest.approx(-50), pytest.approx(10), 2)
        assert scaled(stream_error([1.0]), 2).se is None


class TestSlope:
    def test_hand_computed(self):
        # the lines through (0, 0), (1, 1), (2, 2) and (0, 1), (1, 1), (2, 4) have the slopes 1 and 1.5
        points = {x: [Item("s0", "", "", a), Item("s1", "", "", b)] for x, a, b in ((0, 0, 1), (1, 1, 1), (2, 2, 4))}
        estimate = slope(points)
        assert (estimate.mean, estimate.se) == (pytest.approx(1.25), pytest.approx(0.25))

    def test_is_the_mean_of_the_least_squares_lines_of_numpy(self):
        rng = np.random.default_rng(8)
        places = [0.0, 1.0, 2.5, 7.0]
        values = rng.normal(size=(4, len(places)))
        points = {x: [Item(f"s{k}", "", "", values[k, i]) for k in range(4)] for i, x in enumerate(places)}
        expected = stream_error([float(np.polyfit(places, of, 1)[0]) for of in values])
        assert (slope(points).mean, slope(points).se) == (pytest.approx(expected.mean), pytest.approx(expected.se))

    def test_its_interval_covers_the_true_slope(self):
        rng, places = np.random.default_rng(9), [0.0, 0.5, 1.0]
        found = []
        for _ in range(600):
            values = rng.normal(0, 1, (4, 1)) + rng.normal(2, 0.5, (4, 1)) * places + rng.normal(0, 0.3, (4, 3))
            points = {x: [Item(f"s{k}", "", "", values[k, i]) for k in range(4)] for i, x in enumerate(places)}
            found.append(slope(points).interval())
        assert 0.93 <= coverage(found, 2) <= 0.97

    def test_a_place_or_a_run_that_is_missing_is_refused(self):
        with pytest.raises(ValueError, match="two positions"):
            slope({0: [Item("s0", "", "", 1.0)]})
        with pytest.raises(ValueError, match="each run at every position"):
            slope({0: [Item("s0", "", "", 1.0)], 1: [Item("s1", "", "", 1.0)]})


class TestPValue:
    def test_of_the_t_distribution(self):
        estimate = stream_error([1.0, 2.0, 3.0])  # t = 2 / (1 / sqrt 3) = 3.4641, 2 degrees
        assert estimate.p_value() == pytest.approx(0.07418, abs=1e-5)

    @given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
    def test_is_that_of_scipy(self, values):
        if np.std(values) > 1e-3 and abs(np.mean(values)) > 1e-6:
            assert stream_error(values).p_value() == pytest.approx(stats.ttest_1samp(values, 0).pvalue)

    def test_without_spread_only_a_mean_of_zero_is_no_difference(self):
        assert stream_error([0.1] * 3).p_value() == 0.25, "one sign of all: 2 of 2^3"
        assert stream_error([0.1] * 8).p_value() == 2 / 2**8
        assert stream_error([33 / 100 - 23 / 100, 43 / 100 - 33 / 100]).p_value() == 0.5, "but for a rounding error"
        assert stream_error([0.0, 0.0]).p_value() == stream_error([1e-17, 1e-17]).p_value() == 1


class TestRocAuc:
    def test_hand_computed_with_ties(self):
        # positive 2 and 3, negative 1, 2 and 5: 2 is above 1 and ties with 2; 3 is above 1 and 2
        assert roc_auc([1, 2, 2, 3, 5], [False, True, False, True, False]) == pytest.approx((1 + 0.5 + 1 + 1) / 6)

    def test_one_class_has_none_and_equal_values_are_chance(self):
        assert roc_auc([1.0, 2.0], [True, True]) is None
        assert roc_auc([], []) is None
        assert roc_auc([1.0, 1.0, 1.0], [True, False, True]) == 0.5

    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=20))
    def test_is_the_fraction_of_pairs_in_the_right_order(self, items):
        values, positive = zip(*items, strict=True)
        pairs = [(a > b) + (a == b) / 2 for a, is_positive in items if is_positive for b, other in items if not other]
        expected = sum(pairs) / len(pairs) if pairs else None
        assert roc_auc(values, positive) == expected


class TestShow:
    @pytest.mark.parametrize(
        ("mean", "se", "text"),
        [
            (0.1234, 0.0042, "0.123 ± 0.004"),
            (0.5, 0.0, "0.500 ± <0.001"),
            (0.5, 0.0004, "0.500 ± <0.001"),
            (0.5, 0.0006, "0.500 ± 0.001"),
            (0.5, None, "0.500 ± n/a"),
            (-0.0001, 0.01, "0.000 ± 0.010"),
        ],
    )
    def test_no_error_is_shown_as_zero(self, mean, se, text):
        assert show(mean, se) == text

    @given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5))
    def test_never_plus_minus_zero(self, mean, se, digits):
        assert not show(mean, se, digits).endswith("± 0." + "0" * digits)


def effects(rng, streams=4, documents=25, shift=0.0):
    """Two rows of a simulation: documents have effects of their own on the difference, whose true mean is ``shift``."""
    a, b = [], []
    for k in range(streams):
        for d in range(documents):
            effect = shift + rng.normal(0, 1)
            for q in range(1 + d % 3):
                base = rng.normal(0, 3)
                a.append(Item(f"s{k}", f"d{d}q{q}", f"s{k}d{d}", base + effect + rng.normal(0, 0.5)))
                b.append(Item(f"s{k}", f"d{d}q{q}", f"s{k}d{d}", base))
    return Sample.of(a), Sample.of(b)


class TestPairs:
    def test_the_totals_give_the_paired_difference_over_streams_and_over_documents(self):
        a, b = effects(np.random.default_rng(0), shift=0.4)
        for kind in ("SE_stream", "SE_doc"):
            of = pairs(a, b, kind)
            assert (of.a - of.b).sum() / of.weights.sum() == pytest.approx(difference(a, b, kind).mean)
            assert len(of.weights) == difference(a, b, kind).n

    def test_the_units_of_a_document_in_two_streams_are_one(self):
        a = Sample.of([Item("s0", "q", "d", 1.0), Item("s1", "q", "d", 0.0), Item("s1", "r", "e", 1.0)])
        b = Sample.of([item._replace(value=0.0) for item in a.units.values()])
        of = pairs(a, b, "SE_doc")
        assert of.weights.tolist() == [1.5, 0.5] and of.a.tolist() == [1.0, 0.5]  # each stream has a weight of 1


class TestBootstrap:
    def test_its_width_is_that_of_the_cluster_robust_error(self):
        a, b = effects(np.random.default_rng(1), documents=60)
        low, high = bootstrap_interval([pairs(a, b, "SE_doc")])
        assert (high - low) / 2 == pytest.approx(1.96 * difference(a, b, "SE_doc").se, rel=0.05)

    def test_it_is_the_interval_of_a_loop_that_draws_whole_documents(self):
        rng = np.random.default_rng(2)
        a, b = effects(rng)
        of = pairs(a, b, "SE_doc")
        means = []
        for _ in range(4000):
            draw = rng.integers(len(of.weights), size=len(of.weights))
            means.append((of.a - of.b)[draw].sum() / of.weights[draw].sum())
        low, high = bootstrap_interval([of])
        assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)

    def test_95_percent_interval_covers_95_percent_and_drawing_questions_does_not(self):
        rng = np.random.default_rng(3)
        clustered, plain = [], []
        for _ in range(100):
            a, b = effects(rng, documents=15, shift=0.3)
            of = pairs(a, b, "SE_doc")
            clustered.append(bootstrap_interval([of]))
            single = [(item.value, b.units[key].value) for key, item in a.units.items()]
            ones = np.ones(len(single))
            plain.append(bootstrap_interval([Pairs(*np.array(single).T, ones)]))
        assert 0.90 <= coverage(clustered, 0.3) <= 0.99
        assert coverage(plain, 0.3) < coverage(clustered, 0.3)

    def test_several_parts_give_the_interval_of_the_mean_of_their_differences(self):
        rng = np.random.default_rng(4)
        first, second = (pairs(*effects(rng, shift=shift), "SE_doc") for shift in (0.0, 1.0))
        low, high = bootstrap_interval([first, second])
        middle = np.mean([(of.a - of.b).sum() / of.weights.sum() for of in (first, second)])
        assert low < middle < high
        assert high - low < max(np.ptp(bootstrap_interval([of])) for of in (first, second))

    def test_no_spread_and_a_single_unit(self):
        same = Pairs(np.ones(5), np.full(5, 0.5), np.ones(5))
        assert bootstrap_interval([same]) == (0.5, 0.5)
        assert bootstrap_interval([Pairs(np.ones(1), np.zeros(1), np.ones(1))]) is None


class TestPermutation:
    def test_all_swaps_of_few_units_are_tried(self):
        of = Pairs(np.array([0.5, 0.4, 0.7, 0.2]), np.array([0.1, 0.3, 0.4, 0.3]), np.ones(4))
        gaps = of.a - of.b
        sums = [abs(np.dot(signs, gaps)) for signs in itertools.product((1, -1), repeat=4)]
        expected = np.mean([value >= abs(gaps.sum()) - 1e-12 for value in sums])
        assert is_exact(4) and permutation_p_value([of]) == pytest.approx(expected) == pytest.approx(6 / 16)

    def test_random_swaps_of_many_units_are_close_to_the_normal_approximation(self):
        a, b = effects(np.random.default_rng(5), documents=40, shift=0.2)
        of = pairs(a, b, "SE_doc")
        z = (of.a - of.b).sum() / np.sqrt(((of.a - of.b) ** 2).sum())
        assert not is_exact(len(of.a))
        assert permutation_p_value([of]) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)

    def test_equal_rows_are_rejected_in_5_percent_of_cases(self):
        rng = np.random.default_rng(6)
        p_values = [permutation_p_value([pairs(*effects(rng, documents=3), "SE_doc")]) for _ in range(120)]
        assert np.mean(np.array(p_values) < 0.05) <= 0.1
        assert 0.4 <= np.mean(p_values) <= 0.6

    def test_a_single_unit_has_no_test(self):
        assert permutation_p_value([Pairs(np.ones(1), np.zeros(1), np.ones(1))]) is None


class TestMeanOf:
    def test_hand_computed(self):
        first, second = stream_error([0.1, 0.3]), stream_error([0.5, 0.7, 0.9])
        mean = mean_of([first, second])
        assert mean.mean == pytest.approx((0.2 + 0.7) / 2)
        assert mean.se == pytest.approx(math.sqrt(0.01 + 0.04 / 3) / 2)
        variances = 0.01 / 4, 0.04 / 3 / 4
        assert mean.degrees == pytest.approx(sum(variances) ** 2 / (variances[0] ** 2 / 1 + variances[1] ** 2 / 2))
        assert mean.n == 5

    def test_one_without_an_error_leaves_none(self):
        assert mean_of([stream_error([0.1, 0.3]), stream_error([0.5])]).se is None


class TestPlan:
    def test_the_planned_streams_find_the_gap_in_80_percent_of_simulated_repetitions(self):
        rng = np.random.default_rng(7)
        items = [Item(f"s{k}", "q", f"d{k}", value) for k, value in enumerate(rng.normal(0, 0.05, 8))]
        a, b = Sample.of(items), Sample.of([item._replace(value=0.0) for item in items])
        found = plan(a, b, 0.04, "SE_stream")
        spread = float(np.std([item.value for item in items], ddof=1))
        repetitions = rng.normal(0.04, spread, (4000, found.needed))
        assert np.mean(stats.ttest_1samp(repetitions, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.05)
        fewer = rng.normal(0.04, spread, (4000, found.needed - 1))
        assert np.mean(stats.ttest_1samp(fewer, 0, axis=1).pvalue < 0.05) < 0.82
        assert found.units == 8 and found.range[0] < found.needed < found.range[1]

    def test_the_smallest_gap_at_hand_needs_the_units_at_hand(self):
        a, b = effects(np.random.default_rng(8))
        for kind in ("SE_stream", "SE_doc"):
            found = plan(a, b, 1.0, kind)
            assert plan(a, b, found.smallest, kind).needed == found.units
            assert plan(a, b, found.smallest / 2, kind).needed > found.units

    def test_more_streams_do_not_help_against_the_spread_of_seeds(self):
        def items(rows):
            return [Item(f"s{k}", "q", f"d{k}", v, seed=s) for k, row in enumerate(rows) for s, v in enumerate(row)]

        a = Sample.of(items([(0.1, 0.5), (0.12, 0.5), (0.1, 0.48)]))
        b = Sample.of(items([(0.2,), (0.21,), (0.2,)]))
        assert plan(a, b, 0.05, "SE_stream").needed is None
        single = Sample(a.units, None)
        assert plan(single, b, 0.05, "SE_stream").needed is not None

    def test_the_smallest_gap_at_hand_includes_the_spread_of_seeds(self):
        """Two seeds at 0.60 and 0.66 add an SE of 0.03 with one degree of freedom to one of 0.004 over streams."""
        noise = 0.004 * math.sqrt(3)
        a = Sample.of(
            [
                Item(f"s{k}", "q", f"d{k}", level + (-1) ** k * noise, seed=seed)
                for k in range(4)
                for seed, level in enumerate((0.60, 0.66))
            ]
        )
        b = Sample.of([Item(f"s{k}", "q", f"d{k}", 0.3) for k in range(4)])
        assert difference(a, b, "SE_stream").se == pytest.approx(math.hypot(0.03, 0.004))
        found = plan(a, b, 0.33, "SE_stream").smallest
        rng = np.random.default_rng(9)  # t at this gap, with an error of one degree of freedom
        t = rng.normal(found, 0.03, 20_000) / (0.03 * np.abs(rng.normal(size=20_000)))
        assert np.mean(t > 12.706) == pytest.approx(0.8, abs=0.05), "t table, one degree, 97.5 %"

    def test_rows_that_differ_by_the_same_amount_need_no_plan(self):
        items = [Item(f"s{k}", "q", f"d{k}", 0.1 * k) for k in range(3)]
        a, b = Sample.of(items), Sample.of([item._replace(value=item.value - 0.1) for item in items])
        assert plan(a, b, 0.1, "SE_stream") is None
        assert plan(Sample.of(items[:1]), Sample.of(items[:1]), 0.1, "SE_doc") is None
