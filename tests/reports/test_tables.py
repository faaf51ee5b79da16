"""Tables of a board: files and terminal."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
from collections import defaultdict
from dataclasses import replace

import pytest
from rich.console import Console

import reports
import run_bench
from bench.errors import BenchError
from reports import columns, markup, rescoring, tables
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


def printed(board, width, names=()):
    console = Console(width=width, file=io.StringIO())
    console.print(tables.render(board, width, names))
    return console.file.getvalue()


def latex_labels(folder):
    """The first cells of the rows of the LaTeX table, without bold type."""
    body = (folder / "leaderboard.tex").read_text().split("\\midrule\n", 1)[1].split("\\bottomrule")[0]
    cells = [line.split(" & ")[0] for line in body.splitlines() if line != "\\midrule"]
    return [re.sub(r"^\\textbf{(.*)}$", r"\1", cell) for cell in cells]


def test_every_format_has_the_same_rows(built, tmp_path):
    tables.write(built, tmp_path)
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    with (tmp_path / "leaderboard.csv").open() as file:
        csv_rows = list(csv.DictReader(file))
    labels = [row.label for row in built.rows]
    assert [row["label"] for row in content["rows"]] == [row["label"] for row in csv_rows] == labels
    markdown = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert [line.split("|")[1].strip(" *") for line in markdown if line.startswith("|")][2:] == labels
    assert latex_labels(tmp_path) == [markup.latex(label) for label in labels]


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


def test_the_json_file_has_the_values_of_each_stream_and_seed(tmp_path):
    cells = [spec("uniform", f"test-2-{k}", seed=seed) for k in range(3) for seed in range(2)]
    f1 = {(cell.stream, cell.seed): 0.1 * place for place, cell in enumerate(cells)}
    board(tmp_path, [record(tmp_path, cell, [[f1[cell.stream, cell.seed]]] * 2, [2.5, 3.5]) for cell in cells])
    tables.write(build(tmp_path), tmp_path / "out")
    (row,) = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    found = {(run["stream"], run["seed"]): run["scores"]["f1"] for run in row["runs"]}
    assert found == {key: pytest.approx(value, abs=1e-3) for key, value in f1.items()}
    of_streams = defaultdict(list)
    for run in row["runs"]:
        assert (tmp_path / run["id"] / "run.json").is_file()
        assert (run["order"], run["scores"]["token_nll"], run["scores"]["questions"]) == (0, 3.0, 2)
        assert run["seconds"] == {"training": 60.0, "fit": 5.0, "score": 1.0, "observe": 2.0, "answer": 3.0}
        of_streams[run["stream"]].append(run["scores"]["f1"])
    means = [statistics.mean(values) for values in of_streams.values()]
    assert row["f1"] == pytest.approx(statistics.mean(means))


def test_the_json_file_names_the_command_and_the_machine_of_every_run(tmp_path):
    hardware = {"cpu": "Some CPU", "gpu": "Some GPU", "threads": 2, "packages": {"torch": "2.1"}, "commit": "abc"}
    command = ["run_bench.py", "run", "my board"]
    origins = [
        {**hardware, "command": command, "started": "2026-01-01"},
        {**hardware, "command": command, "started": "2026-01-02"},
        {**hardware, "command": ["oab", "--quick"], "gpu": None, "started": "2026-01-03"},
    ]
    cells = [spec("uniform", f"test-1-{k}") for k in range(3)]
    pairs = zip(cells, origins, strict=True)
    board(tmp_path, [record(tmp_path, cell, [[0.5]], provenance=origin) for cell, origin in pairs])
    tables.write(build(tmp_path), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    of_spec = {"device": "cpu", "dtype": "float32"}
    assert content["origins"] == [
        {**hardware, "command": "python run_bench.py run 'my board'", **of_spec},
        {**hardware, "command": "oab --quick", "gpu": None, **of_spec},
    ]
    (row,) = content["rows"]
    assert [(run["origin"], run["started"][-1]) for run in row["runs"]] == [(0, "1"), (0, "2"), (1, "3")]
    board_facts = {"experiment": "demo", "dataset": "world", "model": "tiny", "headline": "f1", "error": "SE_stream"}
    assert board_facts.items() <= content.items() and content["streams"] == ["test-1-0", "test-1-1", "test-1-2"]


def test_the_csv_file_has_every_column_of_the_board(built, tmp_path):
    tables.write(built, tmp_path)
    with (tmp_path / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {*columns.NAMES} - {"se", "rank"} | {"f1_se_stream", "rank_low", "rank_high"} <= rows[0].keys()
    for column in columns.columns(built):
        if column.name not in ("se", "rank"):
            shown = [column.cell(row) not in ("", "-") for row in built.rows]
            assert [row[column.name] not in ("", "0") for row in rows] == shown or column.name == "break_even_documents"


def test_the_same_records_give_the_same_bytes(runs, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tables.write(build(runs), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_no_other_files_are_left_in_the_folder(built, tmp_path):
    paths = tables.write(built, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize("width", [60, 72, 80, 120, 250])
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


def test_the_caption_names_the_protocol(built, tmp_path):
    tables.write(built, tmp_path)
    texts = [printed(built, 120), read(tmp_path, "md"), read(tmp_path, "txt")]
    assert all("protocol 2.0." in " ".join(text.split()) for text in texts)


def test_errors_are_named_and_explained(built):
    text = " ".join(printed(built, 120).split())
    assert "± is the half-width of the 95 % t interval over 4 streams of test-12." in text
    assert "SE is the standard error over streams (SE_stream); ± 1 SE would cover only 61 %." in text
    assert "seeds" not in text
    assert "SE is" not in printed(built, 72)  # its column is left out
    assert "F1 vs uniform: paired difference from uniform, each interval by itself, not corrected for the" in text
    assert "untuned" not in text


def test_the_caption_says_what_a_reader_cannot_look_up(tmp_path):
    """A control has no rank, and a row may have fewer streams than the board."""
    ids = [record(tmp_path, spec(name, f"test-1-{k}"), [[0.5]]) for name in ("closed_book", "lora") for k in range(3)]
    ids += [record(tmp_path, spec("a", f"test-1-{k}"), [[0.5]], status="diverged" if k else "complete") for k in (0, 1)]
    ids += [record(tmp_path, spec("a", "test-1-2"), [[0.5]])]
    board(tmp_path, ids)
    shown = {name: " ".join(printed(build(tmp_path, reference=name), 250).split()) for name in ("lora", "closed_book")}
    assert "3 streams of test-1. Rows with a note in brackets have fewer." in shown["lora"]
    assert "not corrected for the number of rows; see rank." in shown["lora"]
    assert "not corrected for the number of rows." in shown["closed_book"]


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
    ("value", "text"),
    [(0, "0 B"), (2048, "2 KiB"), (1000, "0.977 KiB"), (5 * 1024**2, "5 MiB"), (3.2e15, "2.91e+03 TiB")],
)
def test_bytes_are_readable(value, text):
    assert columns.in_bytes(value) == text


def test_stale_names_files_that_are_missing_or_differ(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("reports.plots.FORMATS", ("svg",))
    reports.write_all(runs, tmp_path)
    assert reports.stale(runs, tmp_path) == []
    (tmp_path / "leaderboard.md").write_text("edited")
    (tmp_path / "f1_by_method.svg").unlink()
    assert reports.stale(runs, tmp_path) == ["leaderboard.md", "f1_by_method.svg"]


CHOSEN = ["seconds_per_document", "f1", "nll", "se", "recall"]


def test_chosen_columns_are_those_of_the_tables_for_readers_in_this_order(built, tmp_path):
    standings = [row.standing and replace(row.standing, is_decided=True) for row in built.rows]
    rows = [replace(row, standing=standing) for row, standing in zip(built.rows, standings, strict=True)]
    built = replace(built, rows=tuple(rows))
    for name, names in {"all": (), "chosen": CHOSEN}.items():
        tables.write(built, tmp_path / name, names)
    headings = ["method", "s/doc", "F1", "token NLL", "SE", "recall"]
    assert [column.heading for column in columns.columns(built, CHOSEN)] == headings
    markdown = (tmp_path / "chosen" / "leaderboard.md").read_text().splitlines()
    assert markdown[2] == markup.pipes(headings)
    best = next(row for row in built.rows if row.as_good_as_best)
    cells = [column.cell(best) for column in columns.columns(built, CHOSEN)]
    assert markdown[4] == markup.pipes(cells, ["**", "", "**"]), "the name and the headline score are bold"
    assert cells[-1] == "", "a chosen column stays without values"
    assert " ".join(cells).split() in [line.split() for line in printed(built, 250, CHOSEN).splitlines()]
    assert r"{@{}>{\raggedright\arraybackslash\hyphenpenalty=10000\hangindent=1em}Xrrrrr@{}}" in read(
        tmp_path / "chosen", "tex"
    )
    assert "recall: share of questions" in read(tmp_path / "chosen", "txt")
    assert "rank" not in read(tmp_path / "chosen", "md").split("Bold")[0]
    for ending in ("csv", "json"):
        assert read(tmp_path / "chosen", ending) == read(tmp_path / "all", ending)


def read(folder, ending):
    return (folder / f"leaderboard.{ending}").read_text()


def test_every_name_is_that_of_a_column(built):
    assert [column.name for column in columns.columns(built, columns.NAMES)] == list(columns.NAMES)
    assert [column.name for column in columns.columns(built, ["f1", "method", "f1"])] == ["method", "f1"]


def test_a_column_that_there_is_not_is_refused_before_anything_is_written(built, tmp_path, monkeypatch):
    with pytest.raises(
        BenchError, match=r"There is no column 'F2'. The columns are method, f1, se, rank, .*trials, p_vs_reference\."
    ):
        tables.write(built, tmp_path, ["f1", "F2"])
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BenchError, match="There is no column 'F2'"):
        run_bench.run("default", columns="f1,F2")
    with pytest.raises(BenchError, match="--columns names no column"):
        run_bench.report(columns=" ,")
    with pytest.raises(BenchError, match="the page shows all columns"):
        run_bench.report(columns="f1", html=True)
    assert not list(tmp_path.iterdir())


def test_latex_has_few_columns_unless_they_are_chosen(built, tmp_path):
    def headings(board):
        tables.write(board, tmp_path)
        upper, lower = [line.split(" & ") for line in read(tmp_path, "tex").splitlines()[5:7]]
        return [" ".join(f"{a} {b}".replace("\\", "").split()) for a, b in zip(upper, lower, strict=True)]

    assert headings(built) == ["method", "F1", "rank", "token NLL", "total s"]
    board(tmp_path / "text", [record(tmp_path / "text", spec("uniform", f"test-2-{k}"), nll=[k + 2]) for k in range(2)])
    assert headings(build(tmp_path / "text")) == ["method", "token NLL", "rank", "bits/byte", "total s"]


def test_the_caption_is_a_text_beside_the_table_with_its_notes_and_the_remarks(tmp_path):
    board(
        tmp_path, [record(tmp_path, spec("uniform", f"test-1-{k}"), [[0.5]]) for k in range(2)], remarks=["A\x1b\nb."]
    )
    tables.write(build(tmp_path), tmp_path / "out")
    caption, notes, remark = read(tmp_path / "out", "txt").split("\n\n")
    assert caption == "Scores and costs of methods on world with tiny, protocol 2.0."
    assert notes.startswith("± is the half-width of the 95 % t interval over 2 streams of test-1.")
    assert remark == "A␛ b.\n"
    assert max(map(len, notes.splitlines())) <= 120


HOSTILE = {
    "latex": r"\input{secret} 100% #1 & ~ ^ {} $x$ ^^5cinput{secret}",
    "markdown": "a | b <b>c</b> ![d](http://e.org) `f`",
    "control": "\x1b[2J\r\n% \x07",
    "long": "dynamic_evaluation_of_amortized_contexts_and_memories",
}


@pytest.fixture
def hostile(tmp_path):
    """A board whose labels are hostile, since methods and settings are."""
    ids = [
        record(tmp_path, spec(method, f"test-1-{k}", config={"note": text}), [[0.5]])
        for k in range(2)
        for method, text in zip(["=1+1", "*star", "[bracket]", "uniform"], HOSTILE.values(), strict=True)
        for text in (text, "other")
    ]
    board(tmp_path, ids, experiment="demo")
    return build(tmp_path)


def test_hostile_labels_are_shown_in_every_format(hostile, tmp_path):
    tables.write(hostile, tmp_path)
    labels = [row.label for row in hostile.rows]
    assert {text in " ".join(labels) for text in HOSTILE.values()} == {True}
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"].removeprefix("'") for row in rows] == [label.replace("\r", "\n") for label in labels]
    assert not any(value.startswith(("=", "+", "@", "\t", "\r")) for row in rows for value in row.values())
    assert {float(row["f1"]) for row in rows} == {0.5}
    assert latex_labels(tmp_path) == [markup.latex(label) for label in labels]
    lines = [line for line in read(tmp_path, "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(labels)
    assert all(markup.markdown(label) in line for label, line in zip(labels, lines[2:], strict=True))
    console = Console(width=250, file=io.StringIO())
    console.print(rescoring.render(rescoring.rescore(tmp_path, "em")))
    files = [read(tmp_path, ending) for ending in ("md", "tex", "txt")]
    shown = "".join([printed(hostile, 250), console.file.getvalue(), *files])
    assert not {"\x1b", "\x07", "\r"} & {*shown}


PAPER = r"""\documentclass[10pt,twocolumn]{article}
\usepackage{booktabs,tabularx}
\textwidth=6.85in \columnsep=0.25in
\begin{document}\begin{table}\input{leaderboard}\end{table}\typeout{column \the\columnwidth}\end{document}
"""


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, with booktabs and tabularx")
def test_latex_compiles_and_fits_into_a_column_of_a_paper(built, hostile, tmp_path):
    (tmp_path / "secret.tex").write_text(r"\typeout{OBEYED}")
    (tmp_path / "paper.tex").write_text(PAPER)
    for one in (built, hostile):
        tables.write(one, tmp_path)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
        assert process.returncode == 0, process.stdout
        assert "column 238.49121pt" in process.stdout, "3.3 inches"
        assert "OBEYED" not in process.stdout and "Overfull" not in process.stdout


def test_report_takes_the_columns_and_check_compares_with_them(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reports.plots.PARTS", ())
    run_bench.report(runs=runs, out=tmp_path, columns="f1, nll")
    shown = capsys.readouterr().out
    assert "NLL" in shown and "rank" not in shown
    assert reports.stale(runs, tmp_path, columns=["f1", "token_nll"]) == []
    assert reports.stale(runs, tmp_path) == ["leaderboard.md", "leaderboard.tex", "leaderboard.txt"]
