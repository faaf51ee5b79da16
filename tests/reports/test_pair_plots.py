"""The plot of ranks: drawn for a board with several boards, one line for each method that competes on all of them."""

from __future__ import annotations

import warnings

from reports import pair_plots, plots
from reports.board import build
from reports.style import wrap
from tests.reports.test_pairs import write_boards


def test_a_line_for_each_competing_method_joins_its_ranks(tmp_path):
    write_boards(tmp_path)
    built = build(tmp_path)
    (axes,) = pair_plots.drawings(built)["ranks_by_pair"].draw().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["nano", "plain"]
    left = [label.get_text() for label in axes.get_yticklabels()]
    assert left == ["bm25", "lora", "tfidf", "uniform"]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4"] * 2
    places = sorted(tuple(line.get_ydata()) for line in axes.lines)
    assert places == [(0, 0), (1, 3), (2, 2), (3, 1)]
    highlighted = [tuple(line.get_ydata()) for line in axes.lines if line.get_color() == pair_plots.ORANGE]
    assert sorted(highlighted) == [(1, 3), (3, 1)], "lora and uniform: significant on both, in opposite order"
    widths = {line.get_color(): line.get_linewidth() for line in axes.lines}
    assert widths[pair_plots.ORANGE] > 2 * widths[pair_plots.GREY], "so that they can be told apart without colours"


def test_two_boards_are_enough_to_highlight_a_pair(tmp_path):
    levels = {"nano": (0.3, 0.3), "plain": (0.4, 0.1), "wide": (0.1, 0.4)}
    write_boards(tmp_path, {model: dict(zip(("uniform", "lora"), f1, strict=True)) for model, f1 in levels.items()})
    (axes,) = pair_plots.drawings(build(tmp_path))["ranks_by_pair"].draw().axes
    assert [line.get_color() for line in axes.lines] == [pair_plots.ORANGE] * 2, "on plain and wide"


def test_labels_of_any_length_leave_room_for_the_lines(tmp_path, monkeypatch):
    write_boards(tmp_path)
    built = build(tmp_path)
    monkeypatch.setattr(pair_plots, "wrap", lambda label, width: wrap(f"{label} (context=full, " + "x" * 60, width))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(plots.across(built), tmp_path)  # else: constrained_layout not applied


def test_it_needs_two_methods_that_compete_on_all_boards(tmp_path):
    write_boards(tmp_path, failed=[("plain", "lora"), ("plain", "bm25"), ("nano", "uniform")])
    assert pair_plots.drawings(build(tmp_path)) == {}
    assert pair_plots.drawings(build(tmp_path, "demo-plain")) == {}


def test_its_caption_has_the_facts_of_all_boards(tmp_path):
    write_boards(tmp_path)
    plots.write_captions(plots.across(build(tmp_path)), tmp_path / "out")
    caption, notes = (tmp_path / "out" / "ranks_by_pair.txt").read_text().split("\n\n")
    assert caption.startswith("Rank of every method that competes on all boards")
    assert "Dataset: world. Base models: nano, plain. 4 streams of test-2." in notes.replace("\n", " ")
