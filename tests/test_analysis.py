"""docs/analysis.md: its examples run, are short, and give the numbers of records that were made by hand."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT
from tests.reports.records_factory import board, record, spec, token_event
from tests.world import make_dataset, make_experiment

PAGE = (ROOT / "docs" / "analysis.md").read_text()
BLOCKS = re.findall(r"(?<!<!-- runs -->\n)```python\n(.*?)```", PAGE, flags=re.DOTALL)
LOAD, BEST, WON, FOUND, EARLY, LATER, WEIGHTS = BLOCKS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with records of three methods on two streams of ten documents, and the dataset that they are of."""
    ids, runs = [], tmp_path / "runs"
    for k in range(2):
        nll = [4.0] * 5 + [2.0 - k] * 5
        ids.append(record(runs, spec("closed_book", f"test-10-{k}"), [[0.0]] * 10, [4.0] * 10))
        camels = [[1.0]] * (5 + k) + [[0.0]] * (5 - k)
        tokens = [token_event(0, "noon* is Pier~", [3.0, 1.5, 0.75])]
        ids.append(record(runs, spec("camels", f"test-10-{k}"), camels, nll, tokens))
        ids.append(record(runs, spec("bm25", f"test-10-{k}"), [[0.5]] * 8 + [[0.0]] * 2, [4.0] * 10, retrieved=1))
    board(runs, ids)
    recipe = make_dataset(tmp_path / "world") / "dataset.yaml"
    recipe.write_text(recipe.read_text().replace("name: keepers", "name: world"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def value_of(*blocks: str) -> pd.DataFrame:
    """The value of the last expression of the last block, after those before it."""
    *statements, last = ast.parse("".join(blocks)).body
    names: dict[str, object] = {}
    exec(compile(ast.Module(statements, []), "analysis.md", "exec"), names)
    assert isinstance(last, ast.Expr)
    value = eval(compile(ast.Expression(last.value), "analysis.md", "eval"), names)
    assert isinstance(value, pd.DataFrame)
    return value


def test_each_question_is_answered_in_under_ten_lines() -> None:
    assert len(BLOCKS) == 7 and PAGE.count("?\n\n```python") == 6
    assert max(len(block.splitlines()) for block in BLOCKS) < 10


def test_the_rows_are_loaded(work: Path) -> None:
    rows = value_of(LOAD).set_index("label")
    assert rows.f1.to_dict() == pytest.approx({"camels": 0.55, "bm25": 0.4, "closed_book": 0.0})


def test_methods_that_may_be_the_best(work: Path) -> None:
    best = value_of(LOAD, BEST)
    assert list(best.label) == ["camels", "bm25"]
    assert list(best.rank_low) == [1, 1] and list(best.rank_high) == [2, 2]


def test_questions_that_one_method_wins(work: Path) -> None:
    won = value_of(LOAD, WON)
    assert len(won) == 11 and set(won.prediction) == {"w0"} and set(won.prediction_other) == {"not0"}


def test_retrieval_or_reading(work: Path) -> None:
    found = value_of(LOAD, WON, FOUND)
    assert found["size"].to_dict() == {("bm25", "found"): 16, ("bm25", "missed"): 4}
    assert found["mean"].to_dict() == {("bm25", "found"): 0.5, ("bm25", "missed"): 0.0}


def test_the_first_documents_at_the_end_of_the_stream(work: Path) -> None:
    tenths = value_of(LOAD, WON, EARLY)
    assert list(tenths.index) == list(range(10))
    assert list(tenths.camels) == [1.0] * 5 + [0.5] + [0.0] * 4 and list(tenths.closed_book) == [0.0] * 10


def test_nll_along_the_stream(work: Path) -> None:
    """The quarters are documents 0 to 2, 3 and 4, 5 to 7, and 8 and 9. The last five have 2 nats, or 1, by stream."""
    quarters = value_of(LOAD, LATER)
    assert list(quarters.camels) == [4.0, 4.0, 1.5, 1.5] and list(quarters.closed_book) == [4.0] * 4


def test_weights_of_facts(work: Path) -> None:
    weights = value_of(LOAD, WEIGHTS)
    assert weights.loc["camels"].to_dict() == {"fact": 2.0, "filler": 1.0, "name": 0.5}


@pytest.mark.slow
def test_a_script_without_a_guard_runs_an_experiment_and_has_its_results(tmp_path: Path, llama: Path) -> None:
    """And from another folder than that of the project."""
    plan = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["closed_book", "gold_in_prompt"])
    (tmp_path / "keepers.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
    script = tmp_path / "script.py"
    script.write_text(
        "from run_bench import run\n"
        "results = run('keepers.yaml', methods=['closed_book'], columns=['f1'], runs='records', out='tables')\n"
        "answers = results.answers\n"
        "print(sorted(set(answers.label)), len(answers), results.rows.f1[0] == answers.f1.mean())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("['closed_book'] 10 True"), done.stdout
    assert list(tmp_path.glob("records/closed_book-*/run.json")) and list(tmp_path.glob("tables/**/leaderboard.json"))
