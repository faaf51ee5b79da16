"""F1 by total cost: the Pareto front, and labels of many methods that cover nothing."""

from __future__ import annotations

import itertools
import random

import pytest

from reports import cost_plots
from reports.board import build
from reports.cost_plots import Point
from reports.statistics import Estimate
from tests.reports.records_factory import board, record, spec


def point(label, cost, f1, competes=True):
    return Point(label, cost, Estimate(f1, 0.01, "SE_stream", 8, 7.0), control=not competes, competes=competes)


def test_the_front_has_the_methods_than_which_none_is_cheaper_and_better():
    methods = [
        point("closed_book", 0.5, 0.95, competes=False),
        point("free", 0.0, 0.1),
        point("dear", 9.0, 0.8),
        point("worse", 9.0, 0.7),
        point("dominated", 5.0, 0.3),
        point("cheap", 2.0, 0.3),
        point("dearest", 99.0, 0.8),
    ]
    assert [method.label for method in cost_plots.pareto_front(methods)] == ["free", "cheap", "dear"]
    assert cost_plots.pareto_front(methods[:1]) == []


def test_where_lower_is_better_the_front_has_those_below_all_cheaper_ones():
    methods = [point("free", 0.0, 1.2), point("cheap", 2.0, 1.0), point("worse", 3.0, 1.1), point("dear", 9.0, 0.9)]
    assert [method.label for method in cost_plots.pareto_front(methods, lower_is_better=True)] == [
        "free",
        "cheap",
        "dear",
    ]


@pytest.mark.parametrize("free", [False, True])
def test_labels_of_fifteen_methods_do_not_overlap_and_are_inside(free):
    from matplotlib.figure import Figure

    rng = random.Random(0)
    methods = [point(f"method number {i}", 10 ** rng.gauss(13, 1), 0.5 + rng.gauss(0, 0.1)) for i in range(14)]
    methods.append(point("a method that has no cost at all", 0.0 if free else 1e12, 0.4, competes=free))
    axes = Figure(figsize=(6.9, 2.7)).subplots()
    cost_plots._panel(axes, methods)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text().replace("\n", " ") for text in axes.texts] == [method.label for method in methods]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert ("0" in [label.get_text() for label in axes.get_xticklabels()]) == free


def test_a_ceiling_far_above_all_methods_is_named_at_the_top_and_flattens_none(tmp_path):
    levels = {"closed_book": 0.05, "uniform": 0.1, "gold_in_prompt": 0.9}
    board(tmp_path, [record(tmp_path, spec(method, "test-1-0"), [[f1]]) for method, f1 in levels.items()])
    figure = cost_plots.drawings(build(tmp_path))["f1_by_cost"].draw()
    assert all(axes.get_ylim()[1] < 0.2 for axes in figure.axes)
    assert all("gold_in_prompt  0.90" in [text.get_text() for text in axes.texts] for axes in figure.axes)
    assert "triangle: beyond the axis" in figure.texts[0].get_text()


def test_a_broken_method_is_named_at_the_top_and_does_not_flatten_the_bits_per_byte_of_the_others(tmp_path):
    levels = {"closed_book": 1.4, "uniform": 1.3, "dynamic_evaluation": 5.0}
    board(tmp_path, [record(tmp_path, spec(method, "test-1-0"), nll=[nll]) for method, nll in levels.items()])
    figure = cost_plots.drawings(build(tmp_path))["bits_per_byte_by_cost"].draw()
    for axes in figure.axes:
        texts = [text.get_text() for text in axes.texts]
        assert [text for text in texts if text.startswith("dynamic_evaluation  ")] and "uniform" in texts
        low, high = axes.get_ylim()
        bits = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "o"]
        assert max(bits) - min(bits) > 0.3 * (high - low)
    assert "triangle: beyond the axis" in figure.texts[0].get_text()


def test_where_many_labels_are_far_from_their_dots_these_have_numbers(tmp_path, monkeypatch):
    levels = {"closed_book": 0.05, "uniform": 0.1, "lora": 0.2}
    board(tmp_path, [record(tmp_path, spec(method, "test-1-0"), [[f1]]) for method, f1 in levels.items()])
    monkeypatch.setattr(cost_plots, "MOST_FAR", -1)
    figure = cost_plots.drawings(build(tmp_path))["f1_by_cost"].draw()
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes] == [["1", "2", "3"]] * 2
    key = [text.get_text() for text in figure.texts if text.get_text()[0].isdigit()]
    assert key == ["1  lora", "2  uniform", "3  closed_book"]
    note = next(text for text in figure.texts if text.get_text().startswith("total cost"))
    assert all(text.get_position()[1] < note.get_position()[1] for text in figure.texts if text.get_text() in key)


def test_a_row_with_failed_runs_is_named_and_not_on_the_front(tmp_path):
    ids = [record(tmp_path, spec("uniform", f"test-1-{k}"), [[0.2]]) for k in range(4)]
    ids += [
        record(tmp_path, spec("lora", f"test-1-{k}"), [[0.9]], status="diverged" if k else "complete") for k in range(4)
    ]
    board(tmp_path, ids)
    built = build(tmp_path)
    found = cost_plots.points(built, "total_seconds")
    assert {one.label for one in found} == {"uniform", "lora [diverged on 3 of 4]"}
    assert [one.label for one in cost_plots.pareto_front(found)] == ["uniform"]
    costs = cost_plots.drawings(built)["cost_by_method"].draw()
    labels = [label.get_text().replace("\n", " ") for label in costs.axes[0].get_yticklabels()]
    assert labels == ["uniform", "lora [diverged on 3 of 4]"]


def test_where_text_alone_is_scored_the_unadapted_model_competes(tmp_path):
    losses = {"closed_book": [2.0], "uniform": [3.0]}
    board(tmp_path, [record(tmp_path, spec(method, "test-1-0"), nll=nll) for method, nll in losses.items()])
    found = cost_plots.points(build(tmp_path), "total_seconds")
    assert [one.label for one in cost_plots.pareto_front(found, lower_is_better=True)] == ["closed_book"]
    assert not any(one.control for one in found)
