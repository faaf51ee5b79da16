"""Paths are shown relative to the project or the working folder."""

from pathlib import Path

import pytest

from bench.paths import ROOT, datasets, experiments, relative


def test_a_path_is_relative_to_the_project_then_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative(ROOT / "methods" / "uniform.py") == "methods/uniform.py"
    assert relative(tmp_path / "mine.py") == "mine.py"
    assert relative(tmp_path.parent / "mine.py") is None
    monkeypatch.chdir(ROOT / "methods")
    assert relative(ROOT / "methods" / "uniform.py") == "methods/uniform.py"


def test_the_datasets_and_experiments_of_the_project_are_listed() -> None:
    assert {"newsworld", "squad", "text"} <= set(datasets())
    assert {"default", "squad"} <= set(experiments())
