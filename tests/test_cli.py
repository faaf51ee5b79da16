"""The command line as users see it: output, exit codes, error messages, interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

import run_bench
from bench import paths
from bench.conformance.verdict import Verdict
from bench.errors import BenchError, RunError
from bench.help.readiness import Measured
from bench.records.published import publish
from bench.run.experiment import EqualCompute, Experiment
from bench.run.pace import Pace
from tests.conftest import ROOT
from tests.reports.reproduction.planted import in_published_order
from tests.world import PLUGIN, make_dataset, make_experiment, started, wait_until

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


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """As :func:`bench`, in this process: seconds less."""
    capsys.readouterr()
    with (
        mock.patch.object(sys, "argv", ["run_bench.py", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),  # --device hides GPUs from this process
        contextlib.chdir(ROOT),
        pytest.raises(SystemExit) as end,
    ):
        run_bench.main()
    assert isinstance(end.value.code, int)
    return subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An experiment file: three methods on two streams of five documents, one of them tuned."""
    folder = tmp_path_factory.mktemp("experiment")
    plan = make_experiment(
        make_dataset(folder / "keepers"),
        llama,
        ["closed_book", "gold_in_prompt", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}}],
    )
    path = folder / "keepers.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
    return path


@pytest.fixture(scope="module")
def finished(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the records and the tables of the experiment, and what its run printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = bench("run", str(experiment), "--runs", str(folder / "runs"), "--out", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def board(out: Path) -> list[dict[str, object]]:
    """The rows of the only board under ``out``, without measurements of time and memory."""
    (path,) = out.rglob("leaderboard.json")
    rows = json.loads(path.read_text())["rows"]
    measured = ("seconds", "bytes", "break_even", "runs")
    return [{k: v for k, v in row.items() if not any(name in k for name in measured)} for row in rows]


def test_list_and_describe_name_what_there_is_and_import_no_slow_package() -> None:
    code = "import sys, run_bench\nfor command in (['list'], ['describe', 'default']):\n"
    code += "    run_bench.app(command, standalone_mode=False)\n"
    code += "assert not {'torch', 'transformers', 'datasets', 'pandas'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in ("closed_book", "gold_in_prompt", "uniform", "newsworld", "squad", "text", "default", "nano-lm"):
        assert name in done.stdout


def test_a_run_prints_the_board_and_writes_the_files_and_is_not_repeated(
    experiment: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed = finished
    assert "cells" in printed and "uniform" in printed and "SE_stream" in printed
    assert {f"leaderboard.{kind}" for kind in ("json", "md", "csv", "tex", "txt")} <= {
        path.name for path in (folder / "out").iterdir()
    }
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    folders = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    second = call(capsys, "run", str(experiment), *folders)
    assert second.returncode == 0
    assert "cells" not in second.stdout, "the second call only reports"
    assert call(capsys, "report", *folders, "--check").returncode == 0
    (tmp_path / "out" / "leaderboard.md").write_text("changed")
    stale = call(capsys, "report", *folders, "--check")
    assert stale.returncode == 1
    assert "leaderboard.md" in stale.stderr and "The same command without --check rebuilds them." in stale.stderr


def test_a_run_killed_at_any_moment_resumes_to_the_same_board(
    experiment: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    uninterrupted = finished[0]
    arguments = ("run", str(experiment), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    cells = len(list((uninterrupted / "runs").glob("*-*/run.json")))
    seed = os.urandom(8).hex()
    chance = random.Random(seed)

    def kill_after(stop_at: int) -> None:
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with started([*RUN_BENCH, *arguments], cwd=ROOT, **output) as process:
            records = (tmp_path / "runs").glob
            wait_until(lambda: len(list(records("*-*/run.json"))) >= stop_at or process.poll() is not None)
            time.sleep(chance.random() / 10)
            assert process.poll() is None, f"it ended before it was killed, with the seed {seed}"

    for stop_at in sorted(chance.sample(range(1, cells - 2), 2)):
        kill_after(stop_at)
    assert bench(*arguments).returncode == 0, f"with the seed {seed}"
    assert board(tmp_path / "out") == board(uninterrupted / "out"), f"with the seed {seed}"


def test_an_interrupt_exits_with_130_and_a_message(experiment: Path, tmp_path: Path) -> None:
    folders = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    command = [*RUN_BENCH, "run", str(experiment), "--jobs", "1", *folders]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert any("cells" in line for line in process.stdout)
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
        (("check",), "check needs a method's name"),
        (("check", "--explain", "reset_forgot"), "There is no check called 'reset_forgot'"),
        (("train", "nanno"), "Did you mean nano"),
        (("model", "get", "smolm"), "There is no pretrained base 'smolm' to get"),
        (("report", "--runs", "no/such/folder"), "There is no board"),
        (("streams", "verify", "squadd"), "Did you mean squad"),
        (("reproduce", "retenton"), "No figure 'retenton'. Did you mean retention"),
        (("reproduce", "retention", "--scale", "tini"), "retention has no scale 'tini'. Did you mean tiny?"),
        (("run", "default", "--set", "uniform.learning_rate=[1"), "the value is not valid YAML"),
        (("run", "default", "--device", "mps"), "PyTorch finds no mps device"),
        (("run", "default", "--devices", "0,1"), "PyTorch finds no cuda device"),
        (("run", "default", "--devices", "0", "--device", "cpu"), "--devices 0 numbers GPUs, but --device is cpu"),
        (("run", "default", "--devices", "0", "--device", "cuda:1"), "leave one of the two out"),
        (("--dry-run", "run", "default"), "put --dry-run after the command"),
        (("--quick", "list"), "--quick and --dry-run before a command are for a call without one"),
        (
            ("run", "default", "--devices", "0", "--executor", "ray", "--ray-address", "a:1"),
            "A cluster gives each worker",
        ),
        (
            ("train", "cmt", "--executor", "ray", "--ray-address", "a:1", "--device", "cuda:1"),
            "A cluster gives each worker",
        ),
        (("doctor", "--streams", "2"), "Name the experiment that these options are for"),
        (("streams", "verify", "squad", "--data-files", "sqad.test=README.md"), "squad has no dataset 'sqad'"),
        (("run", "default", "--device", "cuda:x"), "A GPU has a number, as in cuda:1 or --devices 0,1: 'x' is none."),
        (("run", "default", "--model", "tests"), "without config.json"),
        (("run", "default", "--streams", "99"), "too few for"),
        (("run", "default", "--modle", "nano"), "--modle"),
        (("train", "cmt", "--executor", "slurm"), "train takes --executor local or ray"),
        (("report", "--html", "--check"), "leave --html out"),
        (("report", "--check", "--track", "tensorboard"), "leave --check out"),
        (("report", "default", "squad"), "name one experiment, or add --html"),
        (("run", "squad", "--data-files", "squad=/no"), "there is no folder '/no', and no split 'squad'. Known: "),
        (("run", "squad", "--data-files", "tets=no.json"), "no split 'tets'. Did you mean test?"),
        (("run", "squad", "--data-files", "/no"), "or a folder that exists, got '/no'"),
        (("tune-qa", "nano", "--data-files", "squad=/no"), "--data-files squad=/no: there is no folder '/no'."),
        (("tune-qa", "nano", "--data-files", "README.md"), "--data-files takes DATASET=FOLDER here"),
        (
            ("tune-qa", "nano", "--dataset", "streamingqa"),
            "'qa_train': give tune-qa the files with --data-files streamin",
        ),
    ],
)
def test_a_wrong_request_gets_an_error_message_without_a_traceback(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    done = call(capsys, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "0/4"), "--shard takes K/N, the K-th of N parts with K from 1 to N"),
        (("--shard", "5/4"), "such as 3/16; got '5/4'"),
        (("--shard", "4"), "such as 3/16; got '4'"),
        (("--shard", "a/b"), "such as 3/16; got 'a/b'"),
        (("--methods", ""), "--methods names no method"),
        (("--methods", ","), "--methods names no method"),
        (("--methods", " , ,"), "--methods names no method"),
        (("--plugin", "PLUGIN"), "failures.py is in the experiment: name raises or explodes"),
        (("--methods", "closed_book", "--plugin", "PLUGIN"), "leave the plug-in out"),
        (("--out", "PLUGIN"), "cannot be written (File exists): name another folder with --out"),
        (("--out", "PLUGIN/out"), "name another folder with --out"),
        (("--out", "/proc/out"), "name another folder with --out"),
        (("--runs", "PLUGIN"), "cannot be written (File exists): name another folder with --runs"),
        (("--runs", "PLUGIN/a/b"), "name another folder with --runs"),
        (("--runs", "/proc/runs"), "name another folder with --runs"),
        (("--validation-documents", "9"), "'validation' of keepers has 8 documents"),
        (("--trials", "0"), "--trials"),
        (("--equal-compute", "0"), "--equal-compute"),
        (("--equal-compute", "2"), "give the experiment a tuning plan by F1"),
        (("--methods", "closed_book", "--equal-compute", "2"), "a tuning plan by F1"),
        (("--documents", "9"), "--validation-documents"),
        (("--set", "uniform.learning_rate=.inf"), "uniform.learning_rate = inf: Input should be a finite number"),
        (("--set", "uniform.learning_rate=-.inf"), "uniform.learning_rate = -inf: Input should be a finite number"),
        (("--set", "uniform.learning_rate=.nan"), "uniform.learning_rate = nan: Input should be a finite number"),
        (("--set", "uniform.learning_rate={1: 2}"), "a key is not text"),
        (("--reference", "unifrom"), "keepers has no such method. Did you mean uniform?"),
        (("--executor", "rya"), "--executor takes local, ray or slurm, not 'rya'"),
        (("--executor", "slurm"), "--executor slurm needs --shards N"),
        (("--ray-address", "a:1"), "--ray-address needs --executor ray"),
    ],
)
def test_a_wrong_request_for_a_run_is_found_before_any_work(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    plugin = tmp_path / "failures.py"
    plugin.write_text(PLUGIN)
    folders = {"--runs": str(tmp_path / "runs"), "--out": str(tmp_path / "out")}
    options = [argument.replace("PLUGIN", str(plugin)) for argument in arguments]
    rest = [part for option in folders.items() if option[0] not in options for part in option]
    done = call(capsys, "run", str(experiment), *options, *rest)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*")) and not list(tmp_path.glob("out/*"))


def test_a_reference_that_stands_for_several_rows_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "run", "default", "--reference", "dynamic_evaluation", "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2 and "has several rows of this method" in done.stderr
    assert not list(tmp_path.iterdir())


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"},
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: " ".join(encoding.values()))
def test_a_terminal_prints_a_question_mark_for_what_its_encoding_lacks(
    tmp_path: Path, encoding: dict[str, str]
) -> None:
    plugin = tmp_path / "raiser.py"
    text = PLUGIN.replace('"""Fails on the third document."""', '"""Liest 大阪."""', 1)
    plugin.write_text(text, encoding="utf-8")
    done = bench("list", "methods", "--plugin", str(plugin), **encoding)
    assert done.returncode == 0, done.stderr
    assert "Liest ??." in done.stdout and "Traceback" not in done.stderr
    wrong = bench("list", "大", **encoding)
    assert wrong.returncode == 2 and "There is no list of '" in wrong.stderr


def test_the_list_of_experiments_says_what_each_asks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = call(capsys, "list", "experiments").stdout.splitlines()
    assert {*paths.experiments()} <= {line.split()[0] for line in lines if line.strip()}
    (evolving,) = (line for line in lines if line.startswith("evolving "))
    assert evolving.split(maxsplit=1)[1].startswith("Answers that change: a third of the facts")


def planned_only(monkeypatch: pytest.MonkeyPatch, note: Callable[..., object]) -> None:
    """Let a run of an experiment end where its cells would run, and ``note`` what would run them."""
    monkeypatch.setattr(run_bench, "_run_cells", lambda *given: [note(*given)][1:])
    monkeypatch.setattr(run_bench, "_report", lambda *_: None)
    monkeypatch.setattr("bench.load_results", lambda *_: None, raising=False)


def test_quick_is_the_default_with_fewer_streams_trials_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Experiment, list[str]]] = []

    def note(experiment: Experiment, *others: Any) -> None:
        runs.append((experiment, list(others[4])))

    planned_only(monkeypatch, note)
    for arguments in (["--quick"], []):
        run_bench.app(arguments, standalone_mode=False)
    (quick, remarks), (default, none) = runs
    assert (quick.name, default.name) == ("default+quick", "default")
    assert quick.tuning is not None and default.tuning is not None
    assert (quick.streams.count, quick.tuning.trials, quick.seeds) == (2, 3, [0])
    assert (default.streams.count, default.tuning.trials) == (8, 8)
    assert all(plan.seeds is None for plan in quick.methods) and any(plan.seeds for plan in default.methods)
    assert (
        remarks == ["Changed for this run: seed 0, streams 2, documents 60, validation_documents 30, trials 3."]
        and none == []
    )


def test_a_variation_leaves_the_board_of_its_experiment_as_it_is(
    experiment: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    folders = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    arguments = ("run", str(experiment), "--methods", "closed_book")

    def files(*parts: str) -> dict[str, bytes]:
        paths = (path for path in tmp_path.joinpath(*parts).iterdir() if path.is_file())
        return {path.name: path.read_bytes() for path in paths}

    before = files("out"), files("runs", "boards")
    hashed = call(capsys, *arguments, "--streams", "1", *folders)
    named = call(capsys, *arguments, "--name", "mine", *folders)
    assert hashed.returncode == named.returncode == 0, hashed.stderr + named.stderr
    assert (files("out"), {name: files("runs", "boards")[name] for name in before[1]}) == before
    (variation,) = (path.name for path in (tmp_path / "out").iterdir() if path.is_dir() and "mine" not in path.name)
    assert re.fullmatch(r"keepers\+[0-9a-f]{8}", variation)
    for name, process in ((variation, hashed), ("keepers+mine", named)):
        assert files("out", name).keys() >= {"leaderboard.md", "f1_by_method.png"}
        assert f"Tables and plots are in {tmp_path}/out/{name}/" in process.stdout
    assert "keepers+mine: keepers" in call(capsys, "report", *folders).stdout, "the latest one"
    assert "keepers: keepers" in call(capsys, "report", "keepers", *folders).stdout
    assert call(capsys, "report", variation, *folders, "--check").returncode == 0
    wrong = call(capsys, "report", "keepers+min", *folders)
    assert wrong.returncode == 2 and "Did you mean keepers+mine" in wrong.stderr
    listed = call(capsys, "list", "boards", *folders[:2])
    assert listed.stdout.split() == ["boards", "keepers,", f"{variation},", "keepers+mine"], "the newest last"


def test_a_dry_run_says_what_would_run_and_runs_nothing(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ("--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    process = call(capsys, "run", str(experiment), *folders, "--dry-run")
    assert process.returncode == 0, process.stderr
    rows = [line.split() for line in process.stdout.splitlines()]
    assert ["closed_book", "0", "0", "2", "0", "?", "?"] in rows
    assert "Nothing was run." in process.stdout and "Time and memory are unknown" in process.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_figure_runs_what_is_missing_and_sets_the_published_values_beside_ours(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = {
        "title": "Uniform fine-tuning",
        "paper": "tack2024mac",
        "shows": "F1 and costs.",
        "drawing": "bars",
        "scores": {"observe_seconds": "adaptation time of 1,665 documents"},
        "methods": {
            "uniform": {"method": "uniform", "published": ["Uniform"]},
            "without adaptation": {"method": "closed_book"},
            "others": {"published": ["Salient", "MAC"]},
            "CaMeLS": {"method": "camels", "published": ["CaMeLS"]},
        },
        "published": [{"paper": "tack2024mac", "table": "efficiency figure (b)"}],
        "scales": {"tiny": [{"experiment": str(experiment), "methods": ["closed_book", "uniform"], "streams": 1}]},
        "differences": ["Everything."],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(figure))
    arguments = ("reproduce", str(path), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    clashing = call(capsys, *arguments)
    assert clashing.returncode == 2 and "two published values are on StreamingQA in one place" in clashing.stderr
    figure["methods"] |= {"others": {"published": ["Salient"]}, "MAC": {"published": ["MAC"]}}  # type: ignore[operator]
    path.write_text(yaml.safe_dump(figure))
    planned = call(capsys, *arguments, "--dry-run")
    assert planned.returncode == 0 and "Nothing was run." in planned.stdout, planned.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]
    plugin = tmp_path / "failures.py"
    plugin.write_text(PLUGIN)
    unused = call(capsys, *arguments, "--dry-run", "--plugin", str(plugin))
    assert unused.returncode == 2 and f"mine uses no method of --plugin {plugin}: leave it out." in unused.stderr
    plugin.unlink()
    drawn = bench(*arguments)
    assert drawn.returncode == 0, drawn.stderr
    assert "cells" in drawn.stdout and "cells" not in call(capsys, *arguments).stdout, "the second call only draws"
    assert "Nothing can be compared: no two of the paper's methods are there with results." in drawn.stdout
    folder = tmp_path / "out" / "figures" / "mine"
    assert {path.name for path in folder.iterdir()} >= {"figure.md", "observe_seconds.png", "observe_seconds.pdf"}
    assert "Left out here: CaMeLS (not run at this scale)." in (folder / "figure.md").read_text()


def test_a_figure_is_drawn_from_published_records_without_running_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_published_order(tmp_path / "runs")
    packed = publish(tmp_path / "runs", "default", tmp_path / "published").parent
    run_bench.reproduce("costs", runs=packed, out=tmp_path / "out", dry_run=True)
    assert f"Nothing was run: {packed} holds published records." in capsys.readouterr().out.replace("\n", "")
    run_bench.reproduce("costs", runs=packed, out=tmp_path / "out")
    assert "Shapes of 2 published panels: not resolved at this size (2)." in capsys.readouterr().out
    assert (tmp_path / "out" / "figures" / "costs" / "observe_seconds.png").exists()


def test_the_files_of_a_figure_go_to_the_runs_of_their_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "test.jsonl").write_text("")
    figure = ("reproduce", "relative-change", "--scale", "small", "--dry-run", "--data-files")
    unnamed = call(capsys, *figure, str(tmp_path / "news"))
    assert "--data-files test: relative-change has several datasets. Write newsworld=FOLDER" in unnamed.stderr
    wrong = call(capsys, *figure, f"sqaud={tmp_path / 'news'}")
    assert "relative-change has no dataset 'sqaud'. Did you mean squad?" in wrong.stderr
    named = call(capsys, *figure, f"realtimeqa={tmp_path / 'news'}", "--runs", str(tmp_path / "runs"))
    assert "has no dataset" not in named.stderr and "default" in named.stdout, "the first run needs no files"


EVIL = "\x1b[31mred\x07\x9b2J"


def test_no_control_character_reaches_the_terminal(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of the names of models, files and methods, of predictions, or of errors of a method."""
    model = tmp_path / f"llama{EVIL}"
    shutil.copytree(llama, model)
    plugin = tmp_path / f"evil{EVIL}.py"
    source = PLUGIN.replace("Fails on the third document.", "Fails \\x1b[31m\\x9b2J").replace("cannot read this", EVIL)
    plugin.write_text(source, encoding="utf-8")
    plan = make_experiment(make_dataset(tmp_path / "keepers"), model, ["closed_book", "raises"])
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
    folders = ("--runs", str(tmp_path / f"runs{EVIL}"), "--out", str(tmp_path / f"out{EVIL}"))
    processes = [
        bench("run", str(path), "--plugin", str(plugin), *folders),
        call(capsys, "run", str(path), "--plugin", str(plugin), *folders, "--dry-run"),
        call(capsys, "report", EVIL, *folders),
        call(capsys, "list", "methods", "--plugin", str(plugin)),
        call(capsys, "list", EVIL),
        call(capsys, "describe", str(plugin)),
        call(capsys, "--debug", "describe", EVIL),
        call(capsys, "run", "default", f"--{EVIL}"),
        call(capsys, "run", "default", "--streams", EVIL),
    ]
    assert [process.returncode for process in processes] == [1, 0, 2, 0, 2, 0, 2, 2, 2]
    for process in processes:
        text = process.stdout + process.stderr
        assert not {character for character in text if unicodedata.category(character) == "Cc"} - {"\n"}, text
    assert "llama␛[31mred␇�2J" in processes[0].stdout and "ValueError: ␛[31mred" in processes[0].stderr


def test_options_of_tuning_and_seeds_reach_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Experiment] = []
    planned_only(monkeypatch, lambda experiment, *_: runs.append(experiment))
    run_bench.app(["run", "default", "--trials", "2", "--seed", "4", "--equal-compute", "3"], standalone_mode=False)
    (experiment,) = runs
    assert experiment.tuning is not None and experiment.tuning.trials == 2
    assert experiment.seeds == [4]
    assert experiment.equal_compute == EqualCompute(method="uniform", steps=3)


@pytest.mark.parametrize(
    ("options", "visible"),
    [({"device": "cuda:1"}, "1"), ({"devices": "0,1"}, "0,1"), ({"device": "cuda", "devices": "0"}, "0")],
)
def test_the_gpus_that_are_not_named_are_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: dict[str, str], visible: str
) -> None:
    seen: list[tuple[str | None, ...]] = []

    def note(experiment: Experiment, *_: object, **__: object) -> None:
        variables = (os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"))
        seen.append((experiment.device, *variables))

    planned_only(monkeypatch, note)
    named = (part for name, value in options.items() for part in (f"--{name}", value))
    assert call(capsys, "run", "default", *named).returncode == 0
    with mock.patch.dict(os.environ):
        run_bench.run("default", **options)  # type: ignore[arg-type]
    assert seen == [("cuda", visible, "PCI_BUS_ID")] * 2


def test_a_function_has_no_command_line_that_jobs_could_repeat(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mine.py", "run", "default"])
    with pytest.raises(BenchError, match="a function has none: run this from a shell"):
        run_bench.run(str(experiment), executor="slurm", shards=2, runs=tmp_path / "runs", out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_next_command_finds_a_new_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "methods").mkdir()

    def next_check(*options: str) -> str:
        run_bench.app(["new", "method", "idea", *options], standalone_mode=False)
        return capsys.readouterr().out.rstrip().rpartition(" check ")[2]

    monkeypatch.chdir(tmp_path)
    assert next_check() == "idea.py" and Path("idea.py").is_file(), "no methods are read from a folder of others"
    assert next_check("--folder", "methods") == "methods/idea.py"
    monkeypatch.setattr("bench.paths.ROOT", tmp_path)
    Path("methods", "idea.py").unlink()
    assert next_check() == "idea" and Path("methods", "idea.py").is_file()


def test_training_that_diverges_exits_with_1_and_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("learning_rate=1.0e+30", "steps=3", "episodes_per_step=2", "validation_episodes=2")
    process = call(
        capsys, "train", "cmt", *(part for setting in settings for part in ("--set", f"cmt.training.{setting}")),
        "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"),
    )  # fmt: skip
    assert process.returncode == 1
    assert "a lower learning rate may help" in process.stderr
    assert "inside the benchmark" not in process.stderr


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    process = call(capsys, "--debug", "describe", "uniforn")
    assert process.returncode == 2
    assert "Traceback" in process.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            KeyError("gone"),
            "Error: an error inside the benchmark itself (KeyError: 'gone'). python run_bench.py --debug",
        ),
        (OSError(28, "No space left on device"), "Error: [Errno 28] No space left on device"),
    ],
)
def test_an_error_that_nobody_expects_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("bench.help.describe.describe", fail)
    plain, debug = (call(capsys, *option, "describe", "uniform") for option in ((), ("--debug",)))
    assert plain.returncode == debug.returncode == 1
    assert plain.stderr.startswith(message) and plain.stderr.count("\n") == 1
    assert ", in fail\n" in debug.stderr and plain.stderr in debug.stderr


def test_an_error_of_a_method_outside_of_its_runs_names_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "needy.py"
    plugin.write_text(
        "from bench import Method\n\n\nclass Needy(Method):\n    'Needs.'\n\n    name = 'needy'\n    paper = 'none'\n\n"
        "    @classmethod\n    def search_space(cls, config):\n        return {'k': Range(low=1, high=2)}\n\n"
        "    def observe(self, document):\n        pass\n"
    )
    process = call(capsys, "describe", "needy", "--plugin", str(plugin))
    assert process.returncode == 1
    expected = f"Error: an error in {plugin}, line 12 (NameError: name 'Range' is not defined). "
    assert process.stderr.startswith(expected) and "report it" not in process.stderr


@pytest.mark.parametrize("name", ["uniform", "newsworld", "default"])
def test_describe_shows_methods_data_sets_and_experiments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    process = call(capsys, "describe", name)
    assert process.returncode == 0
    assert {"uniform": "learning_rate", "newsworld": "licence", "default": "streams"}[name] in process.stdout


@pytest.mark.parametrize(("name", "part"), [("uniform", "Nathan Hu"), ("bench/models/nano", "LlamaForCausalLM")])
def test_describe_shows_papers_and_what_is_at_a_path(capsys: pytest.CaptureFixture[str], name: str, part: str) -> None:
    run_bench.app(["describe", name], standalone_mode=False)
    assert part in capsys.readouterr().out


def test_check_explains_its_checks_without_torch() -> None:
    code = "import sys, run_bench\nfor name in ([], ['reset_forgets']):\n"
    code += "    run_bench.app(['check', '--explain', *name], standalone_mode=False)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "\nreset_forgets   " in done.stdout and "Right:" in done.stdout


def test_a_failing_check_points_to_its_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [Verdict("reset_forgets", "x", passed=False), Verdict("reads_odd_documents", "x", passed=True)]
    monkeypatch.setattr("bench.conformance.process.check", lambda *_: verdicts)
    with pytest.raises(RunError, match=r"x does not conform: reset_forgets\. .* check --explain reset_forgets"):
        run_bench.app(["check", "x"], standalone_mode=False)


def test_doctor_lists_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    process = call(capsys, "doctor")
    assert process.returncode == 0
    assert "torch" in process.stdout and "smollm2" in process.stdout


def test_doctor_looks_at_the_folder_that_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    printed = call(capsys, "doctor", "--runs", str(tmp_path / "file")).stdout
    assert f"{tmp_path / 'file'} is not writable; choose another folder with --runs" in printed


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["test=a.jsonl,b.jsonl"], {"test": ["a.jsonl", "b.jsonl"]}),
        (["test=a,b.jsonl"], {"test": ["a,b.jsonl"]}),
        (["test=a.jsonl", "test=a,b.jsonl", "train=b.jsonl"], {"test": ["a.jsonl", "a,b.jsonl"], "train": ["b.jsonl"]}),
        (["test=x=y.jsonl,b.jsonl"], {"test": ["x=y.jsonl", "b.jsonl"]}),
        (["test=" + ",".join(["a.jsonl"] * 99)], {"test": ["a.jsonl"] * 99}),
        (["folder"], {"test": ["folder/test.jsonl.gz"], "train": ["folder/train.json"]}),
        (["folder", "test=a.jsonl"], {"test": ["folder/test.jsonl.gz", "a.jsonl"], "train": ["folder/train.json"]}),
        (["test=folder", "train=a.jsonl"], {"test": ["folder"], "train": ["a.jsonl"]}),
    ],
)
def test_files_of_a_split_are_named_in_a_list_or_by_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], files: dict[str, list[str]]
) -> None:
    import run_bench
    from bench.data import streams

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.jsonl").touch()
    (tmp_path / "folder").mkdir()
    for name in ("train.json", "README.md", "test.jsonl.gz", "tests.json"):
        (tmp_path / "folder" / name).touch()
    asked: list[dict[str, list[str]]] = []
    monkeypatch.setattr(streams, "build_all", lambda recipe, data_files: asked.append(data_files) or [])
    arguments = [item for option in options for item in ("--data-files", option)]
    run_bench.app(["streams", "build", "newsworld", *arguments], standalone_mode=False)
    assert asked == [files]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.json", "tests.json"], "no file is named after a split"),
        (["test.json", "test.csv"], "a second file of the test"),
        (["test.json", "test.json.bak", "val.csv"], r"val\.csv is not named after a split .* Rename it"),
        (["test.json", "Validation.jsonl.gz"], r"Validation\.jsonl\.gz is not named after a split"),
        (["test.json", "test_2.json"], r"test_2\.json is not named after a split .* \(SPLIT=FILE,FILE\)"),
        (["test.json", "qa_train.json", "train-v1.1.json"], r"train-v1\.1\.json is not named after a split"),
        (["20240705_qa.jsonl"], r"no file is named after .*, as those of realtimeqa_weekly and pg19, .*: test="),
    ],
)
def test_a_folder_needs_one_file_for_a_split(tmp_path: Path, names: list[str], message: str) -> None:
    import run_bench
    from bench.errors import BenchError

    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(BenchError, match=message):
        run_bench.app(["streams", "build", "newsworld", "--data-files", str(tmp_path)], standalone_mode=False)


@pytest.mark.parametrize("option", ["test=", "test=a.jsonl,", "=a.jsonl", "a.jsonl"])
def test_an_empty_name_of_a_file_is_refused(option: str) -> None:
    import run_bench
    from bench.errors import BenchError

    with pytest.raises(BenchError, match="--data-files takes SPLIT=FILE"):
        run_bench.app(["streams", "build", "newsworld", "--data-files", option], standalone_mode=False)


def test_doctor_says_what_an_experiment_needs_and_takes(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smaller = ("--streams", "1", "--trials", "2", "--set", "uniform.clip_norm=1")
    result = call(capsys, "doctor", str(experiment), *smaller, "--runs", str(tmp_path / "runs"))
    assert result.returncode == 0, result.stderr
    assert re.search(r"^ok +test +\d+ documents, \d+ questions$", result.stdout, re.MULTILINE)
    assert re.search(r"^note +qa_validation +is not used$", result.stdout, re.MULTILINE)
    assert re.search(r"^uniform +\d+ +0 +\d+ +0 +\d+ s +\d+\.\d GB", result.stdout, re.MULTILINE), "time and memory"
    assert "Time, by a short trial: about " in result.stdout
    assert not (tmp_path / "runs").exists()


def test_doctor_tries_what_can_run_and_says_what_failed(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "breaks.py"
    plugin.write_text(
        "from bench import Method\n\n\nclass Breaks(Method):\n    'Breaks.'\n\n"
        "    name = 'breaks'\n    paper = 'none'\n\n"
        "    def observe(self, document):\n        raise RuntimeError('no room left')\n"
    )
    plan = {
        "dataset": str(make_dataset(tmp_path / "keepers")),
        "model": str(llama),
        "streams": {"split": "test", "documents": 5, "count": 1},
        "methods": [
            "closed_book",
            "breaks",
            {"name": "mac", "space": {}, "seeds": [0, 1]},
            {"name": "mac", "config": {"group": 2}, "space": {}, "optional": True},  # with the same weights
        ],
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    varied = (str(tmp_path / "plan.yaml"), "--dtype", "bfloat16")
    result = call(capsys, "doctor", *varied, "--plugin", str(plugin), "--runs", str(tmp_path / "runs"))
    assert result.returncode == 1 and "These methods failed in the trial:" in result.stderr, result.stderr
    assert "no room left" in result.stderr
    assert re.search(r"^closed_book .* \d+ s ", result.stdout, re.MULTILINE)
    assert "mac has no trained weights" in result.stdout
    assert re.search(r"^mac .* \d+ s +\d+\.\d GB", result.stdout, re.MULTILINE)
    [training] = re.findall(r"^Training of mac.*, by a short trial: (.*)$", result.stdout, re.MULTILINE)
    assert re.fullmatch(r"about \d+ \w+ with each of 2 seeds, and up to \d+\.\d GB\.", training)


def test_doctor_knows_time_and_memory_by_its_trial_alone(
    experiment: Path, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    runs = shutil.copytree(finished[0] / "runs", tmp_path / "runs")
    shutil.rmtree(next(runs.glob("closed_book-*")))
    monkeypatch.setattr("bench.help.readiness.measure", lambda *_: Measured(Pace(), [], []))
    tried = call(capsys, "doctor", str(experiment), "--runs", str(runs))
    assert "Time and memory are unknown" in tried.stdout and "Nothing was run." not in tried.stdout, tried.stderr
    assert "Time, by earlier records" in call(capsys, "status", str(experiment), "--runs", str(runs)).stdout


def test_doctor_names_what_is_missing_before_it_tries_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "doctor", "default", "--dataset", "archivalqa", "--model", str(tmp_path))
    assert result.returncode == 2 and "default+" in result.stderr and "cannot run here yet" in result.stderr
    assert re.search(r"^missing +\w+ +archivalqa: .*set OAB_ACCEPT=archivalqa", result.stdout, re.MULTILINE)
    assert re.search(r"^missing +base .* is a folder without config.json", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "board"),
    [((), "default+"), (("retention",), "retention+"), (("--scale", "tiny", "paper-mac"), "paper-mac-tiny+")],
)
def test_status_takes_an_experiment_or_none_among_the_options_of_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], board: str
) -> None:
    options = ("--methods", "closed_book", "--runs", str(tmp_path / "runs"))
    result = call(capsys, "status", *options, *arguments)
    assert result.returncode == 0 and result.stdout.startswith(board), result.stderr
    assert "closed_book" in result.stdout
