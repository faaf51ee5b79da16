"""The comparison of all pairs: hand-computed standings, and how often it loses a method that is as good as the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bench.errors import BenchError
from reports.ranks import Standing, compare, holm, standings
from reports.statistics import LEVEL, Item

DOCUMENT_SD = 0.26
"""Standard deviation of a document's F1 over three questions, beyond what all methods share: as in :func:`answers`."""


class TestHolm:
    def test_hand_computed(self):
        adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03})
        assert adjusted == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_lies_between_raw_p_and_bonferroni_and_keeps_the_order(self, values):
        raw = {str(i): p for i, p in enumerate(values)}
        adjusted = holm(raw)
        for name, p in raw.items():
            assert p <= adjusted[name] <= min(1, len(values) * p) + 1e-12
        order = sorted(raw, key=raw.__getitem__)
        assert [adjusted[name] for name in order] == sorted(adjusted.values())


class TestStandings:
    def test_hand_computed(self):
        # Holm over three pairs: 0.01 * 3, then 0.02 * 2, then 0.9: a and b are better than c
        p_values = {("a", "b"): 0.9, ("a", "c"): 0.01, ("b", "c"): 0.02}
        found = standings({"a": 0.5, "b": 0.6, "c": 0.1}, p_values)
        assert found == {"a": Standing(1, 2), "b": Standing(1, 2), "c": Standing(3, 3)}
        assert [(str(standing), standing.as_good_as_best) for standing in found.values()] == [
            ("1-2", True),
            ("1-2", True),
            ("3", False),
        ]
        assert all(standing.is_decided for standing in found.values())
        assert not any(standing.is_decided for standing in standings({"a": 0.5, "b": 0.6}, {("a", "b"): 0.9}).values())

    def test_one_method_is_the_best(self):
        assert standings({"a": 0.5}, {}) == {"a": Standing(1, 1)}

    @given(st.permutations(range(5)), st.lists(st.floats(0, 0.02), min_size=10, max_size=10))
    def test_ranks_contain_the_observed_one(self, values, p_values):
        means, count = {str(i): value for i, value in enumerate(values)}, len(values)
        found = standings(means, dict(zip(itertools.combinations(means, 2), p_values, strict=True)))
        for rank, name in enumerate(sorted(means, key=means.__getitem__, reverse=True), 1):
            assert 1 <= found[name].low <= rank <= found[name].high <= count


def items(*means):
    return [Item(f"s{k}", "q", f"d{k}", mean) for k, mean in enumerate(means)]


class TestCompare:
    def test_finds_differences_within_streams(self):
        rows = {"a": items(0.1, 0.5, 0.9), "b": items(0.2, 0.601, 1.002), "c": items(0.11, 0.49, 0.9)}
        assert compare(rows, "SE_stream", 1) == {"a": Standing(2, 3), "b": Standing(1, 1), "c": Standing(2, 3)}
        assert compare(rows, "SE_stream", -1)["a"] == Standing(1, 2)

    def test_documents_are_the_units_of_one_stream(self):
        rows = {
            name: [Item("s", f"q{d}", f"d{d}", level + 0.3 * (d % 2)) for d in range(10)]
            for name, level in (("a", 0.1), ("b", 0.2))
        }
        assert compare(rows, "SE_stream", 1) == {"a": Standing(1, 2), "b": Standing(1, 2)}  # nothing to test against
        assert compare(rows, "SE_doc", 1) == {"a": Standing(2, 2), "b": Standing(1, 1)}

    def test_a_method_whose_seeds_differ_is_not_separated(self):
        noisy = [Item(f"s{k}", "q", f"d{k}", 0.3 + 0.2 * seed, seed=seed) for k in range(4) for seed in (0, 1)]
        steady = [item._replace(value=0.4) for item in noisy]
        plain = items(0.2, 0.2001, 0.2, 0.2001)
        assert compare({"noisy": noisy, "plain": plain}, "SE_stream", 1)["plain"].as_good_as_best
        assert not compare({"steady": steady, "plain": plain}, "SE_stream", 1)["plain"].as_good_as_best

    def test_other_units_are_refused(self):
        with pytest.raises(BenchError, match="only one of them has q of stream s1"):
            compare({"a": items(0.1, 0.2), "b": items(0.1)}, "SE_stream", 1)

    def test_nothing_is_compared_with_nothing(self):
        assert compare({}, "SE_stream", 1) == {}


