"""Kendall's tau-b: hand-computed, equal to scipy's, and an interval that covers the tau of infinitely many streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports.agreement import Agreement, agreement, tau_b


def constant(*means, streams=4):
    """Scores of methods that are the same on all streams."""
    return np.repeat(np.array(means)[:, None], streams, axis=1)


class TestTau:
    def test_hand_computed(self):
        # of six pairs five are concordant, and the first two methods are inverted
        assert tau_b(np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.3, 0.4, 0.2, 0.1])) == pytest.approx(4 / 6)
        # five concordant pairs, one tie in the first ranking
        assert tau_b(np.array([0.4, 0.4, 0.2, 0.1]), np.array([0.4, 0.3, 0.2, 0.1])) == pytest.approx(5 / 30**0.5)

    @given(st.integers(2, 7).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2)))
    def test_is_that_of_scipy(self, rankings):
        a, b = (np.array(ranking, dtype=float) for ranking in rankings)
        assert tau_b(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, nan_ok=True)

    def test_scores_that_differ_by_rounding_are_ties(self):
        assert np.isnan(tau_b(np.array([0.1 + 0.2, 0.3]), np.array([0.1, 0.2])))


class TestAgreement:
    def test_without_spread_over_streams_the_interval_is_the_estimate(self):
        found = agreement(constant(0.4, 0.3, 0.2), constant(0.4, 0.2, 0.3))
        assert found == Agreement(pytest.approx(1 / 3), (pytest.approx(1 / 3), pytest.approx(1 / 3)), 3, (4,))
        assert str(found) == "0.33 (95 % interval 0.33 to 0.33, bootstrap over 4 streams)"

    def test_streams_are_resampled_together(self):
        # the two methods swap places on the same streams: in every resample the two bases agree
        scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.51], [0.3, 0.3, 0.3, 0.3, 0.3]])
        found = agreement(scores, 2 * scores)
        assert found is not None and found.interval is not None
        assert found.tau == 1 and found.interval[1] == 1 and found.interval[0] >= 0  # 0 where all draws are stream 3

    def test_streams_of_two_data_sets_are_resampled_apart(self):
        # the order turns with one stream of each: drawn together they agree, drawn apart they need not
        scores = np.array([[0.1, 0.2, 0.3, 0.4, 0.51], [0.3, 0.3, 0.3, 0.3, 0.3]])
        found = agreement(scores, scores[:, :4] + np.array([[0.06], [0]]), same_streams=False)
        assert found is not None and found.interval is not None
        assert (found.tau, found.streams, found.interval) == (1, (5, 4), (-1, 1))
        assert str(found) == "1.00 (95 % interval -1.00 to 1.00, bootstrap over 5 and 4 streams)"

    def test_few_streams_have_no_interval(self):
        found = agreement(constant(0.4, 0.3, streams=3), constant(0.3, 0.4, streams=3))
        assert found == Agreement(-1, None, 2, (3,))
        assert str(found) == "-1.00 (no interval: it takes 4 streams)"

    @pytest.mark.parametrize("means", [(0.4,), (0.4, 0.4)])
    def test_without_an_order_there_is_none(self, means):
        assert agreement(constant(*means), constant(*means)) is None

    def test_scores_of_other_shapes_are_refused(self):
        with pytest.raises(ValueError, match="do not rank the same methods"):
            agreement(constant(0.1, 0.2), constant(0.1, 0.2, streams=5))

    @pytest.mark.parametrize("same_streams", [True, False])
    @pytest.mark.parametrize("spread", [0.05, 0.15])
    def test_the_interval_covers_the_tau_of_infinitely_many_streams(self, spread, same_streams):
        """Ten methods and eight streams; a stream shifts all methods by 0.02, and each one by 0.03 on its own."""
        rng = np.random.default_rng(0)
        covered = []
        for _ in range(150):
            first = rng.normal(0, spread, 10)
            other = 0.7 * first + rng.normal(0, 0.7 * spread, 10)
            shift = rng.normal(0, 0.02, 8)
            shifts = (shift, shift) if same_streams else (shift, rng.normal(0, 0.02, 6))
            a, b = (
                means[:, None] + of + rng.normal(0, 0.03, (10, len(of)))
                for means, of in zip((first, other), shifts, strict=True)
            )
            found = agreement(a, b, same_streams)
            assert found is not None and found.interval is not None
            covered.append(found.interval[0] <= float(tau_b(first, other)) + 1e-9 <= found.interval[1] + 2e-9)
        assert np.mean(covered) >= 0.9
