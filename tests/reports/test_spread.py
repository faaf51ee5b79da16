"""Components of spread: hand-computed tables, recovery of known components, and coverage with several seeds."""

from __future__ import annotations

import numpy as np
import pytest

from reports.spread import Run, Term, seed_term, shares
from reports.statistics import Item, mean_over_streams, stream_error, stream_means


def table(rows, orders=False):
    """Runs of streams by seeds, or of streams by orders."""
    return {
        Run(f"s{i}", 0 if orders else j, j if orders else 0): value
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    }


def scores(rng, streams, seeds, orders=1, sd=(0.0, 0.0, 0.0, 0.0), mean=0.4):
    """Scores of runs with random effects of these standard deviations: stream, seed, order within stream, rest."""
    y = mean + rng.normal(0, sd[0], (streams, 1, 1)) + rng.normal(0, sd[1], (1, seeds, 1))
    y = y + rng.normal(0, sd[2], (streams, 1, orders)) + rng.normal(0, sd[3], (streams, seeds, orders))
    return {Run(f"s{i}", j, k): float(y[i, j, k]) for i, j, k in np.ndindex(y.shape)}


class TestSeedTerm:
    def test_is_the_variance_of_the_seed_means_over_their_number(self):
        variance, degrees = seed_term(table([(0.1, 0.3, 0.5), (0.3, 0.5, 0.7)]))
        assert (variance, degrees) == (pytest.approx(0.04 / 3), 2)  # means 0.2, 0.4, 0.6

    def test_one_seed_has_none(self):
        assert seed_term(table([(0.1,), (0.5,)])) is None

    def test_a_seed_that_a_stream_lacks_is_left_out(self):
        runs = table([(0.1, 0.3, 0.5), (0.3, 0.5, 0.7)])
        del runs[Run("s1", 2)]
        assert seed_term(runs) == Term(pytest.approx(0.02 / 2), 1)

    def test_orders_are_averaged(self):
        runs = {Run("s", seed, order): seed + value for seed in (0, 1) for order, value in enumerate((0.0, 0.5))}
        assert seed_term(runs) == Term(pytest.approx(0.25), 1)


class TestShares:
    def test_hand_computed_for_seeds(self):
        # seeds differ by 2 and streams by 4 on average; the interaction is +-1 in each cell: MS_rest = 4 / 1
        # MS_stream = 2 * 8 = 16, MS_seed = 2 * 2 = 4: components (16 - 4) / 2 = 6, 0 and 4
        assert shares(table([(1.0, 1.0), (3.0, 7.0)])) == pytest.approx({"streams": 0.6, "seeds": 0.0, "rest": 0.4})

    def test_hand_computed_for_orders(self):
        # variance of the stream means 8, of the orders within streams 2: components 8 - 2 / 2 = 7 and 2
        assert shares(table([(1.0, 3.0), (5.0, 7.0)], orders=True)) == pytest.approx(
            {"streams": 7 / 9, "orders": 2 / 9}
        )

    def test_known_components_are_recovered(self):
        rng = np.random.default_rng(0)
        sd = (0.03, 0.02, 0.01, 0.02)
        found = [shares(scores(rng, 12, 12, 12, sd)) for _ in range(200)]
        for name, expected in zip(
            ("streams", "seeds", "orders", "rest"), np.square(sd) / np.sum(np.square(sd)), strict=True
        ):
            assert np.mean([part[name] for part in found]) == pytest.approx(expected, abs=0.04)
        assert all(sum(part.values()) == pytest.approx(1) for part in found)

    @pytest.mark.parametrize(
        "runs",
        [
            {},
            table([(0.1,), (0.2,)]),
            table([(0.1, 0.2)]),
            table([(0.1, 0.2), (0.3,)]),
            table([(0.2, 0.2), (0.2, 0.2)]),
        ],
        ids=["no run", "one seed", "one stream", "a run is missing", "equal scores"],
    )
    def test_there_are_none(self, runs):
        assert shares(runs) == {}


@pytest.mark.parametrize(("streams", "without"), [(4, (0.86, 0.93)), (8, (0.74, 0.83))])
def test_intervals_over_three_seeds_cover_95_percent_only_with_the_seeds(streams, without):
    rng = np.random.default_rng(1)
    with_seeds, over_streams = [], []
    for _ in range(1500):
        runs = scores(rng, streams, 3, sd=(0.02, 0.02, 0.0, 0.02))
        items = [Item(run.stream, "q", "d", value, seed=run.seed) for run, value in runs.items()]
        with_seeds.append(mean_over_streams(items).interval())
        over_streams.append(stream_error(list(stream_means(items).values())).interval())
    covered = [float(np.mean([low <= 0.4 <= high for low, high in of])) for of in (with_seeds, over_streams)]
    assert 0.93 <= covered[0] <= 0.97
    assert without[0] <= covered[1] <= without[1]
