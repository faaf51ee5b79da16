"""The experiments of the papers at their ``tiny`` scale: every row runs on what is embedded, and has its scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.paths import experiments
from bench.run.experiment import load
from bench.run.runner import Runner
from reports.board import build
from tests.world import Inline

PAPERS = [name for name in experiments() if name.startswith("paper-")]


@pytest.mark.parametrize("name", PAPERS)
def test_every_row_of_a_paper_runs(name: str, tmp_path: Path) -> None:
    experiment = load(name, "tiny")
    experiment.streams.count, experiment.streams.documents, experiment.tuning = 1, 4, None
    experiment.anchor.questions, experiment.anchor.documents = 0, 0
    on_first_base, *_ = experiment.on_each_pair()
    planned = sorted((plan.name, arm) for plan in on_first_base.methods for arm in plan.arms)
    assert Runner(on_first_base, tmp_path).run(Inline()).failures == ()
    rows = build(tmp_path).rows
    assert sorted((row.method, row.arm) for row in rows) == planned, "optional ones too, as their weights are there"
    score = "bits_per_byte" if name == "paper-dynamic-evaluation" else "f1"
    assert all(score in row.scores for row in rows)


def test_there_are_five_papers() -> None:
    assert len(PAPERS) == 5
