"""Control arms on a board: their rows, their plots, and the scores and costs that they lack."""

from __future__ import annotations

from dataclasses import replace

import pytest

import reports
from reports import arm_plots, columns, cost_plots, plots, tables, token_weights
from reports.board import build
from tests.reports.records_factory import board, costs, imported, plot_names, record, spec, token_event


def run(runs, arm, f1, method="memory", **options):
    nll = () if arm == "empty" else (2.0,) * 8
    return [record(runs, spec(method, f"test-8-{k}", arm), [[f1]] * 8, nll, **options) for k in range(2)]


@pytest.fixture
def runs(tmp_path):
    levels = {"stream": 0.4, "gold_only": 0.8, "every_4": 0.6, "every_2": 0.7, "shuffled": 0.2, "empty": 0.1}
    ids = [name for arm, f1 in levels.items() for name in run(tmp_path / "runs", arm, f1)]
    for method, f1 in (("closed_book", 0.1), ("gold_in_prompt", 0.9)):
        ids += run(tmp_path / "runs", "stream", f1, method)
    board(tmp_path / "runs", ids)
    return tmp_path / "runs"


def family(runs):
    return next(family for family in arm_plots.families(build(runs)) if family.label == "memory")


def test_contexts_go_from_one_document_to_the_whole_stream(runs):
    assert family(runs).shorter_groups() == []
    assert replace(family(runs), documents=10).shorter_groups() == ["4 documents: the last 2 of a stream alone, too"]
    points = [(documents, row.value("f1")) for documents, row in family(runs).contexts()]
    assert points == [(1, 0.8), (2, 0.7), (4, 0.6), (8, 0.4)]


def test_no_more_documents_are_held_than_the_stream_has(tmp_path):
    board(tmp_path, run(tmp_path, "stream", 0.4) + run(tmp_path, "every_8", 0.4) + run(tmp_path, "every_64", 0.4))
    (memory,) = arm_plots.families(build(tmp_path))
    assert [documents for documents, _ in memory.contexts()] == [8]
    plots.write(build(tmp_path), tmp_path / "out")


def test_arms_of_one_method_form_a_family_and_controls_come_after_methods(runs):
    assert [row.label for row in build(runs).rows] == [
        "memory",
        "gold_in_prompt",
        "memory on gold_only",
        "memory on every_2",
        "memory on every_4",
        "memory on shuffled",
        "closed_book",
        "memory on empty",
    ]
    assert set(family(runs).rows) == {"stream", "gold_only", "every_2", "every_4", "shuffled", "empty"}
    assert {"controls", "f1_by_context"} <= plot_names(runs)


def test_arms_with_plots_of_their_own_stay_out_of_the_comparison_of_methods(runs):
    from reports.score_plots import _main_rows

    assert [row.label for row in _main_rows(build(runs))] == ["memory", "gold_in_prompt", "closed_book"]


