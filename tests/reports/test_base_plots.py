"""The plot of ranks: drawn for a board with several bases, one line for each method that competes on all of them."""

from __future__ import annotations

from reports import base_plots
from reports.board import build
from tests.reports.test_bases import write_boards


def test_a_line_for_each_competing_method_joins_its_ranks(tmp_path):
    write_boards(tmp_path)
    built = build(tmp_path)
    (axes,) = base_plots.drawings(built, tmp_path)["ranks_by_base"].draw().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["nano", "plain"]
    left = [label.get_text() for label in axes.get_yticklabels()]
    assert left == ["bm25  1", "lora  2", "tfidf  3", "uniform  4"]
    places = sorted(tuple(line.get_ydata()) for line in axes.lines)
    assert places == [(0, 0), (1, 3), (2, 2), (3, 1)]
    highlighted = [tuple(line.get_ydata()) for line in axes.lines if line.get_color() == base_plots.ORANGE]
    assert sorted(highlighted) == [(1, 3), (3, 1)], "lora and uniform: significant on both, in opposite order"


def test_it_needs_two_methods_that_compete_on_all_bases(tmp_path):
    write_boards(tmp_path, failed=[("plain", "lora"), ("plain", "bm25"), ("nano", "uniform")])
    assert base_plots.drawings(build(tmp_path), tmp_path) == {}
    assert base_plots.drawings(build(tmp_path, "demo-plain"), tmp_path) == {}
