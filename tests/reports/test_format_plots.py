"""The plot of the form of answers and the columns about it: three documents, computed by hand."""

from __future__ import annotations

import pytest

from bench.answering.metrics import VERSIONS
from reports import format_plots
from reports.board import build
from reports.columns import caption, columns
from reports.probes import curves_of
from reports.tables import DISPENSABLE
from tests.reports.records_factory import board, plot_names, record, spec

QUESTIONS = ("0.0", "1.0", "2.0")


def probed(runs, method="uniform", ended=QUESTIONS[:1], arm="stream", probes=(0.3, 1.0), first=1.0, last=(1, 0.5, 0)):
    """Three documents, a question each: the first, whose answer ends, is asked after its document, and all at last."""
    cell = spec(method, "test-3-0", arm, probes=probes)
    early = {0.3: ((first,),)} if len(probes) > 1 else {}
    return record(runs, cell, [(float(value),) for value in last], early=early, ended={0.3: QUESTIONS, 1.0: ended})


def shown(runs, heading):
    """The cells of a column, or None if there is none."""
    page = build(runs)
    return next(
        ([column.cell(row) for row in page.rows] for column in columns(page) if column.heading == heading), None
    )


def test_points_are_the_scores_at_each_probe(tmp_path):
    board(tmp_path, [probed(tmp_path)])
    [row] = build(tmp_path).rows
    assert VERSIONS["em_prefix"]
    points = curves_of(row, ("ended", "f1"))
    assert {name: [(seen, estimate.mean) for seen, estimate in of] for name, of in points.items()} == {
        "ended": [(1, 1.0), (3, pytest.approx(1 / 3))],
        "f1": [(1, 1.0), (3, 0.5)],
    }


def test_the_plot_has_two_panels_for_each_method(tmp_path):
    ids = [probed(tmp_path, method) for method in ("closed_book", "uniform", "gold_in_prompt")]
    board(tmp_path, [*ids, probed(tmp_path, arm="placebo")])
    assert "format_drift" in plot_names(tmp_path)
    figure = format_plots.drawings(build(tmp_path))["format_drift"].draw()
    used = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in used]
    assert sorted(filter(None, titles)) == ["closed_book", "uniform"] and len(used) == 4
    assert {axes.get_ylim() for axes, name in zip(used, titles, strict=True) if name} == {(-0.1, 1.1)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(format_plots.LABELS.values())


def test_scores_share_an_axis_and_methods_whose_answers_all_end_are_left_out(tmp_path):
    board(tmp_path, [probed(tmp_path), probed(tmp_path, "lora"), probed(tmp_path, "bm25", ended=QUESTIONS)])
    plot = format_plots.drawings(build(tmp_path))["format_drift"]
    figure = plot.draw()
    used = [axes for axes in figure.axes if axes.axison]
    assert len({axes.get_ylim() for axes in used if not axes.get_title(loc="left")}) == 1 and len(used) == 4
    assert "left out: 1 method whose" in figure.get_supxlabel().replace("\n", " ").replace("\u00a0", " ")
    assert "left out, since all their answers end by themselves: bm25" in plot.notes


def test_no_panel_is_cut_off_by_the_axis_of_the_first(tmp_path):
    low, high = (
        probed(tmp_path, first=0.1, last=(0.4, 0.4, 0.4)),
        probed(tmp_path, "lora", first=0.9, last=(0, 0.1, 0.2)),
    )
    board(tmp_path, [low, high])
    axes = format_plots.drawings(build(tmp_path))["format_drift"].draw().axes
    heights = [y for panel in axes for y in (line.get_ydata() for line in panel.lines) for y in y]
    scores = [panel for panel in axes if panel.axison and not panel.get_title(loc="left")]
    assert max(heights) == 1.0 and {panel.get_ylim() for panel in scores} == {scores[0].get_ylim()}
    assert all(max(line.get_ydata()) <= panel.get_ylim()[1] for panel in scores for line in panel.lines)


def test_without_a_change_or_with_one_probe_there_is_no_plot(tmp_path):
    board(tmp_path, [probed(tmp_path, ended=QUESTIONS)])
    assert "format_drift" not in plot_names(tmp_path)
    board(tmp_path, [probed(tmp_path, probes=(1.0,))])
    assert "format_drift" not in plot_names(tmp_path)


def test_the_form_has_columns_where_some_answer_runs_on(tmp_path):
    board(tmp_path, [probed(tmp_path), probed(tmp_path, "closed_book", ended=QUESTIONS)])
    assert shown(tmp_path, "ended") == ["0.333", "1.000"]
    assert shown(tmp_path, "answer NLL") == ["0.500", "0.500"]
    page = build(tmp_path)
    assert "ended: share of answers that the model ends itself" in caption(page, columns(page))
    headings = [column.heading for column in columns(page)]
    assert headings.index("EM") < headings.index("ended") < headings.index("prefix EM")
    assert {"ended", "prefix EM", "answer NLL"} <= set(DISPENSABLE)


@pytest.mark.parametrize("ended", [None, QUESTIONS])
def test_where_all_answers_end_it_has_none(tmp_path, ended):
    cell = spec("uniform", "test-3-0")
    board(tmp_path, [record(tmp_path, cell, ((1.0,), (0.5,), (0.0,)), ended=ended and {1.0: ended})])
    assert shown(tmp_path, "ended") is shown(tmp_path, "prefix EM") is shown(tmp_path, "answer NLL") is None
