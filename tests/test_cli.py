"""The command line as users see it: output, exit codes, error messages, interrupts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.world import PLUGIN, make_dataset, make_experiment

RUN_BENCH = [sys.executable, str(ROOT / "run_bench.py")]


def bench(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN_BENCH, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An experiment file: three methods on two streams of five documents, one of them tuned."""
    folder = tmp_path_factory.mktemp("experiment")
    plan = make_experiment(
        make_dataset(folder / "keepers"),
        llama,
        ["closed_book", "gold_in_prompt", {"name": "uniform", "grid": {"learning_rate": [1e-3, 1e-2]}}],
    )
    path = folder / "keepers.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
    return path


def board(out: Path) -> list[dict[str, object]]:
    """The rows of a board, without measurements of time and memory."""
    rows = json.loads((out / "leaderboard.json").read_text())["rows"]
    return [{k: v for k, v in row.items() if "seconds" not in k and "bytes" not in k} for row in rows]


def test_list_takes_under_half_a_second_and_imports_no_torch() -> None:
    bench("list")  # warm the file cache
    times = []
    for _ in range(5):
        before = os.times()
        process = bench("list")
        after = os.times()  # processor time, to which other work on the machine does not add
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert process.returncode == 0
    for name in ("closed_book", "gold_in_prompt", "uniform", "newsworld", "squad", "text", "default", "nano-lm"):
        assert name in process.stdout
    assert min(times) < 0.5, f"the fastest of five calls took {min(times):.2f} s"
    code = "import sys, run_bench; sys.argv = ['x', 'list']; run_bench.main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_a_run_prints_the_board_and_writes_the_files_and_is_not_repeated(experiment: Path, tmp_path: Path) -> None:
    arguments = ("run", str(experiment), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    first = bench(*arguments)
    assert first.returncode == 0, first.stderr
    assert "uniform" in first.stdout
    assert "SE_stream" in first.stdout
    assert {f"leaderboard.{kind}" for kind in ("json", "md", "csv", "tex")} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    second = bench(*arguments)
    assert second.returncode == 0
    assert "cells" in first.stdout
    assert "cells" not in second.stdout, "the second call only reports"
    assert bench("report", *arguments[2:], "--check").returncode == 0
    (tmp_path / "out" / "leaderboard.md").write_text("changed")
    stale = bench("report", *arguments[2:], "--check")
    assert stale.returncode == 1
    assert "leaderboard.md" in stale.stderr


def test_a_run_killed_at_any_moment_resumes_to_the_same_board(experiment: Path, tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"

    def arguments(folder: Path) -> list[str]:
        folders = ["--runs", str(folder / "runs"), "--out", str(folder / "out")]
        return ["run", str(experiment), "--methods", "closed_book,uniform", *folders]

    assert bench(*arguments(uninterrupted)).returncode == 0
    cells = len(list((uninterrupted / "runs").glob("*-*/run.json")))
    chance = random.Random(os.urandom(8))
    for _ in range(2):
        process = subprocess.Popen(
            [*RUN_BENCH, *arguments(killed)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=ROOT,
        )
        stop_at = chance.randrange(cells)
        while len(list((killed / "runs").glob("*-*/run.json"))) < stop_at and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.random() / 10)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert bench(*arguments(killed)).returncode == 0
    assert board(killed / "out") == board(uninterrupted / "out")


def test_an_interrupt_exits_with_130_and_a_message(experiment: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*RUN_BENCH, "run", str(experiment), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # background jobs of a shell ignore SIGINT, and their child processes inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert "cells" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "Interrupted. Finished cells are kept; the same command resumes from there."


def test_a_method_that_raises_fails_its_cells_and_the_command(experiment: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "failures.py"
    plugin.write_text(PLUGIN)
    process = bench(
        *("run", str(experiment), "--methods", "closed_book,raises,explodes", "--plugin", str(plugin)),
        *("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")),
    )
    assert process.returncode == 1
    assert "2 cell(s) failed" in process.stderr
    reasons = [line.strip() for line in process.stderr.splitlines() if "cannot read this" in line]
    assert len(reasons) == 2 and all(line.startswith("raises on test-") for line in reasons)
    assert all(line.endswith("(stream, document 3): ValueError: cannot read this") for line in reasons)
    assert "diverged" in process.stdout
    assert "failed" in process.stdout
    rows = {row["method"]: row for row in board(tmp_path / "out")}
    assert rows["closed_book"]["f1"] is not None
    assert rows["raises"]["f1"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "defalt"), "No experiment 'defalt'. Did you mean default?"),
        (("run", "default", "--methods", "unifrom"), "Did you mean uniform"),
        (("run", "default", "--dataset", "newsword"), "Did you mean newsworld"),
        (("run", "default", "--set", "uniform.learning_rat=1"), "Did you mean learning_rate"),
        (("run", "default", "--set", "uniform"), "--set takes method.key=value"),
        (("run", "default", "--dtype", "float8"), "dtype = 'float8'"),
        (("run", "squad", "--data-files", "test"), "--data-files takes SPLIT=FILE"),
        (("run", "squad", "--data-files", "test=nowhere.json"), "nowhere.json"),
        (("describe", "uniforn"), "Did you mean uniform"),
        (("list", "method"), "Did you mean methods"),
        (("check", "nothing_like_it"), "nothing_like_it"),
        (("train", "nanno"), "Did you mean nano"),
        (("report", "--runs", "no/such/folder"), "There is no board"),
        (("streams", "verify", "squadd"), "Did you mean squad"),
        (("run", "default", "--set", "uniform.learning_rate=[1"), "is not a YAML value"),
        (("run", "default", "--device", "mps"), "PyTorch finds no mps device"),
        (("run", "default", "--model", "tests"), "without config.json"),
        (("run", "default", "--streams", "9"), "too few for"),
    ],
)
def test_a_wrong_request_gets_an_error_message_without_a_traceback(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    process = bench(*arguments)
    assert process.returncode == 2, process.stdout + process.stderr
    assert message in process.stderr
    assert "Traceback" not in process.stderr


def test_an_unknown_option_is_a_wrong_request() -> None:
    process = bench("run", "default", "--modle", "nano")
    assert process.returncode == 2
    assert "--modle" in process.stderr
    assert "Traceback" not in process.stderr


def test_training_that_diverges_exits_with_1_and_a_remedy(tmp_path: Path) -> None:
    settings = ("learning_rate=1.0e+30", "steps=3", "episodes_per_step=2", "validation_episodes=2")
    process = bench(
        "train", "cmt", *(part for setting in settings for part in ("--set", f"cmt.training.{setting}")),
        "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"),
    )  # fmt: skip
    assert process.returncode == 1
    assert "a lower learning rate may help" in process.stderr
    assert "inside the benchmark" not in process.stderr


def test_debug_shows_the_traceback() -> None:
    process = bench("--debug", "describe", "uniforn")
    assert process.returncode == 2
    assert "Traceback" in process.stderr


@pytest.mark.parametrize("name", ["uniform", "newsworld", "default"])
def test_describe_shows_methods_data_sets_and_experiments(name: str) -> None:
    process = bench("describe", name)
    assert process.returncode == 0
    assert {"uniform": "learning_rate", "newsworld": "licence", "default": "streams"}[name] in process.stdout


def test_doctor_lists_what_is_installed() -> None:
    process = bench("doctor")
    assert process.returncode == 0
    assert "torch" in process.stdout