def test_every_file_is_written_and_checked(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FORMATS", ("svg",))
    reports.write_all(runs, tmp_path / "out")
    assert reports.stale(runs, tmp_path / "out") == []


def test_arms_are_drawn_without_the_method_itself(tmp_path):
    board(tmp_path, run(tmp_path, "gold_only", 0.8) + run(tmp_path, "every_4", 0.6))
    (memory,) = arm_plots.families(build(tmp_path))
    assert (memory.label, [documents for documents, _ in memory.contexts()]) == ("memory", [1, 4])
    assert {"controls", "f1_by_context"} <= plot_names(tmp_path)
    assert len(plots.write(build(tmp_path), tmp_path / "out")) == 4 * len(plot_names(tmp_path))


def test_a_placebo_alone_is_drawn_among_the_methods(tmp_path):
    board(tmp_path, run(tmp_path, "stream", 0.4) + run(tmp_path, "placebo", 0.1))
    assert not {"controls", "f1_by_context"} & plot_names(tmp_path)


def test_an_imported_row_has_a_family_of_its_own(runs):
    built = build(runs)
    own = next(row for row in built.rows if row.label == "memory")
    theirs = imported(own, scores={**own.scores, "f1": own.scores["em"]})
    both = replace(built, rows=(*built.rows, theirs, imported(built.floor)))
    found = {family.label: family.rows["stream"] for family in arm_plots.families(both)}
    assert found["memory"] is own and found["memory [imported x]"] is theirs
    assert len(arm_plots.arms_of(both, own)) == 6 and arm_plots.arms_of(both, theirs) == [theirs]


def test_the_lines_are_of_imported_controls_if_there_are_no_others(runs):
    built = build(runs)
    controls = [row for row in built.rows if row.method in ("closed_book", "gold_in_prompt")]
    own = [row for row in built.rows if row not in controls]
    for rows in ((*own, *map(imported, controls)), (*map(imported, controls), *built.rows)):
        plot = arm_plots.drawings(replace(built, rows=rows))["f1_by_context"]
        assert {"dashed: closed_book", "dotted: gold_in_prompt"} <= {*plot.notes}


def test_each_config_is_a_family(tmp_path):
    ids = [
        record(tmp_path, spec("memory", "test-2-0", arm, config={"k": k}), [[0.1 * k]] * 2)
        for k in (1, 2)
        for arm in ("stream", "gold_only")
    ]
    board(tmp_path, ids)
    families = arm_plots.families(build(tmp_path))
    assert [family.label for family in families] == ["memory (k=2)", "memory (k=1)"]
    assert [{*family.rows} for family in families] == [{"stream", "gold_only"}] * 2


class TestWithoutDocuments:
    def test_a_row_has_answers_and_no_cost_per_document(self, runs):
        row = next(row for row in build(runs).rows if row.arm == "empty")
        assert {"token_nll", "bits_per_byte"} & row.scores.keys() == set()
        assert {"seconds_per_document", "flops_per_document"} & row.costs.keys() == set()
        assert row.costs["seconds_per_question"] == pytest.approx(3 / 8)

    def test_tables_leave_those_cells_empty(self, runs, tmp_path):
        built = build(runs)
        row = next(row for row in built.rows if row.arm == "empty")
        cells = {column.heading: column.cell(row) for column in columns.columns(built)}
        assert {cells[name] for name in ("token NLL", "s/doc", "FLOP/doc")} == {""}
        assert tables.fields(row, built)["seconds_per_document"] is None
        assert {path.name for path in tables.write(built, tmp_path)} >= {"leaderboard.json", "leaderboard.tex"}

    def test_a_board_of_text_puts_it_last(self, tmp_path):
        rows = (("memory", "empty", ()), ("memory", "stream", [2.0]), ("closed_book", "stream", [3.0]))
        board(tmp_path, [record(tmp_path, spec(method, "test-2-0", arm), nll=nll) for method, arm, nll in rows])
        assert [row.label for row in build(tmp_path).rows] == ["memory", "closed_book", "memory on empty"]
        plots.write(build(tmp_path), tmp_path / "out")

    def test_a_board_without_other_rows_is_drawn(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "FORMATS", ("png",))
        board(tmp_path, run(tmp_path, "empty", 0.1))
        assert plot_names(tmp_path) == {"controls"}
        reports.write_all(tmp_path, tmp_path / "out")
        assert reports.stale(tmp_path, tmp_path / "out") == []


def test_arms_that_reset_at_every_document_have_no_token_weights(tmp_path):
    tokens = [token_event(0, "The~ ferry~ leaves Pier* 4* .", (1, 1, 0, 3, 2, 1))]
    ids = run(tmp_path, "stream", 0.4, tokens=tokens) + run(tmp_path, "gold_only", 0.4, tokens=tokens)
    board(tmp_path, ids)
    assert [weights.row.label for weights in token_weights.row_weights(build(tmp_path))] == ["memory"]


def free(answering):
    base = costs(seconds=0)
    seconds = {"training": 0.0, "fit": 0.0, "answer": answering}
    phases = {name: getattr(base, name).model_copy(update={"seconds": value}) for name, value in seconds.items()}
    return base.model_copy(update={"state_bytes": 0, **phases})


class TestCosts:
    def test_are_drawn_for_methods_in_the_boards_order(self, runs):
        figure = cost_plots.drawings(build(runs))["cost_by_method"].draw()
        first = figure.axes[0]
        assert [label.get_text() for label in first.get_yticklabels()] == ["memory", "gold_in_prompt", "closed_book"]
        labels = [axes.get_xlabel() for axes in figure.axes]
        assert labels == list(cost_plots.LABELS.values())[:4], "and no break-even without a reference"
        assert [(*map(float, line.get_xydata()[0]),) for line in first.lines] == [(2048, 0), (2048, 1), (2048, 2)]

    def test_a_cost_of_nothing_is_drawn_as_a_zero(self, tmp_path):
        ids = [record(tmp_path, spec("closed_book", "test-1-0"), [[0.5]], costs=free(answering=1.0))]
        board(tmp_path, [*ids, record(tmp_path, spec("memory", "test-1-0"), [[0.5]])])
        figure = cost_plots.drawings(build(tmp_path))["cost_by_method"].draw()
        values = [[text.get_text() for text in axes.texts] for axes in figure.axes]
        assert values == [["2 KiB", "0"], ["65", "0"], ["2", "0"], ["3", "1"]]

    def test_the_break_even_is_a_number_or_never_and_empty_for_the_reference(self, tmp_path):
        dear = costs(seconds=1.0)  # a second less for the one document, and twenty more offline
        dear = dear.model_copy(update={"fit": dear.fit.model_copy(update={"seconds": dear.fit.seconds + 20})})
        cheap = costs(seconds=3.0)  # a second more for the one document, and twenty fewer offline
        cheap = cheap.model_copy(update={"training": cheap.training.model_copy(update={"seconds": 40.0})})
        cells = [("uniform", 0, costs()), ("uniform", 1, costs(seconds=9.0)), ("memory", 0, dear), ("lora", 0, costs())]
        cells.append(("cmt", 0, cheap))
        board(
            tmp_path,
            [record(tmp_path, spec(name, "test-1-0", config={"x": x}), [[0.5]], costs=of) for name, x, of in cells],
        )
        built = build(tmp_path)
        first, *_, last = cost_plots.drawings(built)["cost_by_method"].draw().axes
        rows = [label.get_text() for label in first.get_yticklabels()]
        shown = {rows[round(text.xy[1])]: text.get_text() for text in last.texts}
        expected = {"memory": "20", "uniform (x=1)": "never", "lora": "0", "cmt": "until 20"}
        assert shown == expected and "uniform (x=0)" in rows
        (column,) = columns.columns(built, ["break_even_documents"])[1:]
        cells = {row.label: column.cell(row) for row in built.rows}
        assert cells == {**expected, "uniform (x=1)": "", "uniform (x=0)": ""}

    def test_there_is_no_plot_if_all_methods_cost_nothing(self, tmp_path):
        board(tmp_path, [record(tmp_path, spec("closed_book", "test-1-0"), [[0.5]], costs=free(answering=0.0))])
        assert "cost_by_method" not in plot_names(tmp_path)