def lost(means):
    """The methods that are not as good as the best in each repetition; ``means`` has (repetition, method, stream)."""
    pairs = list(itertools.combinations(range(means.shape[1]), 2))
    left, right = (list(side) for side in zip(*pairs, strict=True))
    p_values = stats.ttest_1samp(means[:, left] - means[:, right], 0, axis=2).pvalue
    names = [(str(a), str(b)) for a, b in pairs]
    result = []
    for mean, p in zip(means.mean(2).tolist(), p_values.tolist(), strict=True):
        found = standings({str(i): value for i, value in enumerate(mean)}, dict(zip(names, p, strict=True)))
        result.append([not standing.as_good_as_best for standing in found.values()])
    return np.array(result)


def stream_scores(rng, repetitions, methods, spread, shift=0.0, streams=8, documents=100):
    """Means of streams with an effect of method x stream; the second half of the methods is worse by ``shift``."""
    noise = np.hypot(spread, DOCUMENT_SD / np.sqrt(documents))
    means = 0.4 + rng.normal(0, noise, (repetitions, methods, streams))
    means[:, (methods + 1) // 2 :] -= shift
    return means


def answers(rng, repetitions, methods, spread, streams=8, documents=100):
    """F1 of documents with three questions each, right or wrong, with a difficulty that all methods share."""
    difficulty = rng.beta(2, 2.5, (repetitions, 1, streams, documents))
    chance = difficulty + rng.normal(0, spread, (repetitions, methods, streams, 1))
    return rng.binomial(3, np.clip(chance, 0, 1)) / 3


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.02])
@pytest.mark.parametrize("methods", [2, 5, 13])
def test_a_method_as_good_as_the_best_is_lost_in_at_most_5_percent(methods, spread):
    rng = np.random.default_rng([methods, int(100 * spread)])
    good = (methods + 1) // 2
    equal = lost(stream_scores(rng, 2000, methods, spread)).any(1).mean()
    half_worse = lost(stream_scores(rng, 2000, methods, spread, shift=0.1))
    assert equal <= LEVEL + 0.01
    assert half_worse[:, :good].any(1).mean() <= LEVEL + 0.01


def test_nor_is_it_lost_if_some_methods_have_seeds():
    rng, losses = np.random.default_rng(0), []
    for _ in range(800):
        rows = {}
        for method, seeds in enumerate((1, 1, 1, 3, 3)):
            means = 0.4 + rng.normal(0, 0.02, (8, 1)) + rng.normal(0, 0.02, (1, seeds)) * (seeds > 1)
            means = means + rng.normal(0, 0.02, (8, seeds))
            rows[str(method)] = [Item(f"s{k}", "q", f"d{k}", means[k, j], seed=j) for k, j in np.ndindex(means.shape)]
        losses.append(not all(standing.as_good_as_best for standing in compare(rows, "SE_stream", 1).values()))
    assert np.mean(losses) <= LEVEL + 0.01


def test_answers_that_are_right_or_wrong_change_nothing():
    rng = np.random.default_rng(0)
    means = np.concatenate([answers(rng, 250, 5, 0.01).mean(3) for _ in range(6)])
    assert lost(means).any(1).mean() <= LEVEL + 0.015


def test_comparing_documents_with_the_observed_best_loses_many():
    """The rule of Protocol 1: paired t tests with SE_doc against the best observed mean, Holm over them."""
    rng = np.random.default_rng(0)
    losses = []
    for documents in answers(rng, 200, 13, 0.02).reshape(200, 13, -1):
        best = int(documents.mean(1).argmax())
        p_values = {i: stats.ttest_rel(documents[i], documents[best]).pvalue for i in range(13) if i != best}
        losses.append(min(holm(p_values).values()) < LEVEL)
    assert np.mean(losses) > 0.4


@pytest.mark.parametrize(("methods", "shift"), [(2, 0.06), (5, 0.07), (13, 0.085)])
def test_a_worse_method_is_lost_in_80_percent(methods, shift):
    rng = np.random.default_rng(0)
    assert lost(stream_scores(rng, 500, methods, 0.02, shift))[:, -1].mean() >= 0.8
