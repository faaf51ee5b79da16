"""The sensitivity to the learning rate: what is read from the trials, and when there is anything to draw."""

from __future__ import annotations

import pytest

from bench.errors import BenchError
from reports import plots, tuning_plots
from reports.board import build
from tests.reports.records_factory import board, record, spec, tuned

NAME = "learning_rate_sensitivity.png"


def sensitivities(runs):
    return tuning_plots.sensitivities(build(runs), runs)


def rates(*values):
    return [({"learning_rate": rate}, scores) for rate, scores in values]


def on_board(runs, *keys, **config):
    board(runs, [record(runs, spec("uniform", "test-1-0", config=config), [[0.5]])], tuning=keys)


def test_points_are_means_over_validation_streams_in_order_of_rate(tmp_path):
    trials = rates((0.1, (0.2, 0.4)), (0.01, (0.1, 0.1)), (1.0, None))
    on_board(tmp_path, tuned(tmp_path, "uniform", trials, {"learning_rate": 0.1, "steps": 1}))
    (found,) = sensitivities(tmp_path)
    assert [rate for rate, _ in found.points] == [0.01, 0.1, 1.0]
    low, high, diverged = (estimate for _, estimate in found.points)
    assert (low.mean, low.se) == (pytest.approx(0.1), 0.0)
    assert (high.mean, high.se) == (pytest.approx(0.3), pytest.approx(0.1))
    assert diverged is None
    assert (found.chosen, found.others, found.metric) == (0.1, False, "f1")


@pytest.mark.parametrize(("metric", "best"), [("f1", 0.5), ("token_nll", 0.2)])
def test_of_several_settings_at_one_rate_the_best_one_is_shown(tmp_path, metric, best):
    trials = [
        ({"learning_rate": rate, "clip": clip}, (score,))
        for rate, clip, score in ((0.1, 1, 0.2), (0.1, 2, 0.5), (0.2, 1, 0.3), (0.2, 2, 0.3))
    ]
    on_board(tmp_path, tuned(tmp_path, "uniform", trials, {"learning_rate": 0.1, "clip": 2}, metric))
    (found,) = sensitivities(tmp_path)
    assert [estimate.mean for _, estimate in found.points] == pytest.approx([best, 0.3])
    assert found.others


def test_methods_stand_in_the_boards_order_under_its_labels(tmp_path):
    trials = rates((0.1, (0.2,)), (0.2, (0.3,)))
    keys = [tuned(tmp_path, method, trials, {"learning_rate": rate}) for method, rate in (("a", 0.1), ("b", 0.2))]
    ids = [
        record(tmp_path, spec(method, "test-1-0", config={"learning_rate": rate}), [[f1]])
        for method, rate, f1 in (("a", 0.1, 0.3), ("b", 0.2, 0.4), ("b", 0.3, 0.1))
    ]
    board(tmp_path, ids, tuning=keys)
    assert [one.label for one in sensitivities(tmp_path)] == ["b (learning rate=0.2)", "a"]


@pytest.mark.parametrize(
    "trials",
    [
        [({"decay": 0.1}, (0.2,)), ({"decay": 0.2}, (0.3,))],
        rates((0.1, (0.2,))),
        rates((0.1, (0.2,)), (0.0, (0.1,))),
    ],
)
def test_without_two_rates_there_is_nothing_to_draw(tmp_path, trials):
    on_board(tmp_path, tuned(tmp_path, "uniform", trials, trials[0][0]))
    assert sensitivities(tmp_path) == []
    assert NAME not in plots.due(build(tmp_path), tmp_path)


def test_a_method_of_which_every_trial_diverged_is_drawn(tmp_path):
    on_board(tmp_path, tuned(tmp_path, "uniform", rates((0.1, None), (1.0, None)), {"learning_rate": 1e-4}))
    written = {path.name for path in plots.write(build(tmp_path), tmp_path, tmp_path / "out")}
    assert NAME in written


def test_a_missing_trial_is_named(tmp_path):
    key = tuned(tmp_path, "uniform", rates((0.1, (0.2,)), (0.2, (0.3,))), {"learning_rate": 0.1})
    on_board(tmp_path, key)
    next(tmp_path.glob("uniform-stream-validation*/run.json")).unlink()
    with pytest.raises(BenchError, match=r"validation.*is missing\. Run the same experiment again"):
        sensitivities(tmp_path)
