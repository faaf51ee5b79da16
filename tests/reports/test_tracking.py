"""The board in a tracker: values as on the board, curves as in the records, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from bench.errors import BenchError
from reports import tracking
from reports.board import build
from tests.reports.records_factory import board, record, spec


@pytest.fixture
def runs(tmp_path):
    """One method on two streams, with NLL 2 and 3 and then 4 and 5, and answers at two probes."""
    ids = []
    for k in range(2):
        cell = spec("uniform", f"test-2-{k}", probes=(0.5, 1.0), config={"rate": 0.1, "learn": "all", "layers": [1]})
        ids.append(record(tmp_path, cell, [[1.0], [0.5 * k]], [2 + 2 * k, 3 + 2 * k], early={0.5: [[0.25]]}))
    board(tmp_path, ids)
    return tmp_path


def test_tensorboard_has_scores_costs_curves_and_settings(runs, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    built = build(runs)
    assert str(tmp_path / "out" / "tensorboard") in tracking.track(built, tmp_path / "out", "tensorboard")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard" / "demo" / "uniform"))
    events.Reload()

    def curve(name):
        return [(event.step, event.value) for event in events.Scalars(name)]

    (row,) = built.rows
    logged = {name: curve(f"board/{name}")[0][1] for name in (*row.scores, *row.costs)}
    assert logged == pytest.approx({**{name: row.value(name) for name in row.scores}, **row.costs})
    assert curve("stream/token_nll") == [(1, 3.0), (2, 4.0)]
    assert curve("stream/f1_at_probe") == [(1, 0.25), (2, 0.625)]


def test_wandb_has_the_same_offline(runs, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen, init = [], wandb.init

    @contextmanager
    def observed(**options):
        with init(**options) as run:
            yield run
            seen.append((run.name, run.group, dict(run.config), dict(run.summary)))

    monkeypatch.setattr(wandb, "init", observed)
    built = build(runs)
    assert "group demo" in tracking.track(built, tmp_path / "out", "wandb")
    ((name, group, config, summary),) = seen
    (row,) = built.rows
    assert (name, group, config["rate"], config["layers"]) == ("uniform", "demo", 0.1, [1])
    assert {score: summary[score] for score in row.scores} == {score: row.value(score) for score in row.scores}
    assert list(tmp_path.glob("out/wandb/offline-run-*"))


def test_an_unknown_tracker_is_refused_before_anything_runs():
    with pytest.raises(BenchError, match=r"no tracker 'tensorbord'\. Did you mean tensorboard"):
        tracking.check("tensorbord")


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"wandb is not installed\. Install it with pip install wandb"):
        tracking.check("wandb")
