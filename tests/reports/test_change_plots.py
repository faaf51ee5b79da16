"""The plot of answers that change: its points computed by hand, and the conditions for it."""

from __future__ import annotations

import pytest

from bench.records.schema import CHANGE_SCORES
from reports import change_plots
from reports.board import build
from reports.probes import curves_of
from tests.reports.records_factory import board, plot_names, record, spec


def probed(runs, method="memory", stream="test-3-0", changed=("0.0", "1.0"), probes=(0.3, 0.6, 1.0), **options):
    """Three documents, a question each, asked at three probes: one fact has changed by the second, two by the third."""
    early = {0.3: ((1.0,),), 0.6: ((0.0,), (1.0,))}
    cell = spec(method, stream, probes=probes)
    by_probe = {0.6: changed[:1], 1.0: changed}
    return record(
        runs, cell, ((0.0,), (1.0,), (1.0,)), early={p: early[p] for p in probes[:-1]}, changed=by_probe, **options
    )


def points(runs):
    """Number of documents seen and mean, by score."""
    (row,) = build(runs).rows
    return {
        name: [(seen, estimate.mean) for seen, estimate in of] for name, of in curves_of(row, CHANGE_SCORES).items()
    }


def test_points_are_the_scores_at_each_probe(tmp_path):
    board(tmp_path, [probed(tmp_path)])
    assert points(tmp_path) == {
        "f1_current": [(2, 0.0), (3, 0.5)],
        "stale": [(2, 1.0), (3, 0.5)],
        "f1_unchanged": [(1, 1.0), (2, 1.0), (3, 1.0)],
    }


def test_a_point_needs_such_a_question_on_every_stream(tmp_path):
    board(tmp_path, [probed(tmp_path), probed(tmp_path, stream="test-3-1", changed=())])
    assert points(tmp_path)["f1_current"] == points(tmp_path)["stale"] == []
    assert points(tmp_path)["f1_unchanged"] == [(1, 1.0), (2, pytest.approx(0.75)), (3, pytest.approx(5 / 6))]


def test_the_plot_has_a_panel_for_each_method_on_shared_axes(tmp_path):
    ids = [probed(tmp_path, method) for method in ("memory", "uniform", "closed_book", "gold_in_prompt")]
    ids.append(record(tmp_path, spec("memory", "test-3-0", "gold_only", probes=(0.3, 0.6, 1.0)), [[1.0]] * 3))
    board(tmp_path, ids)
    assert "evolving" in plot_names(tmp_path)
    figure = change_plots.drawings(build(tmp_path))["evolving"].draw()
    used = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in used] == ["memory", "uniform"]
    assert len({axes.get_ylim() for axes in used}) == 1
    assert len({axes.get_xlim() for axes in used}) == 1


def test_without_changes_or_with_one_probe_there_is_no_plot(tmp_path):
    board(tmp_path, [probed(tmp_path, changed=())])
    assert "evolving" not in plot_names(tmp_path)
    board(tmp_path, [probed(tmp_path, probes=(1.0,))])
    assert "evolving" not in plot_names(tmp_path)
