"""Token weights on a board: the table's numbers by hand, the document's layout, and when there is anything to draw."""

from __future__ import annotations

import csv

import pytest

import reports
from reports import plots, token_plots, token_weights
from reports.board import build
from tests.reports.records_factory import board, record, spec, weighed

TEXT = "The~ ferry~ leaves Pier* 4* ."
FACTS_MORE, ALIKE = (1, 1, 0, 3, 2, 1), (2, 2, 2, 2, 2, 2)


def weighing(runs, weights_by_stream, method="camels", pos=None):
    """Runs of a method on streams of one document each, with these weights."""
    return [
        record(runs, spec(method, f"test-1-{k}"), [[0.5]], [2.0], tokens=[weighed(0, TEXT, weights, pos)])
        for k, weights in enumerate(weights_by_stream)
    ]


def unweighed(runs):
    return [record(runs, spec("uniform", f"test-1-{k}"), [[0.4]], [2.0]) for k in range(2)]


def found(runs):
    return token_weights.weighings(build(runs), runs)


class TestNumbers:
    def test_are_means_over_streams(self, tmp_path):
        board(tmp_path, [*weighing(tmp_path, (FACTS_MORE, ALIKE)), *unweighed(tmp_path)])
        (camels,) = found(tmp_path)
        assert camels.auc().mean == pytest.approx((1.0 + 0.5) / 2)
        assert camels.auc().se == pytest.approx(0.25)  # of two values: half their distance
        assert camels.mean().mean == pytest.approx((8 / 6 + 2) / 2)
        assert camels.relative("fact").mean == pytest.approx((2.5 / (8 / 6) + 1) / 2)
        assert camels.relative("name").mean == pytest.approx((1 / (8 / 6) + 1) / 2)
        assert camels.relative("filler").mean == pytest.approx((0.5 / (8 / 6) + 1) / 2)
        assert camels.share("fact").mean == pytest.approx((5 / 8 + 1 / 3) / 2)
        assert camels.frequency("fact") == pytest.approx(1 / 3)

    def test_of_parts_of_speech_where_all_documents_have_them(self, tmp_path):
        tags = ("DET", "NOUN", "VERB", "NOUN", "NUM", "PUNCT")
        board(tmp_path, [*weighing(tmp_path, (FACTS_MORE,), pos=tags), *weighing(tmp_path, (ALIKE,), "salient_spans")])
        by_method = {one.row.method: one for one in found(tmp_path)}
        assert by_method["camels"].relative("NOUN").mean == pytest.approx(2 / (8 / 6))
        assert by_method["salient_spans"].relative("NOUN") is None

    def test_of_nothing_but_zeros_there_is_no_ratio(self, tmp_path):
        board(tmp_path, weighing(tmp_path, ((0,) * 6,)))
        (camels,) = found(tmp_path)
        assert (camels.relative("fact"), camels.share("fact"), camels.auc().mean) == (None, None, 0.5)
        assert len(plots.write(build(tmp_path), tmp_path, tmp_path / "out")) == len(
            plots.due(build(tmp_path), tmp_path)
        )

    def test_without_facts_there_is_no_auc(self, tmp_path):
        tokens = [weighed(0, "Nobody asks about~ this", (1, 2, 3, 4))]
        board(tmp_path, [record(tmp_path, spec("camels", "test-1-0"), [[0.5]], tokens=tokens)])
        (page, _) = token_weights.write(build(tmp_path), tmp_path, tmp_path / "out")
        heading = next(line for line in page.read_text().splitlines() if line.startswith("|"))
        assert heading == "| method | name | filler | mean weight |"

    def test_diverged_runs_do_not_count(self, tmp_path):
        tokens = [weighed(0, TEXT, FACTS_MORE)]
        bad = record(tmp_path, spec("camels", "test-1-0"), status="diverged", tokens=tokens)
        board(tmp_path, [bad, *unweighed(tmp_path)])
        assert found(tmp_path) == []


