"""Closed-book F1 by the month of the document: its points computed by hand, and the conditions for the plot."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from reports import month_plots
from reports.board import build
from tests.reports.records_factory import board, imported, plot_names, record, spec

DATES = ("2024-06-30", "2024-07-01", "2024-07-31T23:00:00Z", "2024-09-01", "2024", "")
F1 = ((1.0,), (0.5, 0.5), (0.0, 1.0), (0.0,), (1.0,), (1.0,))


def test_points_are_the_means_of_the_months_with_errors_over_documents(tmp_path):
    board(tmp_path, [record(tmp_path, spec("closed_book", "test-6-0"), F1, dates=DATES)])
    [row] = build(tmp_path).rows
    points = month_plots.estimates(month_plots.items_of(row))
    assert [(month_plots.name_of(month), estimate.mean, estimate.n) for month, estimate in points] == [
        ("2024-06", 1.0, 1),
        ("2024-07", 0.5, 2),
        ("2024-09", 0.0, 1),
    ]
    assert [estimate.se for _, estimate in points] == [None, 0.0, None], "both documents of July have a mean of 0.5"


def test_documents_of_all_streams_count_alike(tmp_path):
    one = record(tmp_path, spec("closed_book", "test-3-0"), ((1.0,), (0.0,), (0.0,)), dates=("2024-06-01",) * 3)
    two = record(tmp_path, spec("closed_book", "test-3-1"), ((1.0,),), dates=("2024-06-02",))
    board(tmp_path, [one, two])
    [row] = build(tmp_path).rows
    [(_, estimate)] = month_plots.estimates(month_plots.items_of(row))
    # values 1, 0, 0, 1 with mean 1/2: SE^2 = 4/3 * 4 * (1/4) / 16 = 1/12
    assert (estimate.mean, estimate.n) == (0.5, 4)
    assert estimate.se == pytest.approx(math.sqrt(1 / 12))


def test_the_plot_shows_the_questions_of_each_month(tmp_path):
    ids = [record(tmp_path, spec(method, "test-6-0"), F1, dates=DATES) for method in ("closed_book", "uniform")]
    board(tmp_path, ids)
    assert "f1_by_month" in plot_names(tmp_path)
    figure = month_plots.drawings(build(tmp_path))["f1_by_month"].draw()
    _, sizes = figure.axes
    assert [bar.get_height() for bar in sizes.patches] == [1, 4, 1]
    assert [text.get_text() for text in sizes.get_xticklabels()] == ["2024-06", "2024-07", "2024-08", "2024-09"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["closed_book", "uniform"]


def test_closed_book_is_ones_own_although_an_imported_row_is_above(tmp_path):
    board(tmp_path, [record(tmp_path, spec("closed_book", "test-6-0"), F1, dates=DATES)])
    built = build(tmp_path)
    both = replace(built, rows=(imported(built.floor), *built.rows))
    figure = month_plots.drawings(both)["f1_by_month"].draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["closed_book"]


def test_more_than_two_years_are_shown_by_quarter(tmp_path):
    dates = ("2022-01-31", "2022-03-01", "2022-04-01", "2023-12-31", "2024-01-01", "2024-02-01")
    board(tmp_path, [record(tmp_path, spec("closed_book", "test-6-0"), ((1.0,),) * 6, dates=dates)])
    figure = month_plots.drawings(build(tmp_path))["f1_by_month"].draw()
    assert [bar.get_height() for bar in figure.axes[1].patches] == [2, 1, 1, 2]
    assert figure.get_supxlabel().startswith("quarter of the document")


@pytest.mark.parametrize(
    ("method", "dates"),
    [("closed_book", ("2024-06-01", "2024-07-01") * 3), ("closed_book", ()), ("uniform", DATES)],
)
def test_without_three_months_or_closed_book_there_is_no_plot(tmp_path, method, dates):
    board(tmp_path, [record(tmp_path, spec(method, "test-6-0"), F1, dates=dates)])
    assert "f1_by_month" not in plot_names(tmp_path)
