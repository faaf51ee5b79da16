"""Tables of a board: files and terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

import reports
from reports import columns, tables
from reports.board import build
from reports.prices import COSTS
from reports.rows import SCORES
from tests.reports.records_factory import board, realistic, record, spec


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    realistic(folder, documents=12)
    return folder


@pytest.fixture
def built(runs):
    return build(runs)


def printed(board, width):
    console = Console(width=width, file=io.StringIO())
    console.print(tables.render(board, width))
    return console.file.getvalue()


def test_every_format_has_the_same_rows(built, tmp_path):
    tables.write(built, tmp_path)
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    with (tmp_path / "leaderboard.csv").open() as file:
        csv_rows = list(csv.DictReader(file))
    labels = [row.label for row in built.rows]
    assert [row["label"] for row in content["rows"]] == [row["label"] for row in csv_rows] == labels
    markdown = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert [line.split("|")[1].strip(" *") for line in markdown if line.startswith("|")][2:] == labels
    latex = (tmp_path / "leaderboard.tex").read_text()
    assert all(label.replace("_", r"\_") in latex for label in labels)


def test_the_json_file_has_all_documented_fields(built, tmp_path):
    tables.write(built, tmp_path)
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    assert {"protocol", "comparability", "rows"} <= content.keys()
    fields = {"method", "dataset", "model", "arm", "control", "streams", "f1", "f1_se_stream", "f1_se_doc", "em"}
    fields |= {"f1_ci95", "em_ci95", "em_se_stream", "as_good_as_best", "rank_low", "rank_high", "seeds", "orders"}
    fields |= {"trials", "hand_set", "offline_seconds", "training_seconds", "fit_seconds", "tuning_seconds"}
    fields |= {"seconds_per_document", "flops_per_document", "seconds_per_question", "total_seconds", "total_flops"}
    fields |= {"break_even_documents", "state_bytes", "spread_streams", "spread_seeds", "spread_orders", "spread_rest"}
    fields |= {*SCORES, *COSTS}
    for row in content["rows"]:
        assert fields <= row.keys()
        assert row.keys() == content["rows"][0].keys()
        assert row["f1_ci95"] == pytest.approx(3.182446 * row["f1_se_stream"])  # four streams
        assert row["as_good_as_best"] == (row["rank_low"] == 1)
        assert (row["rank_low"] is None) == (row["rank_high"] is None) == row["control"]
    assert {tuple(row["hand_set"]) for row in content["rows"] if row["method"] == "camels"} == {
        ("training.steps", "training.rate", "k")
    }


def test_the_same_records_give_the_same_bytes(runs, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tables.write(build(runs), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_no_other_files_are_left_in_the_folder(built, tmp_path):
    paths = tables.write(built, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize("width", [72, 80, 120, 250])
def test_the_terminal_never_cuts_a_cell(built, width):
    text = printed(built, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    note = re.search(r"\b(1 more column|(?!1 )\d+ more columns) in leaderboard\.md", " ".join(text.split()))
    assert (note is not None) == (width < 250)


def test_names_on_the_terminal_are_text_and_not_obeyed(built):
    names = {"model": "m[/red]\x1b[2J", "dataset": "d[bold]\x9b", "experiment": "demo+:smile:"}
    rows = (replace(built.rows[0], label="uniform[/x]\x07"), *built.rows[1:])
    text = printed(replace(built, rows=rows, **names), 250)
    assert "demo+:smile:: d[bold]�, m[/red]␛[2J" in text and "uniform[/x]␇" in text
    assert not {"\x1b", "\x9b", "\x07"} & set(text)


def test_errors_are_named_and_explained(built):
    text = " ".join(printed(built, 120).split())
    assert "± is the half-width of the 95 % t interval over 4 streams of test-12." in text
    assert "SE is the standard error over streams (SE_stream); ± 1 SE would cover only 61 %." in text
    assert "seeds" not in text
    assert "SE is" not in printed(built, 72)  # its column is left out
    assert "F1 vs uniform: paired difference from uniform." in text
    assert "untuned" not in text


def test_no_error_is_shown_as_zero(built, tmp_path):
    tables.write(built, tmp_path)
    for name in ("leaderboard.md", "leaderboard.tex"):
        assert not re.search(r"(±|\\pm\$) 0\.0+\b(?!\d)", (tmp_path / name).read_text())


def test_one_stream_shows_the_error_over_documents_and_says_so(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-2-0"), [[0.4], [0.6]])])
    text = " ".join(printed(build(tmp_path), 120).split())
    assert "0.500 ± 1.271 0.100" in text  # two documents: 12.706 SE
    assert "test-2-0 is the only stream, so there is no SE_stream" in text
    assert "SE is SE_doc, the standard error over questions, clustered by document." in text


def test_one_document_has_no_error(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", "test-1-0"), [[0.5]])])
    assert "0.500 ± n/a" in printed(build(tmp_path), 120)


def test_the_caption_says_that_seeds_are_included(tmp_path):
    cells = [spec("uniform", f"test-1-{k}", seed=seed) for k in (0, 1) for seed in (0, 1)]
    board(tmp_path, [record(tmp_path, cell, [[0.5]]) for cell in cells])
    built = build(tmp_path)
    assert "Errors include the seeds, for rows that have several." in " ".join(printed(built, 120).split())
    cells = {column.heading: column.cell(built.rows[0]) for column in columns.columns(built)}
    assert cells["seeds"] == "2" and "orders" not in cells


def test_gaps_and_untuned_methods_are_marked(tmp_path):
    ids = [record(tmp_path, spec("uniform", f"test-1-{k}"), [[0.5]], tunable=True) for k in range(2)]
    ids.append(record(tmp_path, spec("camels", "test-1-0"), status="diverged"))
    board(tmp_path, ids)
    text = printed(build(tmp_path), 250)
    assert "untuned" in text
    assert "diverged on 1 of 2" in " ".join(text.split())


def test_recall_is_shown_if_a_method_names_documents(tmp_path):
    f1 = [[0.5, 0.0], [1.0, 0.5]]
    ids = [
        record(tmp_path, spec("uniform", "test-2-0"), f1),
        record(tmp_path, spec("index", "test-2-0"), f1, retrieved=2),
    ]
    board(tmp_path, ids[:1])
    assert "recall" not in [column.heading for column in columns.columns(build(tmp_path))]
    board(tmp_path, ids)
    built = build(tmp_path)
    (recall,) = [column for column in columns.columns(built) if column.heading == "recall"]
    assert {row.label: recall.cell(row) for row in built.rows} == {"uniform": "", "index": "0.750"}
    (index,) = [row for row in built.rows if row.label == "index"]
    assert tables.fields(index, built)["recall_se_doc"] == pytest.approx(0.25)


def changing(runs, changed):
    """A run of ten questions with F1 0 or 1, of which the first ones are on facts that have changed."""
    cell = spec("uniform", "test-5-0")
    f1 = [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    board(runs, [record(runs, cell, f1, changed={1.0: ["0.0", "0.1", "1.0", "1.1"][:changed]})])
    built = build(runs)
    cells = {column.heading: column.cell(built.rows[0]) for column in columns.columns(built)}
    return built, {name: cells.get(name) for name in ("F1", "current F1", "stale", "unchanged F1")}


def test_a_board_shows_scores_of_changed_facts_if_a_tenth_of_the_questions_are_on_them(tmp_path):
    none = {"current F1": None, "stale": None, "unchanged F1": None}
    built, cells = changing(tmp_path / "none", 0)
    assert cells == {"F1": cells["F1"], **none}
    assert "stale" not in columns.caption(built, columns.columns(built))
    built, cells = changing(tmp_path / "many", 4)
    assert cells == {"F1": cells["F1"], "current F1": "0.250", "stale": "0.750", "unchanged F1": "0.833"}
    assert "stale: share of these answered with an earlier truth." in columns.caption(built, columns.columns(built))
    rare = [[1.0] * 11]
    board(tmp_path / "rare", [record(tmp_path / "rare", spec("uniform", "test-1-0"), rare, changed={1.0: ["0.0"]})])
    assert "stale" not in [column.heading for column in columns.columns(build(tmp_path / "rare"))]


def test_the_json_file_has_the_scores_of_changed_facts_with_their_errors(tmp_path):
    built, _ = changing(tmp_path, 4)
    (row,) = (tables.fields(row, built) for row in built.rows)
    assert (row["f1_current"], row["stale"], row["f1_unchanged"]) == (0.25, 0.75, pytest.approx(5 / 6))
    assert row["stale_se_doc"] == pytest.approx(0.25)  # two documents with 1 and 0.5 stale answers
    assert row["f1_current_ci95"] == pytest.approx(12.706205 * 0.25)
    built, _ = changing(tmp_path / "none", 0)
    (row,) = (tables.fields(row, built) for row in built.rows)
    assert (row["f1_current"], row["stale"], row["stale_ci95"], row["f1_unchanged"]) == (None, None, None, row["f1"])


def test_text_streams_have_no_question_columns(tmp_path):
    board(tmp_path, [record(tmp_path, spec("uniform", f"test-2-{k}"), nll=[2.0, 3.0 + k]) for k in range(2)])
    headings = [column.heading for column in columns.columns(build(tmp_path))]
    assert headings[:5] == ["method", "token NLL", "SE", "rank", "bits/byte"]
    assert not {"F1", "EM", "s/question"} & {*headings}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("salient_spans (lr=50%)", r"salient\_spans (lr=50\%)"),
        ("0.5 ± <0.001", r"0.5 $\pm$ $<$0.001"),
        ("-0.1 ± 0.2", r"$-$0.1 $\pm$ 0.2"),
        ("1e-05 well-known", "1e-05 well-known"),
        (r"a\b{c}^~&#$", r"a\textbackslash{}b\{c\}\textasciicircum{}\textasciitilde{}\&\#\$"),
    ],
)
def test_latex_is_escaped(text, escaped):
    assert tables._escape(text) == escaped


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (2048, "2 KiB"), (1000, "0.977 KiB"), (5 * 1024**2, "5 MiB"), (3.2e15, "2.91e+03 TiB")],
)
def test_bytes_are_readable(value, text):
    assert columns._bytes(value) == text


def test_stale_names_files_that_are_missing_or_differ(runs, tmp_path):
    reports.write_all(runs, tmp_path)
    assert reports.stale(runs, tmp_path) == []
    (tmp_path / "leaderboard.md").write_text("edited")
    (tmp_path / "f1_by_method.png").unlink()
    assert reports.stale(runs, tmp_path) == ["leaderboard.md", "f1_by_method.png"]