class TestTable:
    def test_has_a_row_for_each_method_that_weighs(self, tmp_path):
        board(tmp_path, [*weighing(tmp_path, (FACTS_MORE, ALIKE)), *unweighed(tmp_path)])
        page, sheet = token_weights.write(build(tmp_path), tmp_path, tmp_path / "out")
        rows = [line for line in page.read_text().splitlines() if line.startswith("| camels | 0.750 ± 0.250 |")]
        assert len(rows) == 1 and "uniform" not in page.read_text()
        assert "SE_stream over 2 streams" in page.read_text() and "33.3% of the tokens" in page.read_text()
        with sheet.open() as file:
            (row,) = csv.DictReader(file)
        assert (row["label"], row["streams"], row["tokens"], row["auc"]) == ("camels", "2", "12", "0.75")

    def test_one_stream_has_no_error(self, tmp_path):
        board(tmp_path, weighing(tmp_path, (FACTS_MORE,)))
        page, sheet = token_weights.write(build(tmp_path), tmp_path, tmp_path / "out")
        assert "1.000 ± n/a" in page.read_text() and "One stream leaves no SE_stream" in page.read_text()
        assert next(csv.DictReader(sheet.open()))["auc_se_stream"] == ""

    def test_goes_when_nothing_weighs_any_more(self, tmp_path):
        out = tmp_path / "out"
        board(tmp_path, weighing(tmp_path, (FACTS_MORE,)))
        reports.write_all(tmp_path, out)
        assert {*token_weights.FILES, "token_weights.png"} <= {path.name for path in out.iterdir()}
        board(tmp_path, unweighed(tmp_path))
        assert set(token_weights.FILES) | {"token_weights.png"} <= set(reports.stale(tmp_path, out))
        reports.write_all(tmp_path, out)
        assert reports.stale(tmp_path, out) == []
        assert not [path for path in out.iterdir() if path.name.startswith("token_weight")]

    def test_check_notices_an_edited_table_and_a_missing_plot(self, tmp_path):
        out = tmp_path / "out"
        board(tmp_path, weighing(tmp_path, (FACTS_MORE, ALIKE)))
        reports.write_all(tmp_path, out)
        assert reports.stale(tmp_path, out) == []
        (out / "token_weights.md").write_text("edited")
        (out / "token_weight_histogram.pdf").unlink()
        assert reports.stale(tmp_path, out) == ["token_weights.md", "token_weight_histogram.pdf"]


class TestDocument:
    def test_lines_break_before_words_and_tokens_keep_their_numbers(self):
        placed = token_plots.lay_out(("The", " fer", "ry", "\nleft", "."), columns=10)
        assert placed == [(0, 0, 0, "The"), (1, 0, 3, " fer"), (2, 0, 7, "ry"), (3, 1, 0, "left"), (4, 1, 4, ".")]

    def test_what_does_not_fit_is_left_out(self):
        assert [piece.line for piece in token_plots.lay_out((" one",) * 9, columns=8, lines=2)] == [0, 0, 1, 1]

    @pytest.mark.parametrize("pieces", [("",), (" ",), ("x" * 300,), ("a ", "b ", "", " c")])
    def test_every_document_has_a_layout(self, pieces):
        placed = token_plots.lay_out(pieces)
        assert [piece.token for piece in placed] == list(range(len(pieces)))

    def test_shown_is_the_shortest_with_a_fact_that_most_weigh(self, tmp_path):
        long, short, other = weighed(0, TEXT * 2, ALIKE * 2), weighed(1, TEXT, ALIKE), weighed(2, "No~ fact", (1, 2))
        ids = [
            record(tmp_path, spec("camels", "test-3-0"), [[0.5]], tokens=[long, short, other]),
            record(tmp_path, spec("salient_spans", "test-3-0"), [[0.4]], tokens=[long, other, short]),
            record(tmp_path, spec("tfidf", "test-3-0"), [[0.3]], tokens=[weighed(3, "Pier*", (1,))]),
        ]
        board(tmp_path, ids)
        shown = token_plots.shown_document(found(tmp_path))
        assert {label: event.position for label, event in shown.items()} == {"camels": 1, "salient_spans": 1}

    def test_any_character_can_be_drawn(self, tmp_path, recwarn):
        tokens = [weighed(0, "$5* and_ 漢字 🦦 \\frac{ ~", (1, -1, 2, 0, 0.5, 3))]
        board(tmp_path, [record(tmp_path, spec("camels", "test-1-0"), [[0.5]], tokens=tokens)])
        plots.write(build(tmp_path), tmp_path, tmp_path / "out")
        assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_board_on_which_nothing_weighs_has_no_such_plots(tmp_path):
    board(tmp_path, unweighed(tmp_path))
    assert not {name for name in plots.due(build(tmp_path), tmp_path) if name.startswith("token_weight")}
