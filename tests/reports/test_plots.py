"""Plots: the conditions for each, the values of curves, and the same bytes for the same records."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

import reports
from bench.records.store import read_board, read_run
from reports import (
    change_plots,
    format_plots,
    gradient_plots,
    month_plots,
    pair_plots,
    plots,
    query_plots,
    relative_plots,
    score_plots,
    style,
)
from reports.board import build
from reports.score_plots import Value
from reports.spread import Run
from reports.statistics import mean_over_streams, run_items
from tests.reports.records_factory import board, imported, pictures, realistic, record, spec
from tests.reports.test_board import write_segments


def write(runs, out):
    """Names of the plots written under ``out``."""
    return {path.stem for path in plots.write(build(runs), out)}


def test_the_same_records_give_the_same_bytes(tmp_path):
    realistic(tmp_path / "runs", streams=2, documents=6, questions=1)
    modules = (
        change_plots,
        format_plots,
        gradient_plots,
        month_plots,
        pair_plots,
        query_plots,
        relative_plots,
    )  # they have tests of their own
    special = {"bits_per_byte_by_cost", *(name for module in modules for name in module.NAMES)}
    for name in ("a", "b"):
        assert write(tmp_path / "runs", tmp_path / name) == set(plots.NAMES) - special
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    drawn = pictures(tmp_path / "runs")
    assert set(written) == drawn | {f"{name.partition('.')[0]}.txt" for name in drawn}
    for name in written:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).stat().st_size > (1000 if name in drawn else 100)


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
    assert len(pictures(runs)) == len(expected) * len(plots.FORMATS)


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
    levels = {"a": (0.5, 0.6, 0.7), "b": (0.1, 0.201, 0.3), "closed_book": (0.0, 0.0, 0.0)}
    names = [(method, f"test-2-{k}", level) for method, of in levels.items() for k, level in enumerate(of)]
    board(tmp_path, [record(tmp_path, spec(method, name), [[level]] * 2) for method, name, level in names])
    axes = score_plots.drawings(build(tmp_path))["f1_by_method"].draw().axes[0]
    weights = {label.get_text(): label.get_fontweight() for label in axes.get_yticklabels()}
    assert weights == {"a": "bold", "b": "normal", "closed_book": "normal"}


def test_the_line_of_closed_book_is_ones_own_although_an_imported_row_is_above(tmp_path):
    board(tmp_path, [record(tmp_path, spec(name, "test-1-0"), [[f1]]) for name, f1 in (("closed_book", 0.1), ("a", 1))])
    built = build(tmp_path)
    (higher,) = [imported(row, scores=of.scores) for of in built.rows for row in built.rows if row is built.floor != of]
    axes = score_plots.drawings(replace(built, rows=(higher, *built.rows)))["f1_by_method"].draw().axes[0]
    (line,) = [line for line in axes.lines if len({*line.get_xdata()}) == 1 and len(line.get_xdata()) == 2]
    assert line.get_xdata()[0] == pytest.approx(0.1)


def test_error_bars_are_95_percent_intervals(tmp_path):
    board(
        tmp_path, [record(tmp_path, spec("a", f"test-2-{k}"), [[level]] * 2) for k, level in enumerate((0.4, 0.5, 0.6))]
    )
    axes = score_plots.drawings(build(tmp_path))["f1_by_method"].draw().axes[0]
    (segment,) = axes.collections[0].get_segments()
    half = 4.302653 * 0.1 / 3**0.5  # t table, 2 degrees, 97.5 %
    assert segment[:, 0] == pytest.approx((0.5 - half, 0.5 + half))


class TestCurve:
    def test_parts_are_ratios_of_sums_and_runs_are_in_those_in_which_they_have_values(self):
        places = (Fraction(0, 30), Fraction(1, 30), Fraction(25, 30))
        values = [Value(Run("s"), place, *of) for place, of in zip(places, ((6, 2), (2, 2), (5, 1)), strict=True)]
        assert score_plots.binned(values, 10) == [{Run("s"): 2.0}, *[{}] * 7, {Run("s"): 5.0}, {}]

    def test_a_short_stream_has_a_part_for_each_document(self, tmp_path):
        figure = text_board(tmp_path, {"uniform": [3.0, 2.8, 2.6]})["token_nll_by_position"].draw()
        assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 1.5, 2.5]

    def test_points_are_means_over_streams_at_the_middle_of_each_part(self):
        curve = score_plots.Curve("x", [{Run("a"): 1.0, Run("b"): 2.0}, {}], 20)
        ((x, estimate),) = curve.points()
        assert (x, estimate.mean, estimate.se) == (5.0, 1.5, pytest.approx(0.5))

    def test_differences_are_taken_within_streams(self):
        a = score_plots.Curve("a", [{Run("s", 0): 1.0, Run("s", 1): 1.2, Run("t"): 5.0}, {Run("s"): 2.0}], 2)
        b = score_plots.Curve("b", [{Run("s"): 1.5}, {}], 2)
        assert a.below(b).parts == [{Run("s", 0): pytest.approx(0.5), Run("s", 1): pytest.approx(0.3)}, {}]

    def test_errors_include_the_seeds(self):
        part = {Run(stream, seed): value for stream in "ab" for seed, value in enumerate((0.2, 0.6))}
        ((_, alike),) = score_plots.Curve("x", [{Run("a"): 0.4, Run("b"): 0.4}], 1).points()
        ((_, estimate),) = score_plots.Curve("x", [part], 1).points()
        assert alike.se == 0 and estimate == mean_over_streams(run_items(part)) and estimate.se > 0.1


def text_board(runs, levels):
    """Boards of two streams with the NLL per token of each method at each document."""
    cells = [(method, k, nll) for method, nll in levels.items() for k in range(2)]
    board(
        runs, [record(runs, spec(method, f"test-4-{k}"), nll=[v + 0.01 * k for v in nll]) for method, k, nll in cells]
    )
    return score_plots.drawings(build(runs))


def cut_board(runs, losses):
    """A board of one stream of two documents, with the NLL of each segment of each by method, of one token each."""
    cells = {method: spec(method, "test-2-0", segment_tokens=1) for method in losses}
    for method, documents in losses.items():
        sizes = [(i, j, 1, 4, nll) for i, document in enumerate(documents) for j, nll in enumerate(document)]
        write_segments(runs, cells[method], sizes)
    board(runs, [cell.id for cell in cells.values()])
    return score_plots.drawings(build(runs))


def lines_of(figure, title):
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return [[(pytest.approx(x), pytest.approx(y)) for x, y in line.get_xydata()] for line in panel.lines]


class TestCutText:
    def test_a_segment_is_at_its_share_of_its_document_however_a_method_cuts(self, tmp_path):
        """Ten parts of two documents: halves of a document begin in parts 0, 2, 5 and 7 (of 0 to 9), or 0.1, 0.5 ..."""
        plots = cut_board(tmp_path, {"closed_book": [[4.0, 3.0], [2.0, 2.0]], "mac": [[3.0, 3.0, 1.0, 1.0], [1.0]]})
        floor, method = lines_of(plots["token_nll_by_position"].draw(), "mac")
        assert floor == [(0.1, 4.0), (0.5, 3.0), (1.1, 2.0), (1.5, 2.0)]
        assert method == [(0.1, 3.0), (0.3, 3.0), (0.5, 1.0), (0.7, 1.0), (1.1, 1.0)]
        _, gain = lines_of(plots["token_nll_gain_by_position"].draw(), "mac")
        assert gain == [(0.1, 1.0), (0.5, 2.0), (1.1, 1.0)]

    def test_panels_show_whole_streams_whatever_streams_a_method_lacks(self, tmp_path):
        lengths = {"test-4-0": 4, "test-4-1": 2}
        cells = [(spec(method, name), n) for method in ("a", "b") for name, n in lengths.items()]
        ids = [record(tmp_path, cell, nll=[2.0] * n) for cell, n in cells[:2] + cells[3:]]
        board(tmp_path, [*ids, record(tmp_path, cells[2][0], status="diverged")])
        figure = score_plots.drawings(build(tmp_path))["token_nll_by_position"].draw()
        assert [axes.get_xlim() for axes in figure.axes] == [(0, 4)] * 2


LEVELS = {"closed_book": [3.0] * 4, "uniform": [3.0, 2.8, 2.6, 2.4], "lora": [3.0, 2.9, 2.8, 2.7]}


class TestGain:
    def test_points_up_where_a_method_predicts_better_than_the_unadapted_model(self, tmp_path):
        figure = text_board(tmp_path, LEVELS)["token_nll_gain_by_position"].draw()
        gain = next(axes for axes in figure.axes if axes.get_title(loc="left") == "uniform").lines[1]
        assert list(gain.get_ydata()) == pytest.approx([0.0, 0.2, 0.4, 0.6])
        assert figure.get_supylabel().startswith("NLL gain over closed_book")

    def test_is_drawn_with_an_imported_floor_alone(self, tmp_path):
        text_board(tmp_path, LEVELS)
        built = build(tmp_path)
        rows = tuple(imported(row) if row is built.floor else row for row in built.rows)
        drawn = score_plots.drawings(replace(built, rows=rows))
        assert "token_nll_gain_by_position" in drawn
        assert "dashed: closed_book, the unadapted model" in drawn["token_nll_by_position"].notes

    @pytest.mark.parametrize("name", ["token_nll_by_position", "token_nll_gain_by_position"])
    def test_a_method_that_explodes_is_cut_and_flattens_no_other_curve(self, tmp_path, name):
        figure = text_board(tmp_path, {**LEVELS, "broken": [3.0, 2.9, 1e4, 1e7]})[name].draw()
        assert "triangles: beyond the axis" in figure.get_supxlabel().replace("\N{NO-BREAK SPACE}", " ")
        low, high = figure.axes[0].get_ylim()
        assert high - low < 3
        marks = {
            axes.get_title(loc="left"): [
                x for line in axes.lines if line.get_marker() in "^v" for x in line.get_xdata()
            ]
            for axes in figure.axes
            if axes.axison
        }
        assert marks == {"uniform": [], "lora": [], "broken": [2.5, 3.5]}

    def test_without_an_explosion_nothing_is_cut(self, tmp_path):
        figure = text_board(tmp_path, LEVELS)["token_nll_by_position"].draw()
        assert "triangles" not in figure.get_supxlabel()
        low, high = figure.axes[0].get_ylim()
        assert low < 2.4 and high > 3.01


def test_each_panel_shows_the_other_methods_too(tmp_path):
    figure = text_board(tmp_path, LEVELS)["token_nll_by_position"].draw()
    (keys,) = figure.legends
    assert [text.get_text() for text in keys.get_texts()] == ["closed_book", "the other panels"]
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "lora")
    curves = [list(line.get_ydata()) for line in panel.lines if len(line.get_xdata()) == 4]
    assert curves == [pytest.approx([v + 0.005 for v in LEVELS[name]]) for name in ("closed_book", "lora", "uniform")]


def test_bars_have_their_values(tmp_path):
    board(tmp_path, [record(tmp_path, spec(method, "test-1-0"), [[f1]]) for method, f1 in (("a", 0.75), ("b", 0.1))])
    axes = score_plots.drawings(build(tmp_path))["f1_by_method"].draw().axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.750", "0.100"]


def test_a_curve_over_one_stream_of_several_has_no_band_and_its_caption_says_so(tmp_path):
    ids = [record(tmp_path, spec("a", f"test-2-{k}"), [[0.4 + 0.1 * k]] * 2) for k in range(2)]
    ids += [
        record(tmp_path, spec("b", f"test-2-{k}"), [[0.5]] * 2, status="diverged" if k else "complete")
        for k in range(2)
    ]
    board(tmp_path, ids)
    plot = score_plots.drawings(build(tmp_path))["f1_by_position"]
    bands = {
        axes.get_title("left").replace("\n", " "): sum(len(path.vertices) for path in axes.collections[0].get_paths())
        for axes in plot.draw().axes
    }
    assert bands["a"] > 0 and bands["b [diverged on 1 of 2]"] == 0
    assert "without a band: one stream" in plot.notes


class TestCaptions:
    def test_say_what_is_shown_and_what_marks_mean(self, tmp_path):
        realistic(tmp_path / "runs", streams=2, documents=6, questions=1)
        plots.write_captions(plots.drawings(build(tmp_path / "runs")), tmp_path)
        caption, note = (tmp_path / "f1_by_method.txt").read_text().split("\n\n")
        assert caption == "Answer F1 of every method."
        for part in (
            "Bars: 95 % interval over 2 streams.",
            "Dashed: closed_book, the unadapted model.",
            "Dataset: world. Base model: tiny. 2 streams of test-6.",
        ):
            assert part in note.replace("\n", " ")

    def test_an_edited_caption_is_noticed_and_one_without_its_plot_removed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "FORMATS", ("svg",))
        runs, out = tmp_path / "runs", tmp_path / "out"
        board(runs, [record(runs, spec("uniform", "test-2-0"), [[0.5], [0.5]])])
        reports.write_all(runs, out)
        (out / "f1_by_method.txt").write_text("edited")
        assert reports.stale(runs, out) == ["f1_by_method.txt"]
        reports.write_all(runs, out)
        board(runs, [record(runs, spec("uniform", "test-3-0"), nll=[2.0, 3.0, 3.0])])
        reports.write_all(runs, out)
        texts = {path.stem for path in out.glob("*.txt")}
        assert texts >= {path.stem for path in out.glob("*.svg")} and "f1_by_method" not in texts


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("uniform (learn=embeddings)", ["uniform", "(learn=embeddings)"]),
        ("memory_of_amortized_contexts", ["memory_of_amortized_", "contexts"]),
        ("SQuAD, Mistral-7B-Instruct-v0.2", ["SQuAD,", "Mistral-7B-Instruct-v0.2"]),
        ("StreamingQA, Mistral-7B-Instruct-v0.2-long", ["StreamingQA, Mistral-7B-", "Instruct-v0.2-long"]),
        ("cmt", ["cmt"]),
        ("x" * 30, ["x" * 30]),
    ],
)
def test_long_names_break_at_spaces_and_after_underscores_and_hyphens(label, lines):
    assert style.wrap(label, 24).split("\n") == lines
