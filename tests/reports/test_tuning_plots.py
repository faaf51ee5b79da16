"""Sensitivity to the learning rate: the trials that are plotted, and the conditions for a plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports import plots, tuning_plots
from reports.board import build
from tests.reports.records_factory import board, imported, plot_names, record, spec, tuning_record

NAME = "learning_rate_sensitivity"


def sensitivities(runs):
    return tuning_plots.sensitivities(build(runs))


def rates(*values):
    return [({"learning_rate": rate}, scores) for rate, scores in values]


def on_board(runs, *keys, **config):
    board(runs, [record(runs, spec("uniform", "test-1-0", config=config), [[0.5]])], tuning=keys)


RATES = rates((0.1, (0.2,)), (0.2, (0.3,)))


def test_a_trial_is_a_dot_with_its_score_steps_and_fate(tmp_path):
    trials = [
        ({"learning_rate": rate, "steps_per_document": steps}, scores)
        for rate, steps, scores in ((0.1, 3, (0.2, 0.4)), (0.01, 1, (0.1, 0.2)), (1.0, 5, None), (0.1, 1, (0.1, 0.3)))
    ]
    chosen = {"optimizer": "sgd", "learning_rate": 0.1, "steps_per_document": 3}  # with settings that no trial states
    on_board(tmp_path, tuning_record(tmp_path, "uniform", trials, chosen, floor=0.05, stopped=(1,)))
    (sensitivity,) = sensitivities(tmp_path)
    assert [(trial.rate, trial.score, trial.whole, trial.chosen, trial.steps) for trial in sensitivity.trials] == [
        (0.01, pytest.approx(0.15), False, False, 1),
        (0.1, pytest.approx(0.3), True, True, 3),
        (0.1, pytest.approx(0.2), True, False, 1),
        (1.0, None, True, False, 5),
    ]
    errors = [trial.estimate for trial in sensitivity.trials]
    assert [error and pytest.approx(error.se) for error in errors] == [0.05, 0.1, 0.1, None], "half their distance"
    assert (sensitivity.floor, sensitivity.metric) == (0.05, "f1")


def test_steps_are_shown_only_if_they_were_tuned(tmp_path):
    trials = [({"learning_rate": rate, "steps_per_document": 3}, (rate,)) for rate in (0.1, 0.2)]
    on_board(tmp_path, tuning_record(tmp_path, "uniform", trials, trials[0][0]))
    (sensitivity,) = sensitivities(tmp_path)
    assert [trial.steps for trial in sensitivity.trials] == [None, None]


def test_methods_have_the_order_and_labels_of_the_board(tmp_path):
    keys = [
        tuning_record(tmp_path, method, RATES, {"learning_rate": rate}) for method, rate in (("a", 0.1), ("b", 0.2))
    ]
    ids = [
        record(tmp_path, spec(method, "test-1-0", config={"learning_rate": rate}), [[f1]])
        for method, rate, f1 in (("a", 0.1, 0.3), ("b", 0.2, 0.4), ("b", 0.3, 0.1))
    ]
    board(tmp_path, ids, tuning=keys)
    assert [sensitivity.label for sensitivity in sensitivities(tmp_path)] == ["b (learning_rate=0.2)", "a"]


def test_trials_are_not_under_the_name_of_an_imported_row_with_the_same_settings(tmp_path):
    on_board(tmp_path, tuning_record(tmp_path, "uniform", RATES, RATES[1][0]), learning_rate=0.2)
    built = build(tmp_path)
    both = replace(built, rows=(*map(imported, built.rows), *built.rows))
    assert [sensitivity.label for sensitivity in tuning_plots.sensitivities(both)] == ["uniform"]


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
    written = {path.stem for path in plots.write(build(tmp_path), tmp_path / "out")}
    assert NAME in written
