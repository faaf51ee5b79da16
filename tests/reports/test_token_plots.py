"""Token weights: numbers computed by hand, the layout of the document, and the conditions for table and plots."""

from __future__ import annotations

import csv
import itertools

import pytest

import reports
from reports import plots, token_plots, token_weights
from reports.board import build
from tests.reports.records_factory import board, pictures, plot_names, record, spec, token_event

TEXT = "The~ ferry~ leaves Pier* 4* ."
FACTS_HIGH, EQUAL = (1, 1, 0, 3, 2, 1), (2, 2, 2, 2, 2, 2)


def weighted_runs(runs, weights_by_stream, method="camels", pos=None):
    """Runs of a method on streams of one document each, with these weights."""
    return [
        record(runs, spec(method, f"test-1-{k}"), [[0.5]], [2.0], tokens=[token_event(0, TEXT, weights, pos)])
        for k, weights in enumerate(weights_by_stream)
    ]


def unweighted_runs(runs):
    return [record(runs, spec("uniform", f"test-1-{k}"), [[0.4]], [2.0]) for k in range(2)]


def row_weights(runs):
    return token_weights.row_weights(build(runs))


class TestNumbers:
    def test_are_means_over_streams(self, tmp_path):
        board(tmp_path, [*weighted_runs(tmp_path, (FACTS_HIGH, EQUAL)), *unweighted_runs(tmp_path)])
        (camels,) = row_weights(tmp_path)
        assert camels.auc().mean == pytest.approx((1.0 + 0.5) / 2)
        assert camels.auc().se == pytest.approx(0.25)  # for two values, half their distance
        assert camels.mean().mean == pytest.approx((8 / 6 + 2) / 2)
        assert camels.relative("fact").mean == pytest.approx((2.5 / (8 / 6) + 1) / 2)
        assert camels.relative("name").mean == pytest.approx((1 / (8 / 6) + 1) / 2)
        assert camels.relative("filler").mean == pytest.approx((0.5 / (8 / 6) + 1) / 2)
        assert camels.share("fact").mean == pytest.approx((5 / 8 + 1 / 3) / 2)
        assert camels.frequency("fact") == pytest.approx(1 / 3)

    def test_seeds_are_averaged_and_are_in_the_error(self, tmp_path):
        """AUC is 1 with the first seed on both streams, and 0.5 with the second."""
        ids = [
            record(tmp_path, spec("camels", f"test-1-{k}", seed=seed), [[0.5]], tokens=[token_event(0, TEXT, weights)])
            for k in range(2)
            for seed, weights in enumerate((FACTS_HIGH, EQUAL))
        ]
        board(tmp_path, ids)
        (camels,) = row_weights(tmp_path)
        assert (camels.auc().mean, camels.auc().se) == (0.75, pytest.approx(0.25)), "streams agree, seeds do not"
        markdown, table = token_weights.write(build(tmp_path), tmp_path / "out")
        assert "the first 1 documents of each test-1 stream" in markdown.read_text()
        assert "Errors include the seeds" in markdown.read_text()
        (row,) = csv.DictReader(table.open())
        assert (row["streams"], row["tokens"]) == ("2", "12"), "two documents of six tokens"

    def test_include_parts_of_speech_if_all_documents_have_them(self, tmp_path):
        tags = ("DET", "NOUN", "VERB", "NOUN", "NUM", "PUNCT")
        board(
            tmp_path,
            [*weighted_runs(tmp_path, (FACTS_HIGH,), pos=tags), *weighted_runs(tmp_path, (EQUAL,), "salient_spans")],
        )
        by_method = {weights.row.method: weights for weights in row_weights(tmp_path)}
        assert by_method["camels"].relative("NOUN").mean == pytest.approx(2 / (8 / 6))
        assert by_method["salient_spans"].relative("NOUN") is None

    def test_zero_weights_have_no_ratios(self, tmp_path):
        board(tmp_path, weighted_runs(tmp_path, ((0,) * 6,)))
        (camels,) = row_weights(tmp_path)
        assert (camels.relative("fact"), camels.share("fact"), camels.auc().mean) == (None, None, 0.5)
        written = {path.name for path in plots.write(build(tmp_path), tmp_path / "out")}
        assert written > pictures(tmp_path) and "token_weights_by_class.png" in written

    def test_without_facts_there_is_no_auc(self, tmp_path):
        tokens = [token_event(0, "Nobody asks about~ this", (1, 2, 3, 4))]
        board(tmp_path, [record(tmp_path, spec("camels", "test-1-0"), [[0.5]], tokens=tokens)])
        (markdown, _) = token_weights.write(build(tmp_path), tmp_path / "out")
        heading = next(line for line in markdown.read_text().splitlines() if line.startswith("|"))
        assert heading == "| method | name | filler | mean weight |"

    def test_exclude_diverged_runs(self, tmp_path):
        tokens = [token_event(0, TEXT, FACTS_HIGH)]
        diverged = record(tmp_path, spec("camels", "test-1-0"), status="diverged", tokens=tokens)
        board(tmp_path, [diverged, *unweighted_runs(tmp_path)])
        assert row_weights(tmp_path) == []


