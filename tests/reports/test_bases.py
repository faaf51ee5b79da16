"""The comparison of bases: hand-computed ranks and inversions, the files, and an experiment on two tiny models."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import yaml

import reports
import run_bench
from bench.errors import BenchError
from bench.records.schema import BoardRecord
from bench.records.store import read_board, write_board
from bench.run.experiment import load
from reports import bases, plots
from reports.board import build
from tests.conftest import make_checkpoint
from tests.reports.records_factory import board, record, spec
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


def test_ranks_and_inversions_are_hand_computed(tmp_path):
    write_boards(tmp_path)
    built = build(tmp_path)
    (comparison,) = bases.comparisons(built)
    boards = (built, *built.bases)
    ranks = {
        line.label: [bases.rank(one, row) for one, row in zip(boards, line.rows, strict=True)]
        for line in bases.lines(built)
    }
    assert ranks == {"bm25": [1, 1], "lora": [2, 4], "tfidf": [3, 3], "uniform": [4, 2], "closed_book": [None, None]}
    assert comparison.inversions == [("lora", "uniform", True), ("lora", "tfidf", False), ("tfidf", "uniform", False)]
    assert comparison.agreement is not None
    assert comparison.agreement.tau == pytest.approx((3 - 3) / 6)
    assert [comparison.agreement.methods, comparison.agreement.streams] == [4, 4]
    assert comparison.sentences()[1] == (
        "Pairs of methods in the opposite order: 3 of 6; significantly different on both: lora and uniform."
    )


@pytest.mark.usefixtures("no_plots")
def test_the_files_state_scores_ranks_and_inversions(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_boards(runs)
    reports.write_all(runs, out)
    content = json.loads((out / "bases.json").read_text())
    assert (content["bases"], content["headline"]) == (["nano", "plain"], "f1")
    rows = {row["label"]: row["bases"] for row in content["rows"]}
    boards = {
        base: {row["label"]: row for row in json.loads((folder / "leaderboard.json").read_text())["rows"]}
        for base, folder in (("nano", out), ("plain", out / "plain"))
    }
    for label, on_bases in rows.items():
        for base, values in on_bases.items():
            shared = ("f1", "f1_ci95", "rank_low", "rank_high")
            assert {key: values[key] for key in shared} == {key: boards[base][label][key] for key in shared}
    (comparison,) = content["comparisons"]
    low, high = comparison["kendall_tau_b_ci95"]
    assert low <= comparison["kendall_tau_b"] <= high
    assert comparison["inversions"][0] == {
        "better_on_first": "lora",
        "better_on_other": "uniform",
        "significant": True,
    }
    with (out / "bases.csv").open() as file:
        table = {(row["label"], row["base"]): row for row in csv.DictReader(file)}
    assert len(table) == 2 * len(rows) and float(table["lora", "plain"]["f1"]) == rows["lora"]["plain"]["f1"]
    markdown = (out / "bases.md").read_text()
    assert "# demo: world on nano and plain" in markdown and "| lora | uniform | yes |" in markdown
    assert "Kendall's tau-b between the ranks of 4 methods on nano and plain is 0.00 (95 % interval" in markdown


@pytest.mark.usefixtures("no_plots")
def test_the_check_covers_the_comparison_and_the_boards_of_all_bases(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_boards(runs)
    reports.write_all(runs, out)
    assert reports.stale(runs, out) == []
    (out / "bases.md").write_text("changed")
    (out / "plain" / "leaderboard.csv").unlink()
    assert sorted(reports.stale(runs, out)) == ["bases.md", "plain/leaderboard.csv"]
    reports.write_all(runs, out)
    reports.write_all(runs, out, "demo-plain")
    assert not [name for name in bases.FILES if (out / name).exists()], "of an earlier experiment"
    reports.write_all(runs, out, "demo")
    assert {f"bases.{kind}" for kind in ("md", "json", "csv")} <= set(reports.stale(runs, out, "demo-plain"))


def test_a_method_that_diverged_on_one_base_is_shown_and_not_compared(tmp_path):
    write_boards(tmp_path, failed=[("plain", "lora")])
    built = build(tmp_path)
    (comparison,) = bases.comparisons(built)
    assert [label for label, _, _ in comparison.lines] == ["bm25", "tfidf", "uniform"]
    assert comparison.inversions == [("tfidf", "uniform", False)]
    bases.write(built, tmp_path)
    (line,) = (line for line in (tmp_path / "bases.md").read_text().splitlines() if line.startswith("| lora"))
    assert line.endswith("| [diverged on 4 of 4] |  |")


def test_a_base_on_which_everything_diverged_is_shown_without_a_correlation(tmp_path):
    write_boards(tmp_path, failed=[("plain", method) for method in LEVELS["plain"]])
    built = build(tmp_path)
    assert len(bases.write(built, tmp_path)) == len(bases.FILES)
    assert "There is no rank correlation between nano and plain" in (tmp_path / "bases.md").read_text()


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
    rows = [[row.config.get("k") for row in line.rows] for line in bases.lines(built)]
    assert sorted(rows, key=str) == [[1, 1], [1, 2], [None, None]]


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
        bases.lines(build(tmp_path))


def test_all_tied_methods_have_no_correlation(tmp_path):
    levels = {model: {"closed_book": 0.1, "uniform": 0.2} for model in LEVELS}
    write_boards(tmp_path, levels)
    (comparison,) = bases.comparisons(build(tmp_path))
    assert comparison.agreement is None and "There is no rank correlation" in comparison.sentences()[0]


class Pool(Inline):
    """Runs the cells in this process, with the interface of the pool of the command line."""

    def __init__(self, jobs: int | None) -> None:
        super().__init__()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class TestExperiment:
    @pytest.fixture
    def path(self, tmp_path: Path, llama: Path) -> Path:
        """An experiment of three methods on two tiny models."""
        other = make_checkpoint(tmp_path / "models" / "other", "llama", seed=1)
        plan = make_experiment(
            make_dataset(tmp_path / "keepers"),
            llama,
            [
                "closed_book",
                {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}},
                {"name": "bm25", "config": {"k": 1}},
            ],
            bases=[str(other)],
            streams={"split": "test", "documents": 2, "count": 2},
            tuning={"split": "validation", "documents": 1, "count": 1, "metric": "token_nll", "trials": 2},
            anchor={},
        )
        path = tmp_path / "keepers.yaml"
        path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
        return path

    def call(self, *arguments: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["run_bench.py", *arguments])
            with pytest.raises(SystemExit) as end:
                run_bench.main()
        return int(end.value.code or 0)

    @pytest.mark.usefixtures("no_plots")
    def test_the_command_runs_both_bases_and_prints_the_correlation(self, path, llama, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("bench.run.executor.LocalPool", Pool)
        runs, out = tmp_path / "runs", tmp_path / "out"
        folders = ("--runs", str(runs), "--out", str(out))
        assert self.call("run", str(path), *folders) == 0
        printed = capsys.readouterr().out
        assert f"keepers: keepers, {llama.name}" in printed and "keepers-other: keepers, other" in printed
        assert f"keepers: keepers on {llama.name} and other" in printed
        assert (
            f"between the ranks of 2 methods on {llama.name} and other" in printed or "no rank correlation" in printed
        )
        boards = [read_board(runs, name) for name in ("keepers", "keepers-other")]
        assert [one.bases for one in boards] == [["keepers-other"], []]
        assert not set(boards[0].runs) & set(boards[1].runs) and all(one.tuning for one in boards)
        assert boards[0].tuning != boards[1].tuning, "tuned on each base"
        models = [
            json.loads((folder / "leaderboard.json").read_text())["rows"][0]["model"] for folder in (out, out / "other")
        ]
        assert models == [llama.name, "other"]
        assert self.call("report", "--check", *folders) == 0
        assert read_board(runs).experiment == "keepers", "the board that report shows by default"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"bases": ["b/nano"]}, "bases: b/nano has the same name, nano, as another base model of ours"),
            ({"bases": ["a/x", "b/x"]}, "bases: a/x has the same name, x, as another"),
            ({"bases": ["."]}, "bases: '.' does not end in a name"),
            ({"bases": ["models/.."]}, r"bases: 'models/..' does not end in a name"),
        ],
    )
    def test_bases_of_one_name_or_of_none_are_refused(self, tmp_path, changes, message):
        experiment = make_experiment(tmp_path, Path("nano"), ["closed_book"], name="ours", **changes)
        with pytest.raises(BenchError, match=message):
            experiment.on_each_base()

    def test_the_first_base_can_be_replaced(self, tmp_path):
        experiment = make_experiment(tmp_path, Path("nano"), ["closed_book"], name="ours", bases=["plain"])
        experiment.override({"model": "hub/large-1.5"})
        first, other = experiment.on_each_base()
        assert [(one.name, one.model, one.bases) for one in (first, other)] == [
            ("ours", "hub/large-1.5", ["plain"]),
            ("ours-plain", "plain", []),
        ]

    def test_a_missing_base_is_found_before_any_work(self, path, tmp_path, capsys):
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, "bases": ["no/such model"]}))
        assert self.call("run", str(path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")) == 2
        assert "There is no model 'no/such model'" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


def test_the_experiment_shares_its_cells_with_the_default():
    ours, default = load("bases"), load("default")
    different = {"name", "description", "methods", "bases"}
    assert ours.model_dump(exclude=different) == default.model_dump(exclude=different)
    planned = [(plan.name, plan.config, plan.space, plan.seeds) for plan in default.methods]
    assert all((plan.name, plan.config, plan.space, plan.seeds) in planned for plan in ours.methods)
    assert {plan.name for plan in ours.methods} == {
        plan.name for plan in default.methods if "training" not in plan.config
    }
