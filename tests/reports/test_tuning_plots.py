"""Sensitivity to the learning rate: points from the trials, and the conditions for a plot."""

from __future__ import annotations

import pytest

from bench.errors import BenchError
from reports import plots, tuning_plots
from reports.board import build
from tests.reports.records_factory import board, plot_names, record, spec, tuning_record

NAME = "learning_rate_sensitivity"


def sensitivities(runs):
    return tuning_plots.sensitivities(build(runs), runs)


def rates(*values):
    return [({"learning_rate": rate}, scores) for rate, scores in values]


def on_board(runs, *keys, **config):
    board(runs, [record(runs, spec("uniform", "test-1-0", config=config), [[0.5]])], tuning=keys)


def test_points_are_means_over_validation_streams_in_order_of_rate(tmp_path):
    trials = rates((0.1, (0.2, 0.4)), (0.01, (0.1, 0.1)), (1.0, None))
    on_board(tmp_path, tuning_record(tmp_path, "uniform", trials, {"learning_rate": 0.1, "steps": 1}))
    (sensitivity,) = sensitivities(tmp_path)
    assert [rate for rate, _ in sensitivity.points] == [0.01, 0.1, 1.0]
    low, high, diverged = (estimate for _, estimate in sensitivity.points)
    assert (low.mean, low.se) == (pytest.approx(0.1), 0.0)
    assert (high.mean, high.se) == (pytest.approx(0.3), pytest.approx(0.1))
    assert diverged is None
    assert (sensitivity.chosen, sensitivity.several_settings, sensitivity.metric) == (0.1, False, "f1")


@pytest.mark.parametrize(("metric", "best"), [("f1", 0.5), ("token_nll", 0.2)])
def test_the_best_of_several_settings_at_one_rate_is_plotted(tmp_path, metric, best):
    trials = [
        ({"learning_rate": rate, "clip": clip}, (score,))
        for rate, clip, score in ((0.1, 1, 0.2), (0.1, 2, 0.5), (0.2, 1, 0.3), (0.2, 2, 0.3))
    ]
    on_board(tmp_path, tuning_record(tmp_path, "uniform", trials, {"learning_rate": 0.1, "clip": 2}, metric))
    (sensitivity,) = sensitivities(tmp_path)
    assert [estimate.mean for _, estimate in sensitivity.points] == pytest.approx([best, 0.3])
    assert sensitivity.several_settings


def test_methods_have_the_order_and_labels_of_the_board(tmp_path):
    trials = rates((0.1, (0.2,)), (0.2, (0.3,)))
    keys = [
        tuning_record(tmp_path, method, trials, {"learning_rate": rate}) for method, rate in (("a", 0.1), ("b", 0.2))
    ]
    ids = [
        record(tmp_path, spec(method, "test-1-0", config={"learning_rate": rate}), [[f1]])
        for method, rate, f1 in (("a", 0.1, 0.3), ("b", 0.2, 0.4), ("b", 0.3, 0.1))
    ]
    board(tmp_path, ids, tuning=keys)
    assert [sensitivity.label for sensitivity in sensitivities(tmp_path)] == ["b (learning rate=0.2)", "a"]


@pytest.mark.parametrize(
    "trials",
    [
        [({"decay": 0.1}, (0.2,)), ({"decay": 0.2}, (0.3,))],
        rates((0.1, (0.2,))),
        rates((0.1, (0.2,)), (0.0, (0.1,))),
    ],
)
def test_fewer_than_two_rates_are_not_plotted(tmp_path, trials):
    on_board(tmp_path, tuning_record(tmp_path, "uniform", trials, trials[0][0]))
    assert sensitivities(tmp_path) == []
    assert NAME not in plot_names(tmp_path)


def test_a_method_is_plotted_if_all_its_trials_diverged(tmp_path):
    on_board(tmp_path, tuning_record(tmp_path, "uniform", rates((0.1, None), (1.0, None)), {"learning_rate": 1e-4}))
    written = {path.stem for path in plots.write(build(tmp_path), tmp_path, tmp_path / "out")}
    assert NAME in written


def test_a_missing_trial_is_named(tmp_path):
    key = tuning_record(tmp_path, "uniform", rates((0.1, (0.2,)), (0.2, (0.3,))), {"learning_rate": 0.1})
    on_board(tmp_path, key)
    next(tmp_path.glob("uniform-stream-validation*/run.json")).unlink()
    with pytest.raises(BenchError, match=r"validation.*is missing\. Run the same experiment again"):
        sensitivities(tmp_path)
