"""Gradients of tokens: shares computed by hand, the tokens that are shown, and the conditions for the plot."""

from __future__ import annotations

import pytest

from reports import gradient_plots, plots
from reports.board import build
from tests.reports.records_factory import board, plot_names, record, spec, token_event

TEXT = "The~ ferry leaves Pier* 4* ."
WEIGHTS, NORMS = (1, 0, -1, 3, 2, 1), (4, 3, 5, 2, 1, 5)


def run_with(runs, norms, method="camels", text=TEXT, stream="test-1-0"):
    event = token_event(0, text, WEIGHTS, norms=norms)
    return record(runs, spec(method, stream, gradient_norms=1), [[0.5]], [2.0], tokens=[event])


def test_shares_are_of_the_sum_over_the_document_and_negative_weights_count_as_none():
    event = token_event(0, TEXT, WEIGHTS, norms=NORMS)
    before, after = gradient_plots.shares(event)
    assert before == pytest.approx([norm / 20 for norm in NORMS])
    assert after == pytest.approx([part / 17 for part in (4, 0, 0, 6, 2, 5)])
    assert gradient_plots.on_class(event, "fact") == pytest.approx((3 / 20, 8 / 17))
    silent = token_event(0, TEXT, WEIGHTS, norms=(0,) * 6)
    assert gradient_plots.shares(silent) == ([0.0] * 6, [0.0] * 6)


def test_the_stretch_with_the_most_facts_is_shown():
    classes = ["filler", "fact", "filler", "name", "fact", "fact", "filler"]
    assert gradient_plots.shown(classes, 3) == range(3, 6)
    assert gradient_plots.shown(classes, 7) == gradient_plots.shown(classes, 60) == range(7)
    assert gradient_plots.shown(["filler"] * 5, 3) == range(3)


def test_is_drawn_if_gradients_were_recorded(tmp_path):
    board(tmp_path / "with", [run_with(tmp_path / "with", NORMS)])
    board(tmp_path / "without", [run_with(tmp_path / "without", None)])
    drawn, not_drawn = (plot_names(tmp_path / name) for name in ("with", "without"))
    assert "gradient_norms" in drawn and "gradient_norms" not in not_drawn
    assert "token_weights" in not_drawn


def test_all_panels_are_of_one_document(tmp_path):
    other = "Two~ words of another text ."
    ids = [
        run_with(tmp_path, NORMS, method, text, f"test-1-{k}")
        for method in "ab"
        for k, text in enumerate((TEXT, other))
    ]
    failed = record(tmp_path, spec("b", "test-1-0", gradient_norms=1), status="failed")
    board(tmp_path, [*ids[:2], failed, ids[3]])
    (axes,) = plots.drawings(build(tmp_path))["gradient_norms"].draw().axes
    assert axes.get_title("left").startswith("a: ")


def test_panels_say_what_facts_have_before_and_after(tmp_path):
    board(tmp_path, [run_with(tmp_path, NORMS)])
    figure = plots.drawings(build(tmp_path))["gradient_norms"].draw()
    (axes,) = figure.axes
    assert axes.get_title("left") == "camels: facts have 15% of the gradients before, 47% after"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["The", "ferry", "leaves", "Pier", "4", "."]
    assert [bar.get_height() for bar in axes.patches[:6]] == pytest.approx([4 / 17, 0, 0, 6 / 17, 2 / 17, 5 / 17])
