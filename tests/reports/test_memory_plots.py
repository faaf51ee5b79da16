"""Curves over several probes and over k: numbers computed by hand, and the conditions for a plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports import memory_plots, style
from reports.board import build
from reports.probes import answers_of, curves_of
from tests.reports.records_factory import board, imported, plot_names, record, spec

TWICE = {"probes": (0.5, 1.0)}


def numbers(points):
    return [(x, pytest.approx(estimate.mean)) for x, estimate in points]


def probed_run(runs, method="memory", late=((0.0,), (1.0,), (0.0,)), stream="test-3-0", **options):
    """A stream of three documents; at the first probe two were seen and their questions answered correctly."""
    cell = spec(method, stream, **TWICE)
    return record(runs, cell, late, early={0.5: ((1.0,), (1.0,))}, **options)


def titles(runs):
    """Titles of the panels of the plots over probes."""
    drawn = memory_plots.drawings(build(runs))
    return {name: [axes.get_title("left") for axes in plot.draw().axes] for name, plot in drawn.items()}


def test_recall_is_not_drawn_under_the_name_of_f1(tmp_path):
    board(tmp_path, [probed_run(tmp_path, retrieved=1), probed_run(tmp_path, "idle")])
    for name in ("f1_by_bank_size", "retention_by_lag"):
        figure = memory_plots.drawings(build(tmp_path))[name].draw()
        assert figure.get_supylabel() == "answer F1, or recall"
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["F1", "recall", "the other panels"]
    board(tmp_path, [probed_run(tmp_path, "idle")])
    plot = memory_plots.drawings(build(tmp_path))["f1_by_bank_size"]
    assert plot.draw().get_supylabel() == "answer F1" and not any("recall" in note for note in plot.notes)


@pytest.mark.parametrize("name", ["f1_by_bank_size", "retention_by_lag"])
def test_closed_book_is_dashed_whatever_its_label_and_its_marks(tmp_path, name):
    board(tmp_path, [probed_run(tmp_path, "closed_book"), probed_run(tmp_path, "memory")])
    built = build(tmp_path)
    marked = replace(built, rows=tuple(replace(row, overlap=True) for row in built.rows))
    theirs = replace(built, rows=tuple(imported(row) if row is built.floor else row for row in built.rows))
    for changed, title in ((marked, "memory [overlap]"), (theirs, "memory")):
        plot = memory_plots.drawings(changed)[name]
        (axes,) = plot.draw().axes
        assert axes.get_title("left") == title and "dashed: closed_book" in plot.notes
        assert "light lines: F1 in the other panels" not in plot.notes


class TestProbes:
    def test_f1_and_recall_by_documents_seen(self, tmp_path):
        board(tmp_path, [probed_run(tmp_path, retrieved=1)])
        (row,) = build(tmp_path).rows
        curves = curves_of(row, ("f1", "recall"))
        assert numbers(curves["f1"]) == numbers(curves["recall"]) == [(2, 1.0), (3, 1 / 3)]

    def test_lag_is_counted_from_each_probe(self, tmp_path):
        board(tmp_path, [probed_run(tmp_path)])
        (row,) = build(tmp_path).rows
        assert sorted((answer.seen, answer.lag, answer.event.f1) for answer in answers_of(row)) == [
            (2, 0, 1.0),
            (2, 1, 1.0),
            (3, 0, 0.0),
            (3, 1, 1.0),
            (3, 2, 0.0),
        ]
        curves = curves_of(row, ("f1", "recall"), lambda answer: answer.lag)
        assert numbers(curves["f1"]) == [(0, 0.5), (1, 1.0), (2, 0.0)]
        assert curves["recall"] == []

    def test_streams_count_equally_whatever_their_number_of_questions(self, tmp_path):
        more = ((0.0, 0.0, 0.0), (0.0,), (0.0,))
        board(tmp_path, [probed_run(tmp_path), probed_run(tmp_path, late=more, stream="test-3-1")])
        (row,) = build(tmp_path).rows
        (_, (_, late)) = curves_of(row, ("f1",))["f1"]
        assert (late.mean, late.n) == (pytest.approx((1 / 3 + 0) / 2), 2)
        assert late.se == pytest.approx(1 / 6)  # for two values, half their distance

    def test_seeds_are_averaged_and_widen_the_interval(self, tmp_path):
        cells = [spec("memory", f"test-1-{k}", seed=seed, probes=(0.5, 1.0)) for k in (0, 1) for seed in (0, 1)]
        board(tmp_path, [record(tmp_path, cell, [[cell.seed * 0.5]], early={0.5: [[0.0]]}) for cell in cells])
        (row,) = build(tmp_path).rows
        ((_, estimate),) = curves_of(row, ("f1",), lambda answer: 1)["f1"]
        assert (estimate.mean, estimate.n) == (0.125, 2)
        assert estimate.se == pytest.approx(0.125)  # seed means 0 and 0.25; the streams are equal

    def test_the_ceiling_and_control_arms_have_no_curves(self, tmp_path):
        ids = [probed_run(tmp_path), probed_run(tmp_path, "gold_in_prompt")]
        ids.append(record(tmp_path, spec("memory", "test-3-0", "gold_only", **TWICE), [[1.0]] * 3))
        ids.append(record(tmp_path, spec("memory", "test-3-0", "empty", **TWICE), [[0.0]] * 3))
        board(tmp_path, ids)
        assert titles(tmp_path) == {"f1_by_bank_size": ["memory"], "retention_by_lag": ["memory"]}

    def test_one_probe_has_no_curve(self, tmp_path):
        ids = [record(tmp_path, spec("memory", "test-2-0", probes=probes), [[0.5]] * 2) for probes in ((1.0,),)]
        board(tmp_path, ids)
        assert not {"f1_by_bank_size", "retention_by_lag"} & plot_names(tmp_path)
        board(tmp_path, [record(tmp_path, spec("memory", "test-2-0", probes=(0.0, 1.0)), [[0.5]] * 2)])
        assert not {"f1_by_bank_size", "retention_by_lag"} & plot_names(tmp_path)

    def test_a_diverged_method_has_no_curve(self, tmp_path):
        diverged = record(tmp_path, spec("uniform", "test-3-0", **TWICE), status="diverged")
        board(tmp_path, [diverged, probed_run(tmp_path)])
        assert titles(tmp_path) == {"f1_by_bank_size": ["memory"], "retention_by_lag": ["memory"]}


@pytest.mark.parametrize(
    ("documents", "edges"),
    [(1, [0, 1]), (4, [0, 4]), (5, [0, 4, 5]), (60, [0, 4, 8, 16, 32, 60]), (64, [0, 4, 8, 16, 32, 64])],
)
def test_bins_of_lags_double(documents, edges):
    assert memory_plots.lag_bins(documents) == edges


class TestByK:
    def test_rows_that_differ_only_in_k(self, tmp_path):
        ids = [
            record(tmp_path, spec("index", "test-2-0", config={"k": k, "b": b}), [[f1], [f1]], retrieved=1)
            for k, b, f1 in ((5, 1, 0.2), (1, 1, 0.5), (1, 2, 0.9))
        ]
        board(tmp_path, ids)
        (curves,) = memory_plots.curves_by_k(build(tmp_path))
        assert (curves.label, numbers(curves.f1)) == ("index", [(1, 0.5), (5, 0.2)])
        assert numbers(curves.recall) == [(1, 1.0), (5, 1.0)]
        assert "f1_by_k" in plot_names(tmp_path)

    def test_imported_rows_have_a_curve_of_their_own(self, tmp_path):
        ids = [record(tmp_path, spec("index", "test-1-0", config={"k": k}), [[0.1 * k]]) for k in (1, 5)]
        board(tmp_path, ids)
        built = build(tmp_path)
        found = memory_plots.curves_by_k(replace(built, rows=(*built.rows, *map(imported, built.rows))))
        assert [numbers(curves.f1) for curves in found] == [[(1, 0.1), (5, 0.5)]] * 2

    @pytest.mark.parametrize("key", ["rank", "k"])
    def test_fewer_than_two_values_of_k_have_no_curve(self, tmp_path, key):
        configs = [{key: 1 + (key != "k") * i, "b": i} for i in (0, 1)]
        board(tmp_path, [record(tmp_path, spec("index", "test-1-0", config=config), [[0.4]]) for config in configs])
        assert memory_plots.curves_by_k(build(tmp_path)) == []
        assert "f1_by_k" not in plot_names(tmp_path)


def test_ticks_that_would_overlap_have_no_label():
    from matplotlib.figure import Figure

    def tick_labels(values, texts):
        axes = Figure().add_subplot()
        style.log_ticks(axes, values, texts)
        return [label.get_text() for label in axes.get_xticklabels()]

    assert tick_labels([1e-4, 1e-3, 1e-2], ["0.0001", "0.001", "0.01"]) == ["0.0001", "0.001", "0.01"]
    assert tick_labels([0.1, 0.11, 0.12, 1.0], ["0.1", "0.11", "0.12", "1"]) == ["0.1", "", "", "1"]
    assert tick_labels([5], ["5"]) == ["5"]
