from __future__ import annotations

from bench.help.readiness import readiness
from bench.run.experiment import load


def test_each_data_set_and_each_base_of_an_experiment_comes_once() -> None:
    experiment = load("paper-mac")
    found = readiness(experiment)
    titles = [finding.subject for finding in found if "licence:" in finding.text]
    assert titles == experiment.datasets
    assert [finding.text.split()[0] for finding in found if finding.subject == "base"] == experiment.models
