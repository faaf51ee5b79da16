"""The boards of several pairs: hand-computed ranks and inversions, the files, and an experiment on two of each."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import reports
import run_bench
from bench.errors import BenchError
from bench.records.schema import BoardRecord
from bench.records.store import read_board, write_board
from bench.run import cell
from bench.run.experiment import load
from reports import pair_plots, pair_tables, pairs, plots
from reports.board import build
from tests.conftest import make_checkpoint
from tests.reports.records_factory import board, record, spec
from tests.reports.test_tables import PAPER
from tests.world import Inline, make_dataset, make_experiment

STREAMS = ("test-2-0", "test-2-1", "test-2-2", "test-2-3")
LEVELS = {
    "nano": {"closed_book": 0.05, "uniform": 0.2, "lora": 0.3, "bm25": 0.7, "tfidf": 0.21},
    "plain": {"closed_book": 0.06, "uniform": 0.4, "lora": 0.1, "bm25": 0.6, "tfidf": 0.39},
}
"""F1 on two bases. On plain lora falls behind uniform and tfidf, which swap places by less than their noise."""


def write_boards(runs: Path, levels=LEVELS, failed=(), settings=None) -> None:
    """A board on each base. The scores of all methods rise together over streams, and tfidf's have noise of its own."""
    for model, methods in reversed(levels.items()):
        ids = []
        for method, level in methods.items():
            for k, stream in enumerate(STREAMS):
                noise = (0.1, -0.1, 0.0, 0.0)[k] if method == "tfidf" else 0.0005 * k * len(method)
                f1 = level + 0.01 * k + noise
                status = "diverged" if (model, method) in failed else "complete"
                cell = spec(method, stream, model=model, model_hash=model, **(settings or {}).get(model, {}))
                ids.append(record(runs, cell, [[f1], [f1]], status=status))
        name = "demo" if model == "nano" else f"demo-{model}"
        board(runs, ids, name)
        if model == "nano":
            further = [f"demo-{other}" for other in levels if other != "nano"]
            write_board(runs, BoardRecord(**{**read_board(runs, name).model_dump(), "bases": further}))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, which saves most of the time of a report."""
    monkeypatch.setattr(plots, "PARTS", ())
    monkeypatch.setattr(pair_plots, "drawings", lambda board: {})


def test_a_board_without_the_reference_has_its_own(tmp_path):
    write_boards(tmp_path, failed=[("plain", "uniform")])
    built = build(tmp_path, reference="uniform")
    (other,) = built.others
    assert (built.reference, other.reference) == ("uniform", "closed_book")
    assert other.remarks[0] == "Differences are from closed_book, since uniform has no complete row."


def test_ranks_and_inversions_are_hand_computed(tmp_path):
    write_boards(tmp_path)
    built = build(tmp_path)
    (comparison,) = pairs.comparisons(built)
    boards = (built, *built.others)
    ranks = {
        line.label: [pairs.rank(one, row) for one, row in zip(boards, line.rows, strict=True)]
        for line in pairs.lines(built)
    }
    assert ranks == {"bm25": [1, 1], "lora": [2, 4], "tfidf": [3, 3], "uniform": [4, 2], "closed_book": [None, None]}
    assert comparison.inversions == [("lora", "uniform", True), ("lora", "tfidf", False), ("tfidf", "uniform", False)]
    assert comparison.agreement is not None
    assert comparison.agreement.tau == pytest.approx((3 - 3) / 6)
    assert [comparison.agreement.methods, comparison.agreement.streams] == [4, (4,)]
    assert comparison.sentences()[1] == (
        "Pairs of methods in the opposite order: 3 of 6; significantly different on both: lora and uniform."
    )


@pytest.mark.usefixtures("no_plots")
def test_the_files_state_scores_ranks_and_inversions(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_boards(runs)
    reports.write_all(runs, out)
    content = json.loads((out / "pairs.json").read_text())
    shown = [(pair["name"], pair["board"], pair["dataset"], pair["headline"]) for pair in content["pairs"]]
    assert shown == [("nano", "demo", "world", "f1"), ("plain", "demo-plain", "world", "f1")]
    rows = {row["label"]: row["pairs"] for row in content["rows"]}
    boards = {
        base: {row["label"]: row for row in json.loads((out / base / "leaderboard.json").read_text())["rows"]}
        for base in ("nano", "plain")
    }
    for label, on_pairs in rows.items():
        for base, values in on_pairs.items():
            shared = ("em", "em_ci95", "f1", "f1_ci95", "rank_low", "rank_high", "as_good_as_best")
            assert {key: values[key] for key in shared} == {key: boards[base][label][key] for key in shared}
    (comparison,) = content["comparisons"]
    low, high = comparison["kendall_tau_b_ci95"]
    assert low <= comparison["kendall_tau_b"] <= high
    assert comparison["inversions"][0] == {
        "better_on_first": "lora",
        "better_on_other": "uniform",
        "significant": True,
    }
    with (out / "pairs.csv").open() as file:
        table = {(row["label"], row["pair"]): row for row in csv.DictReader(file)}
    assert len(table) == 2 * len(rows) and float(table["lora", "plain"]["f1"]) == rows["lora"]["plain"]["f1"]
    markdown = (out / "pairs.md").read_text()
    assert "# demo: world on nano and plain" in markdown and "| lora | uniform | yes |" in markdown
    assert "Kendall's tau-b between the ranks of 4 methods on nano and plain is 0.00 (95 % interval" in markdown


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, with booktabs and tabularx")
def test_latex_fits_into_a_column_of_a_paper(tmp_path):
    write_boards(tmp_path)
    pair_tables.write(build(tmp_path), tmp_path)
    (tmp_path / "paper.tex").write_text(PAPER.replace("leaderboard", "pairs"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert process.returncode == 0 and "Overfull" not in process.stdout, process.stdout


@pytest.mark.usefixtures("no_plots")
def test_the_check_covers_the_comparison_and_the_boards_of_all_bases(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_boards(runs)
    reports.write_all(runs, out)
    assert reports.stale(runs, out) == []
    (out / "pairs.md").write_text("changed")
    (out / "plain" / "leaderboard.csv").unlink()
    assert sorted(reports.stale(runs, out)) == ["pairs.md", "plain/leaderboard.csv"]
    reports.write_all(runs, out)
    reports.write_all(runs, out, "demo-plain")
    assert not [*out.glob("pairs.*")], "of an earlier experiment"
    reports.write_all(runs, out, "demo")
    written = {path.name for path in out.glob("pairs.*")}
    assert len(written) == 5 and written <= set(reports.stale(runs, out, "demo-plain"))


def test_a_method_that_diverged_on_one_base_is_shown_and_not_compared(tmp_path):
    write_boards(tmp_path, failed=[("plain", "lora")])
    built = build(tmp_path)
    (comparison,) = pairs.comparisons(built)
    assert [label for label, _, _ in comparison.lines] == ["bm25", "tfidf", "uniform"]
    assert comparison.inversions == [("tfidf", "uniform", False)]
    pair_tables.write(built, tmp_path)
    (line,) = (line for line in (tmp_path / "pairs.md").read_text().splitlines() if line.startswith("| lora"))
    assert line.endswith("| [diverged on 4 of 4] |  |")


def test_a_base_on_which_everything_diverged_is_shown_without_a_correlation(tmp_path):
    write_boards(tmp_path, failed=[("plain", method) for method in LEVELS["plain"]])
    built = build(tmp_path)
    pair_tables.write(built, tmp_path)
    assert "There is no rank correlation between nano and plain" in (tmp_path / "pairs.md").read_text()


def test_entries_that_are_one_row_on_one_base_are_compared_with_both_rows_on_the_other(tmp_path):
    ids = {
        (model, k, method): record(
            tmp_path,
            spec(method, "test-1-0", model=model, model_hash=model, config={"k": k} if k else {}),
            [[0.1 * k + (0.3 if method == "uniform" else 0.2)]],
        )
        for model in ("nano", "plain")
        for method, k in (("uniform", 0), ("bm25", 1), ("bm25", 2))
    }
    for model, chosen, further in (("plain", 2, []), ("nano", 1, ["demo-plain"])):
        entries = [
            {"method": method, "runs": [ids[model, k, method]], "tuning": None, "hand_set": []}
            for method, k in (("uniform", 0), ("bm25", 1), ("bm25", chosen))
        ]
        name = "demo" if model == "nano" else f"demo-{model}"
        write_board(tmp_path, BoardRecord(experiment=name, entries=entries, remarks=[], bases=further))
    built = build(tmp_path)
    lines = {line.label: [row.config.get("k") for row in line.rows] for line in pairs.lines(built)}
    assert lines == {"bm25 (k=1)": [1, 1], "bm25 (k=2)": [1, 2], "uniform": [None, None]}
    assert all(plot.draw() for plot in pair_plots.drawings(built).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": {**LEVELS, "plain": {**LEVELS["plain"], "mac": 0.3}}},
        {"levels": {**LEVELS, "plain": {"mac": 0.3, **{k: v for k, v in LEVELS["plain"].items() if k != "lora"}}}},
        {"settings": {"plain": {"harness_code": "an older one"}}},
        {"settings": {"plain": {"protocol": "1.9"}}},
    ],
)
def test_boards_that_differ_in_more_than_the_base_are_refused(tmp_path, changes):
    write_boards(tmp_path, **changes)
    with pytest.raises(BenchError, match=r"demo and demo-plain cannot be compared: .* Run the experiment again"):
        pairs.lines(build(tmp_path))


def test_all_tied_methods_have_no_correlation(tmp_path):
    levels = {model: {"closed_book": 0.1, "uniform": 0.2} for model in LEVELS}
    write_boards(tmp_path, levels)
    (comparison,) = pairs.comparisons(build(tmp_path))
    assert comparison.agreement is None and "There is no rank correlation" in comparison.sentences()[0]


class Pool(Inline):
    """Runs the cells in this process, with the interface of the pool of the command line."""

    def __init__(self, jobs: int, threads: int | None, gpus: Sequence[str]) -> None:
        super().__init__()
        self.jobs = jobs

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class TestDataSets:
    """Three boards: two bases on one dataset of four streams, and the first of them on another one of five."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        """On the second dataset lora and uniform swap places, and tfidf is left out."""
        levels = {
            "demo-small-nano": {"closed_book": 0.1, "uniform": 0.5, "lora": 0.2, "bm25": 0.8},
            "demo-world-plain": LEVELS["plain"],
            "demo": LEVELS["nano"],
        }
        for name, methods in levels.items():
            dataset, model = ("small" if "small" in name else "world"), ("plain" if "plain" in name else "nano")
            streams = {"world": 4, "small": 5}[dataset]
            data = {"dataset": dataset, "anchor_hash": dataset, "model": model, "model_hash": model}
            entries = []
            for place, method in enumerate(LEVELS["nano"]):
                noise = [0.01 * k + 0.001 * (place - 1) * ((k == 1) - (k == 2)) for k in range(streams)]
                ids = [
                    record(tmp_path, spec(method, f"test-{streams}-{k}", **data), [[methods[method] + shift]])
                    for k, shift in enumerate(noise if method in methods else [])
                ]
                entries.append({"method": method, "runs": ids, "tuning": None, "hand_set": []})
            others = [other for other in levels if other != "demo"] if name == "demo" else []
            write_board(tmp_path, BoardRecord(experiment=name, entries=entries, remarks=[], bases=others))
        return tmp_path

    def test_a_pair_is_named_by_what_tells_the_boards_apart(self, runs):
        built = build(runs)
        assert pairs.names(built) == ["world, nano", "small, nano", "world, plain"]
        one_base = replace(built, others=built.others[:1])
        assert pairs.names(one_base) == ["world", "small"]

    def test_ranks_on_other_data_are_compared_and_their_streams_resampled_apart(self, runs):
        small, plain = pairs.comparisons(build(runs))
        assert small.agreement is not None and plain.agreement is not None
        assert (small.agreement.methods, small.agreement.streams) == (3, (4, 5))
        assert (plain.agreement.methods, plain.agreement.streams) == (4, (4,))
        assert small.inversions == [("lora", "uniform", True)]
        assert small.sentences()[0].startswith(
            "Kendall's tau-b between the ranks of 3 methods on (world, nano) and (small, nano) is 0.33 (95 % interval"
        )

    @pytest.mark.usefixtures("no_plots")
    def test_a_method_that_is_left_out_of_a_board_has_an_empty_place(self, runs, tmp_path):
        out = tmp_path / "out"
        reports.write_all(runs, out)
        assert reports.stale(runs, out) == []
        folders = ("world-nano", "small-nano", "world-plain")
        assert all((out / folder / "leaderboard.md").is_file() for folder in folders)
        markdown = (out / "pairs.md").read_text().splitlines()
        assert markdown[0] == "# demo: world and small on nano and plain"
        tfidf = next(line.removeprefix("| ").split(" | ") for line in markdown if line.startswith("| tfidf"))
        assert tfidf[4:6] == ["–", "–"] and not tfidf[6], "EM and F1 on the second board, and no rank"
        assert "–: left out of that board, whose remarks say why." in "\n".join(markdown)
        (row,) = (row for row in json.loads((out / "pairs.json").read_text())["rows"] if row["label"] == "tfidf")
        assert list(row["pairs"]) == ["world, nano", "world, plain"]

    def test_the_best_of_each_board_is_bold_and_latex_groups_the_columns(self, runs, tmp_path):
        pair_tables.write(build(runs), tmp_path)
        bm25 = next(line for line in (tmp_path / "pairs.md").read_text().splitlines() if line.startswith("| bm25"))
        assert bm25.count("**") == 2 * 3, "the F1 of each board"
        latex = (tmp_path / "pairs.tex").read_text()
        assert "\\multicolumn{2}{c}{world, nano} & \\multicolumn{2}{c}{small, nano}" in latex
        assert "\\cmidrule(lr){2-3} \\cmidrule(lr){4-5} \\cmidrule(lr){6-7}" in latex
        rows = [line for line in latex.splitlines() if line.startswith(("bm25", "tfidf", "closed"))]
        assert all(line.count("&") == 6 for line in rows) and rows[0].count("\\textbf") == 3
        assert latex.index("\\midrule\nclosed\\_book") > latex.index("bm25"), "controls come last, below a rule"
        caption, notes = (tmp_path / "pairs.txt").read_text().split("\n\n")
        assert caption == "Scores and ranks of methods, demo: world and small on nano and plain."
        assert notes.startswith("±: half the width of the 95 % t interval over streams")

    def test_the_terminal_shows_a_score_and_a_rank_for_each_pair(self, runs):
        def cells(width: int) -> list[list[str]]:
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(pair_tables.render(build(runs), width))
            return [line.split() for line in console.export_text().splitlines()]

        wide, narrow = cells(100), cells(60)
        assert wide[0] == narrow[0] == ["demo:", *"world and small on nano and plain".split()]
        assert wide[2:4] == [["world", "small", "world"], ["method", *("nano", "rank") * 2, "plain", "rank"]]
        assert narrow[3] == ["method", "nano", "nano", "plain"], "without room for ranks"
        uniform = "uniform 0.215 ± 0.021 4 0.520 ± 0.020 2 0.415 ± 0.021 2".split()
        assert uniform in wide and [cell for cell in uniform if cell not in ("2", "4")] in narrow


class TestExperiment:
    @pytest.fixture
    def path(self, tmp_path: Path, llama: Path) -> Path:
        """An experiment of two methods, and one that is not trained, on two datasets and two tiny models."""
        other = make_checkpoint(tmp_path / "models" / "other", "llama", seed=1)
        keepers = make_dataset(tmp_path / "keepers")
        watchers = tmp_path / "watchers"
        watchers.mkdir()
        recipe = yaml.safe_load((keepers / "dataset.yaml").read_text())
        del recipe["source"]
        (watchers / "dataset.yaml").write_text(yaml.safe_dump({**recipe, "name": "watchers"}))
        plan = make_experiment(
            keepers,
            llama,
            [
                "closed_book",
                {"name": "cmt", "optional": True},
                {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}},
            ],
            datasets=[str(keepers), str(watchers)],
            models=[str(llama), str(other)],
            streams={"split": "test", "documents": 2, "count": 2},
            tuning={"split": "validation", "documents": 1, "count": 1, "metric": "token_nll", "trials": 2},
            anchor={},
        )
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding", "name"})))
        return path

    def call(self, *arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_bench.py", *arguments])
            with pytest.raises(SystemExit) as end:
                run_bench.main()
        return int(end.value.code or 0)

    @pytest.mark.usefixtures("no_plots")
    def test_the_command_runs_all_pairs_and_prints_one_report(
        self, path, llama, tmp_path, capsys, monkeypatch, request
    ):
        monkeypatch.setattr("bench.run.executor.LocalPool", Pool)
        request.addfinalizer(cell._load_base.cache_clear)  # else the next test finds a base that knows this pool
        runs, out = tmp_path / "runs", tmp_path / "out"
        folders = ("--runs", str(runs), "--out", str(out))
        files = ("--data-files", f"watchers={tmp_path / 'keepers'}")
        assert self.call("run", str(path), *files, *folders) == 0
        printed = capsys.readouterr().out
        names = ["grid", "grid-keepers-other", f"grid-watchers-{llama.name}", "grid-watchers-other"]
        pairs_of = [("keepers", llama.name), ("keepers", "other"), ("watchers", llama.name), ("watchers", "other")]
        assert all(f"{name}: {', '.join(pair)}" in printed for name, pair in zip(names, pairs_of, strict=True))
        assert f"grid: keepers and watchers on {llama.name} and other" in printed
        assert "no rank correlation" in printed, "one method competes"
        boards = [read_board(runs, name) for name in names]
        assert [one.bases for one in boards] == [names[1:], [], [], []]
        tuned = [one.tuning for one in boards]
        assert all(tuned) and len({key for keys in tuned for key in keys}) == 4, "tuned on each pair"
        shown = [json.loads((out / "-".join(pair) / "leaderboard.json").read_text())["rows"][0] for pair in pairs_of]
        assert [(row["dataset"], row["model"]) for row in shown] == pairs_of
        for one in boards:
            assert [(entry.method, bool(entry.runs)) for entry in one.entries] == [
                ("closed_book", True),
                ("cmt", False),
                ("uniform", True),
            ]
            assert any(remark.startswith("Left out: cmt has no trained weights for") for remark in one.remarks)
        assert self.call("report", "--check", *folders) == 0
        assert read_board(runs).experiment == "grid", "the board that report shows by default"

        before = {path.name for path in runs.iterdir()}
        model = str(tmp_path / "models" / "other")
        one = ("--dataset", str(tmp_path / "keepers"), "--model", model, "--name", "one")
        assert self.call("run", str(path), *one, "--columns", "f1,rank", *folders) == 0
        assert {path.name for path in runs.iterdir()} == before, "the cells of a pair are those of the whole"
        assert (
            read_board(runs, "grid+one").runs == boards[1].runs
            and "| method | F1 | rank |" in (out / "grid+one" / "leaderboard.md").read_text()
        )

    def test_a_missing_base_or_data_set_is_found_before_any_work(self, path, tmp_path, capsys):
        content = yaml.safe_load(path.read_text())
        for change, message in (
            ({"models": ["nano", "no/such model"], "model": "nano"}, "There is no model 'no/such model'"),
            ({"datasets": ["newsworld", "nosuch"], "dataset": "newsworld"}, "nosuch"),
        ):
            path.write_text(yaml.safe_dump({**content, **change}))
            assert self.call("run", str(path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")) == 2
            assert message in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


def test_the_experiment_shares_its_cells_with_the_default():
    ours, default = load("bases"), load("default")
    different = {"name", "description", "methods", "models"}
    assert ours.model_dump(exclude=different) == default.model_dump(exclude=different)
    planned = [(plan.name, plan.config, plan.space, plan.seeds) for plan in default.methods]
    assert all((plan.name, plan.config, plan.space, plan.seeds) in planned for plan in ours.methods)
    assert {plan.name for plan in ours.methods} == {
        plan.name for plan in default.methods if "training" not in plan.config
    }
