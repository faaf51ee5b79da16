"""The board in a tracker: values as on the board, curves as in the records, and what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bench.errors import BenchError
from reports import tracking
from reports.board import build
from tests.reports.records_factory import board, record, spec
from tests.reports.test_board import write_segments

MEAN = (1 / 2 + 2 / 3) / 2
"""F1 at the end, where one stream has two questions and the other three."""


@pytest.fixture
def runs(tmp_path):
    """One method on two streams, with NLL 2 and 3 and then 4 and 5, and answers at two probes."""
    ids = []
    for k in range(2):
        cell = spec("uniform", f"test-2-{k}", probes=(0.5, 1.0), config={"rate": 0.1, "learn": "all", "layers": [1]})
        ids.append(
            record(tmp_path, cell, [[1.0], [0.5] * 2 if k else [0.0]], [2 + 2 * k, 3 + 2 * k], early={0.5: [[0.25]]})
        )
    board(tmp_path, ids)
    return tmp_path


def tensorboard_curves(built, out):
    """What TensorBoard reads of a board's only row: steps and values by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert str(out / "tensorboard") in tracking.track(built, out, "tensorboard")
    events = EventAccumulator(str(out / "tensorboard" / "demo" / "uniform"))
    events.Reload()
    return lambda name: [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_has_scores_costs_curves_and_settings(runs, tmp_path):
    built = build(runs)
    curve = tensorboard_curves(built, tmp_path / "out")
    (row,) = built.rows
    logged = {name: curve(f"board/{name}")[0][1] for name in (*row.scores, *row.costs)}
    assert logged == pytest.approx({**{name: row.value(name) for name in row.scores}, **row.costs})
    assert curve("stream/token_nll") == [(1, 3.0), (2, 4.0)]
    assert curve("stream/f1_at_probe") == [(1, 0.25), (2, pytest.approx(MEAN))]


def test_segments_count_as_much_as_their_tokens(tmp_path):
    cell = spec("uniform", "test-1-0", segment_tokens=3)
    write_segments(tmp_path, cell, [(0, 0, 3, 6, 6.0), (0, 1, 1, 2, 6.0)])
    board(tmp_path, [cell.id])
    curve = tensorboard_curves(build(tmp_path), tmp_path / "out")
    assert curve("stream/token_nll") == [(1, 3.0)], "12 nats on 4 tokens"


class WandbRun:
    """What a run of Weights & Biases is given."""

    def __init__(self, **options):
        self.options, self.axes, self.logged, self.summary = options, {}, [], {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended = True

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)


def test_wandb_has_the_same(runs, tmp_path, monkeypatch):
    seen = []

    def init(**options):
        seen.append(WandbRun(**options))
        return seen[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    built = build(runs)
    assert "group demo" in tracking.track(built, tmp_path / "out", "wandb")
    (run,), (row,) = seen, built.rows
    config = run.options.pop("config")
    assert (config["rate"], config["layers"]) == (0.1, [1])
    names = {"project": "online-adaptation-bench", "group": "demo", "name": "uniform"}
    assert run.options == {**names, "dir": tmp_path / "out"} and (tmp_path / "out").is_dir()
    assert run.axes == {"documents": None, "token_nll": "documents", "f1_at_probe": "documents"}
    nll = [{"documents": 1, "token_nll": 3.0}, {"documents": 2, "token_nll": 4.0}]
    assert run.logged == [
        *nll,
        {"documents": 1, "f1_at_probe": 0.25},
        {"documents": 2, "f1_at_probe": pytest.approx(MEAN)},
    ]
    assert run.summary == {**{name: row.value(name) for name in row.scores}, **row.costs} and run.ended


def test_an_unknown_tracker_is_refused_before_anything_runs():
    with pytest.raises(BenchError, match=r"no tracker 'tensorbord'\. Did you mean tensorboard"):
        tracking.check("tensorbord")


def test_a_tracker_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"wandb is not installed\. Install it with pip install wandb"):
        tracking.check("wandb")
