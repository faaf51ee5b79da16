"""Break-even numbers of questions, by hand, and the conditions for the plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.records.schema import Tally
from reports.board import build
from reports.query_plots import NAME, Price, drawings
from tests.reports.records_factory import board, costs, imported, record, spec

PROMPT = Price("prompt", 0, 50)


@pytest.mark.parametrize(
    ("price", "questions"),
    [
        (Price("adapts", 400, 10), 10),
        (Price("free", 0, 10), 0),
        (Price("dear", 400, 60), None),
        (Price("as dear", 400, 50), None),
        (Price("the same", 0, 50), 0),
    ],
)
def test_break_even_is_where_both_take_the_same(price, questions):
    assert price.break_even(PROMPT) == questions
    if questions:
        assert price.total(questions) == PROMPT.total(questions)


def write(runs, method, observe, answer, **config):
    """A run of two documents and two questions with these operations in all."""
    tallies = {"observe": observe, "answer": answer}
    paid = costs().model_copy(
        update={name: Tally(seconds=1, flops=flops, peak_bytes=1) for name, flops in tallies.items()}
    )
    return record(runs, spec(method, "test-2-0", config=config), [[0.5], [0.5]], [2.0, 2.0], costs=paid)


def test_methods_are_compared_with_all_documents_in_the_prompt(tmp_path):
    ids = [write(tmp_path, *of) for of in (("full_context", 0, 100), ("adapter", 400, 20), ("tuner", 400, 400))]
    board(tmp_path, ids)
    figure = drawings(build(tmp_path))["cost_by_questions"].draw()
    titles = sorted(axes.get_title("left").replace("\n", " ") for axes in figure.axes)
    assert titles == ["adapter: from 10 questions on", "tuner: never"]


def test_each_row_of_a_method_has_its_panel(tmp_path):
    ids = [write(tmp_path, "full_context", 0, 100)]
    board(tmp_path, ids + [write(tmp_path, "adapter", 40 * rank, 20, rank=rank) for rank in (8, 16)])
    figure = drawings(build(tmp_path))["cost_by_questions"].draw()
    titles = sorted(axes.get_title("left").replace("\n", " ") for axes in figure.axes)
    assert titles == ["adapter (rank=16): from 16 questions on", "adapter (rank=8): from 8 questions on"]


def test_an_imported_prompt_is_drawn_only_without_ones_own(tmp_path):
    board(tmp_path, [write(tmp_path, "full_context", 0, 100), write(tmp_path, "adapter", 400, 20)])
    built = build(tmp_path)
    (theirs,) = [imported(row) for row in built.rows if row.method == "full_context"]
    plot = drawings(replace(built, rows=(theirs, *built.rows)))[NAME]
    assert "dashed: full_context" in plot.notes
    rows = tuple(row for row in built.rows if row.method != "full_context")
    assert "dashed: full_context [imported x]" in drawings(replace(built, rows=(theirs, *rows)))[NAME].notes


def test_without_such_a_prompt_nothing_is_drawn(tmp_path):
    board(tmp_path, [write(tmp_path, "bm25", 0, 100), write(tmp_path, "adapter", 400, 20)])
    assert drawings(build(tmp_path)) == {}
    board(tmp_path, [write(tmp_path, "full_context", 0, 100)])
    assert drawings(build(tmp_path)) == {}
