"""Relative F1: values computed by hand, what it is relative to, and methods that have nothing to lose."""

from __future__ import annotations

import json

import pytest

from reports import relative_plots, tables
from reports.board import build
from reports.columns import caption, columns
from tests.reports.records_factory import board, plot_names, record, spec

FIRST = {"probes": (0.5, 0.75, 1.0), "questions": "first"}


def retention(runs, method, levels, seed=0, config=None):
    """Streams of four documents; ``levels`` are the F1 on the first two of them at the three probes of each stream."""
    ids = []
    for k, (start, middle, end) in enumerate(levels):
        cell = spec(method, f"test-4-{k}", seed=seed, config=config or {}, **FIRST)
        early = {0.5: [[start]] * 2, 0.75: [[middle]] * 2}
        ids.append(record(runs, cell, [[end]] * 2, [2.0] * 4, early=early))
    return ids


def robustness(runs, method, levels, seeds=(0,), failed=()):
    """Streams of four documents; ``levels`` are the F1 on each stream by percentage of irrelevant documents.

    ``failed`` has the percentages at which the run on the first stream diverged.
    """
    ids = []
    for percent, of_streams in levels.items():
        arm = f"irrelevant_{percent}" if percent else "stream"
        for seed in seeds if percent == 0 else seeds[:1]:
            for k, level in enumerate(of_streams):
                cell = spec(method, f"test-4-{k}", arm, seed=seed)
                status = "diverged" if percent in failed and k == 0 else "complete"
                ids.append(record(runs, cell, [[level]] * 4, [2.0] * (4 + percent // 25), status=status))
    return ids


def rows(runs):
    return {row.label: row for row in build(runs).rows}


def numbers(points):
    return [(x, pytest.approx(estimate.mean), pytest.approx(estimate.se, abs=1e-9)) for x, estimate in points]


@pytest.fixture
def kept(tmp_path):
    """A method that loses part of what it knew, one that never knew anything, and closed book."""
    ids = retention(tmp_path, "memory", [(0.8, 0.6, 0.4), (0.6, 0.6, 0.6), (0.6, 0.6, 0.4)])
    ids += retention(tmp_path, "idle", [(0.1, 0.1, 0.2)] * 3)
    ids += retention(tmp_path, "closed_book", [(0.1, 0.1, 0.1)] * 3)
    board(tmp_path, ids)
    return tmp_path


class TestRetention:
    def test_f1_at_each_probe_is_relative_to_the_first(self, kept):
        built = build(kept)
        curves = {curve.label: curve for curve in relative_plots.by_documents(built)}
        # means 2/3, 0.6 and 1.4/3; the error is that of (step - ratio * base) / (2/3) over the streams, which is
        # -0.18, 0.09 and 0.09 at the second step, and -0.24, 0.27 and -0.03 at the third
        assert numbers(curves["memory"].points) == [(2, 1.0, 0.0), (3, 0.9, 0.09), (4, 0.7, 0.0219**0.5)]
        assert curves["memory"].base == pytest.approx(2 / 3)
        (relative,) = rows(kept)["memory"].scores["relative_f1"]
        assert (relative.mean, relative.se) == (pytest.approx(0.7), pytest.approx(0.0219**0.5))
        assert rows(kept)["memory"].value("f1_first_probe") == pytest.approx(2 / 3)

    def test_what_was_never_above_closed_book_has_no_relative_f1(self, kept):
        assert [label for label, row in rows(kept).items() if "relative_f1" in row.scores] == ["memory"]
        curves = relative_plots.by_documents(build(kept))
        assert [curve.label for curve in curves if not curve.points] == ["idle"], (
            "closed_book is what it is held against"
        )
        figure = relative_plots.drawings(build(kept))["relative_f1_by_documents"].draw()
        note = "left out, not significantly above closed_book to begin with: idle"
        assert note in " ".join(figure.get_supxlabel().split())
        assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["70%", "100% is F1 0.67"]

    def test_what_has_failed_runs_is_left_out_for_that_reason(self, kept):
        ids = retention(kept, "memory", [(0.8, 0.6, 0.4), (0.6, 0.6, 0.6), (0.6, 0.6, 0.4)])
        cells = [spec("lost", f"test-4-{k}", **FIRST) for k in range(3)]
        for k, cell in enumerate(cells):
            early = {0.5: [[0.9]] * 2, 0.75: [[0.9]] * 2}
            ids.append(record(kept, cell, [[0.9]] * 2, early=early, status="complete" if k else "diverged"))
        board(kept, ids)
        plot = relative_plots.drawings(build(kept))["relative_f1_by_documents"]
        assert plot.notes[-2:] == ["left out, since not complete: lost [diverged on 1 of 3]", ""]

    def test_without_closed_book_a_base_is_above_zero(self, tmp_path):
        board(
            tmp_path,
            retention(tmp_path, "memory", [(0.5, 0.5, 0.5)] * 2) + retention(tmp_path, "idle", [(0, 0, 0)] * 2),
        )
        assert [label for label, row in rows(tmp_path).items() if "relative_f1" in row.scores] == ["memory"]
        assert "relative_f1_by_documents" in plot_names(tmp_path)

    def test_the_board_says_that_its_f1_is_on_the_first_documents(self, kept):
        built = build(kept)
        selection = columns(built)
        headings = [column.heading for column in selection]
        assert "F1 (first 2)" in headings and "F1" not in headings
        assert [column.cell(built.rows[0]) for column in selection if column.heading == "F1 at start"] == ["0.667"]
        text = caption(built, selection)
        assert "the questions about the first 2 documents of each stream" in text
        assert "relative F1: F1 / F1 at start, after the first 2 documents, on the same questions" in text
        tables.write(built, kept / "out")
        table = json.loads((kept / "out" / "leaderboard.json").read_text())
        assert [row["first_documents"] for row in table["rows"]] == [2, 2, 2]
        figures = {name: plot.draw() for name, plot in relative_plots.drawings(built).items()}
        assert figures["relative_f1_by_documents"].get_supylabel() == "F1 relative to that after\nthe first 2 documents"

    def test_plots_that_need_the_questions_on_all_documents_are_left_out(self, kept):
        names = plot_names(kept)
        assert {"f1_by_method", "relative_f1_by_documents"} <= names
        assert not {"f1_by_bank_size", "retention_by_lag", "f1_by_position", "relative_f1_by_irrelevant"} & names

    def test_the_interval_covers_a_new_seed(self, tmp_path):
        ids = retention(tmp_path, "memory", [(0.8, 0.8, 0.8)] * 2)
        ids += retention(tmp_path, "memory", [(0.8, 0.8, 0.4)] * 2, seed=1)
        board(tmp_path, ids)
        (relative,) = rows(tmp_path)["memory"].scores["relative_f1"]
        assert (relative.mean, relative.se) == (pytest.approx(0.75), pytest.approx(0.25)), "seeds at 1 and 0.5"


class TestIrrelevant:
    LEVELS = {0: (0.8, 0.6, 0.6), 25: (0.8, 0.6, 0.6), 100: (0.4, 0.6, 0.4)}

    @pytest.fixture
    def runs(self, tmp_path):
        ids = robustness(tmp_path, "memory", self.LEVELS)
        ids += robustness(tmp_path, "idle", dict.fromkeys(self.LEVELS, (0.1, 0.1, 0.1)))
        ids += robustness(tmp_path, "closed_book", {0: (0.1, 0.1, 0.1)})
        board(tmp_path, ids)
        return tmp_path

    def test_f1_is_relative_to_that_of_the_same_method_without_them(self, runs):
        curves = {curve.label: curve for curve in relative_plots.by_irrelevant(build(runs))}
        assert numbers(curves["memory"].points) == [(0, 1.0, 0.0), (25, 1.0, 0.0), (100, 0.7, 0.0219**0.5)]
        assert curves["idle"].points == () and set(curves) == {"memory", "idle"}
        assert rows(runs)["memory on irrelevant_100"].value("relative_f1") == pytest.approx(0.7)
        assert "relative_f1" not in rows(runs)["memory"].scores, "it is the base"
        assert "relative_f1_by_irrelevant" in plot_names(runs)

    def test_a_method_with_a_failed_arm_is_left_out_for_that_reason(self, tmp_path):
        ids = robustness(tmp_path, "memory", self.LEVELS)
        ids += robustness(tmp_path, "lost", dict.fromkeys(self.LEVELS, (0.9, 0.8, 0.9)), failed=[100])
        ids += robustness(tmp_path, "idle", dict.fromkeys(self.LEVELS, (0.1, 0.1, 0.1)))
        board(tmp_path, ids + robustness(tmp_path, "closed_book", {0: (0.1, 0.1, 0.1)}))
        built = build(tmp_path)
        plot = relative_plots.drawings(built)["relative_f1_by_irrelevant"]
        assert plot.notes[-2:] == [
            "left out, since not complete: lost on irrelevant_100 [diverged on 1 of 3]",
            "left out, not significantly above closed_book to begin with: idle",
        ]
        assert all(note in " ".join(plot.draw().get_supxlabel().split()) for note in plot.notes[-2:])

    def test_the_board_says_what_these_arms_are(self, runs):
        built = build(runs)
        text = caption(built, columns(built))
        assert "On the arms irrelevant_N the stream has other documents" in text
        assert "relative F1: F1 / F1 of the same method and settings without irrelevant documents" in text
        assert built.first_documents is None and "F1" in [column.heading for column in columns(built)]
        assert all(row.control for row in built.rows if row.arm != "stream")

    def test_arms_with_fewer_seeds_are_compared_by_stream(self, tmp_path):
        board(tmp_path, robustness(tmp_path, "memory", self.LEVELS, seeds=(0, 1)))
        assert rows(tmp_path)["memory on irrelevant_100"].value("relative_f1") == pytest.approx(0.7)

    def test_other_boards_have_neither_the_columns_nor_the_plots(self, tmp_path):
        board(tmp_path, robustness(tmp_path, "memory", {0: (0.5, 0.5)}))
        headings = {column.heading for column in columns(build(tmp_path))}
        assert not {"relative F1", "F1 at start"} & headings
        assert not {*relative_plots.NAMES} & plot_names(tmp_path)