class TestTable:
    def test_has_a_row_for_each_method_with_weights(self, tmp_path):
        board(tmp_path, [*weighted_runs(tmp_path, (FACTS_HIGH, EQUAL)), *unweighted_runs(tmp_path)])
        markdown, table = token_weights.write(build(tmp_path), tmp_path / "out")
        rows = [line for line in markdown.read_text().splitlines() if line.startswith("| camels | 0.750 ± 3.177 |")]
        assert len(rows) == 1 and "uniform" not in markdown.read_text()
        assert (
            "95 % t interval over 2 streams" in markdown.read_text() and "33.3% of the tokens" in markdown.read_text()
        )
        with table.open() as file:
            (row,) = csv.DictReader(file)
        assert (row["label"], row["streams"], row["tokens"], row["auc"]) == ("camels", "2", "12", "0.75")

    def test_one_stream_has_no_error(self, tmp_path):
        board(tmp_path, weighted_runs(tmp_path, (FACTS_HIGH,)))
        markdown, table = token_weights.write(build(tmp_path), tmp_path / "out")
        assert "1.000 ± n/a" in markdown.read_text() and "One stream: no ±" in markdown.read_text()
        assert next(csv.DictReader(table.open()))["auc_se_stream"] == ""

    def test_is_removed_when_no_method_has_weights_any_longer(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "FORMATS", ("svg",))
        out = tmp_path / "out"
        board(tmp_path, weighted_runs(tmp_path, (FACTS_HIGH,)))
        reports.write_all(tmp_path, out)
        assert {*token_weights.FILES, "token_weights.svg"} <= {path.name for path in out.iterdir()}
        board(tmp_path, unweighted_runs(tmp_path))
        assert set(token_weights.FILES) | {"token_weights.svg"} <= set(reports.stale(tmp_path, out))
        reports.write_all(tmp_path, out)
        assert reports.stale(tmp_path, out) == []
        assert not [path for path in out.iterdir() if path.name.startswith("token_weight")]

    def test_check_notices_an_edited_table_and_a_missing_plot(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plots, "FORMATS", ("svg",))
        out = tmp_path / "out"
        board(tmp_path, weighted_runs(tmp_path, (FACTS_HIGH, EQUAL)))
        reports.write_all(tmp_path, out)
        assert reports.stale(tmp_path, out) == []
        (out / "token_weights.md").write_text("edited")
        (out / "token_weight_histogram.svg").unlink()
        assert reports.stale(tmp_path, out) == ["token_weights.md", "token_weight_histogram.svg"]


class TestDocument:
    def test_lines_break_before_words_and_tokens_keep_their_indices(self):
        layout = token_plots.lay_out(("The", " fer", "ry", "\nleft", "."), columns=10)
        assert layout == [(0, 0, 0, "The"), (1, 0, 3, " fer"), (2, 0, 7, "ry"), (3, 1, 0, "left"), (4, 1, 4, ".")]

    def test_words_that_do_not_fit_are_left_out(self):
        assert [piece.line for piece in token_plots.lay_out((" one",) * 9, columns=8, lines=2)] == [0, 0, 1, 1]

    @pytest.mark.parametrize("pieces", [("",), (" ",), ("x" * 300,), ("a ", "b ", "", " c")])
    def test_every_document_has_a_layout(self, pieces):
        layout = token_plots.lay_out(pieces)
        assert [piece.token for piece in layout] == list(range(len(pieces)))

    def test_is_the_shortest_with_a_fact_of_those_most_methods_weight(self, tmp_path):
        long, short, other = (
            token_event(0, f"{TEXT} {TEXT}", EQUAL * 2),
            token_event(1, TEXT, EQUAL),
            token_event(2, "No~ fact", (1, 2)),
        )
        ids = [
            record(tmp_path, spec("camels", "test-3-0"), [[0.5]], tokens=[long, short, other]),
            record(tmp_path, spec("salient_spans", "test-3-0"), [[0.4]], tokens=[long, other, short]),
            record(tmp_path, spec("tfidf", "test-3-0"), [[0.3]], tokens=[token_event(3, "Pier*", (1,))]),
        ]
        board(tmp_path, ids)
        events = token_plots.select_document(row_weights(tmp_path))
        assert {label: event.position for label, event in events.items()} == {"camels": 1, "salient_spans": 1}

    def test_any_character_can_be_drawn(self, tmp_path, recwarn):
        tokens = [token_event(0, "$5* and_ 漢字 🦦 \\frac{ ~", (1, -1, 2, 0, 0.5, 3))]
        board(tmp_path, [record(tmp_path, spec("camels", "test-1-0"), [[0.5]], tokens=tokens)])
        plots.write(build(tmp_path), tmp_path / "out")
        assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_the_histogram_compares_methods_and_classes_whatever_their_weights_and_sizes(tmp_path):
    ids = weighted_runs(tmp_path, (FACTS_HIGH,)) + weighted_runs(tmp_path, ([50 * w for w in FACTS_HIGH],), "tfidf")
    board(tmp_path, ids)
    figure = token_plots.drawings(build(tmp_path))["token_weight_histogram"].draw()
    panels = [[patch.get_xy() for patch in axes.patches] for axes in figure.axes]
    assert panels[0] == [pytest.approx(outline) for outline in panels[1]], "weights are in units of the method's mean"
    for outline in panels[0]:
        steps = list(zip(outline[:, 0], outline[:, 1], strict=True))[1::2]
        area = sum(height * (end - start) for (start, height), (end, _) in itertools.pairwise(steps))
        assert area == pytest.approx(1)


def test_arms_with_other_documents_are_left_out(tmp_path):
    tokens = [token_event(0, TEXT, FACTS_HIGH)]
    ids = [
        record(tmp_path, spec("camels", "test-1-0", arm), [[0.5]], [2.0], tokens=tokens)
        for arm in ("stream", "placebo")
    ]
    board(tmp_path, ids)
    assert [weights.row.arm for weights in row_weights(tmp_path)] == ["stream"]
    figure = token_plots.drawings(build(tmp_path))["token_weights_by_class"].draw()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["camels"]


def test_a_board_without_weights_has_no_such_plots(tmp_path):
    board(tmp_path, unweighted_runs(tmp_path))
    assert not {name for name in plot_names(tmp_path) if name.startswith("token_weight")}
