"""Paths are shown relative to the project or the working folder."""

from pathlib import Path

import pytest

from bench import paths
from bench.paths import ROOT, cache, datasets, experiments, models, relative


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


def test_a_base_model_is_a_folder_with_a_model_an_adapter_or_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"nano", "nano-plain", "smollm2"} <= set(models())
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    for name, file in (("c", "config.json"), ("a", "adapter_config.json"), ("b", "source.yaml"), ("d", "recipe.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    assert models() == ["a", "b", "c"]


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path))
    assert cache() == tmp_path
    monkeypatch.setenv("OAB_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache() == tmp_path / "home" / ".cache" / "online-adaptation-bench"
