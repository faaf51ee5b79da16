"""Provenance describes the origin of a number and names no person or machine."""

import getpass
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.records import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_collect_is_plain_json_with_versions() -> None:
    facts = json.loads(json.dumps(provenance.collect()))
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["numpy"][0].isdigit()
    assert facts["threads"] >= 1 and facts["cpu"]


def test_collect_names_no_person_machine_or_absolute_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/elsewhere/somebody/bench/run_bench.py", "--runs=/elsewhere/somebody/runs"])
    for module, name in ((getpass, "getuser"), (os, "getlogin"), (platform, "node"), (socket, "gethostname")):
        monkeypatch.setattr(module, name, lambda: "somebody")
    text = json.dumps({**provenance.collect(), "commit": None, "dirty": None})
    assert "somebody" not in text and str(Path.home()) + "/" not in text


def test_collect_does_not_import_torch() -> None:
    code = "import sys; from bench.records.provenance import collect; collect(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=provenance.ROOT).returncode == 0


def test_the_state_of_a_repository_is_its_commit_and_what_differs(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert provenance.git_state(repository) == (commit, None)
    (repository / "code.py").write_text("x = 2\n")
    first = provenance.git_state(repository)
    (repository / "code.py").write_text("x = 3\n")
    second = provenance.git_state(repository)
    (repository / "new.py").write_text("")
    third = provenance.git_state(repository)
    assert {state[0] for state in (first, second, third)} == {commit}
    assert len({None, first[1], second[1], third[1]}) == 4


def test_outside_a_repository_or_inside_another_one_there_is_no_commit(repository: Path, tmp_path: Path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    assert provenance.git_state(inner) == (None, None)
    outside = provenance.git_state(Path("/proc")) if Path("/proc").is_dir() else (None, None)
    assert outside == (None, None)


def test_without_git_there_is_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(repository) == (None, None)


def test_command_lines_lose_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "/opt/x/run_bench.py",
        f"{tmp_path}/runs",
        "--set",
        "a.b=/data/c.json",
        "test=../data/d.json",
        "org/model",
        "runs/a",
        "runs/../../somebody/b",
        "--runs=sftp://somebody:secret@host/data/somebody/runs",
        Path("/data/somebody/runs").as_uri(),
    ]
    assert provenance.redact(command) == [
        "run_bench.py", "runs", "--set", "a.b=c.json", "test=d.json", "org/model", "runs/a", "b",
        "--runs=sftp://ADDRESS", "file:" + "//ADDRESS",
    ]  # fmt: skip


def test_command_lines_lose_the_address_of_a_cluster() -> None:
    command = ["run", "--ray-address", "head:6379", "--ray-address=ray://192.0.2.2:10001", "--jobs", "2"]
    assert provenance.redact(command) == [
        "run", "--ray-address", "ADDRESS", "--ray-address=ADDRESS", "--jobs", "2",
    ]  # fmt: skip
