"""Plots: the conditions for each, the values of curves, and the same bytes for the same records."""

from __future__ import annotations

import pytest

import reports
from bench.records.store import read_board, read_run
from reports import base_plots, change_plots, format_plots, month_plots, plots, relative_plots, score_plots
from reports.board import build
from reports.score_plots import Value
from tests.reports.records_factory import board, realistic, record, spec


def write(runs, out):
    """Names of the plots written under ``out``."""
    return {path.stem for path in plots.write(build(runs), runs, out)}


def test_the_same_records_give_the_same_bytes(tmp_path):
    realistic(tmp_path / "runs", streams=2, documents=6, questions=1)
    modules = (base_plots, change_plots, format_plots, month_plots, relative_plots)  # they have tests of their own
    special = {"bits_per_byte_by_cost", *(name for module in modules for name in module.NAMES)}
    for name in ("a", "b"):
        assert write(tmp_path / "runs", tmp_path / name) == set(plots.NAMES) - special
    for name in plots.file_names(build(tmp_path / "runs"), tmp_path / "runs"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).stat().st_size > 1000


def test_a_report_reads_each_record_once(tmp_path, monkeypatch):
    realistic(tmp_path / "runs", streams=2, documents=6, questions=1)
    names = []

    def counting_read_run(folder):
        names.append(folder.name)
        return read_run(folder)

    monkeypatch.setattr("reports.board.read_run", counting_read_run)
    assert reports.stale(tmp_path / "runs", tmp_path / "out") != []
    assert sorted(names) == sorted(read_board(tmp_path / "runs").runs)


def test_text_streams_have_no_question_plots(tmp_path):
    runs = tmp_path / "runs"
    board(runs, [record(runs, spec(method, "test-2-0"), nll=[2.0, 3.0]) for method in ("uniform", "closed_book")])
    expected = {"token_nll_by_position", "token_nll_gain_by_position", "bits_per_byte_by_cost", "cost_by_method"}
    assert write(runs, tmp_path / "out") == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == plots.file_names(build(runs), runs)
    assert len(plots.file_names(build(runs), runs)) == len(expected) * len(plots.FORMATS)


def test_without_the_unadapted_model_there_is_no_gain_to_plot(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), nll=[2.0, 3.0])])
    assert write(tmp_path, tmp_path / "out") == {"token_nll_by_position", "bits_per_byte_by_cost", "cost_by_method"}


def test_without_scoring_there_is_no_nll_plot(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), [[0.5], [0.5]])])
    assert write(tmp_path, tmp_path / "out") == {"f1_by_method", "f1_by_position", "f1_by_cost", "cost_by_method"}


def test_a_board_on_which_all_runs_diverged_has_no_plots(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), status="diverged")])
    assert write(tmp_path, tmp_path / "out") == set()


def test_names_of_methods_as_good_as_the_best_are_bold(tmp_path):
    levels = {"a": (0.5, 0.6, 0.7), "b": (0.1, 0.2001, 0.3), "closed_book": (0.0, 0.0, 0.0)}
    names = [(method, f"test-2-{k}", level) for method, of in levels.items() for k, level in enumerate(of)]
    board(tmp_path, [record(tmp_path, spec(method, name), [[level]] * 2) for method, name, level in names])
    axes = score_plots.drawings(build(tmp_path), tmp_path)["f1_by_method"]().axes[0]
    weights = {label.get_text(): label.get_fontweight() for label in axes.get_yticklabels()}
    assert weights == {"a": "bold", "b": "normal", "closed book": "normal"}


def test_error_bars_are_95_percent_intervals(tmp_path):
    board(
        tmp_path, [record(tmp_path, spec("a", f"test-2-{k}"), [[level]] * 2) for k, level in enumerate((0.4, 0.5, 0.6))]
    )
    axes = score_plots.drawings(build(tmp_path), tmp_path)["f1_by_method"]().axes[0]
    (segment,) = axes.collections[0].get_segments()
    half = 4.302653 * 0.1 / 3**0.5  # t table, 2 degrees, 97.5 %
    assert segment[:, 0] == pytest.approx((0.5 - half, 0.5 + half))


class TestCurve:
    def test_parts_are_ratios_of_sums_and_empty_parts_are_none(self):
        values = [Value("s", 0, 6.0, 2.0), Value("s", 1, 2.0, 2.0), Value("s", 25, 5.0, 1.0)]
        assert score_plots._binned(values, units=30)["s"] == [2.0, *[None] * 7, 5.0, None]

    def test_a_short_stream_has_a_part_for_each_document(self):
        values = [Value("s", i, float(i), 1.0) for i in range(3)]
        assert score_plots._binned(values, units=3) == {"s": [0.0, 1.0, 2.0]}

    def test_points_are_means_over_streams_at_the_middle_of_each_part(self):
        curve = score_plots.Curve("x", {"a": [1.0, None], "b": [2.0, None]}, 20, "document")
        ((x, estimate),) = curve.points()
        assert (x, estimate.mean, estimate.se) == (5.0, 1.5, pytest.approx(0.5))

    def test_documents_in_segments_are_placed_by_segment(self, tmp_path):
        cut = {"segment_tokens": 10}
        board(tmp_path, [record(tmp_path, spec("uniform", "test-1-0", **cut), nll=[4.0, 2.0, 1.0])])
        (_, nll_curves, _) = score_plots._curves(build(tmp_path), tmp_path)
        (curve,) = nll_curves.values()
        assert (curve.units, curve.unit, curve.by_stream) == (3, "segment", {"test-1-0": [4.0, 2.0, 1.0]})

    def test_differences_are_taken_within_streams(self):
        a = score_plots.Curve("a", {"s": [1.0, 2.0], "t": [5.0, 5.0]}, 2, "document")
        b = score_plots.Curve("b", {"s": [0.5, None]}, 2, "document")
        assert a.minus(b).by_stream == {"s": [0.5, None]}
