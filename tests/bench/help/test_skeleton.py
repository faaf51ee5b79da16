"""The skeleton of a new method works as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.contract.registry import load_method
from bench.data.documents import Document
from bench.errors import BenchError
from bench.help.skeleton import new_method
from bench.lm.base_model import BaseModel
from tests.conftest import ROOT


def test_the_skeleton_is_a_method_that_learns(tmp_path: Path, llama: Path) -> None:
    path = new_method("new_idea", tmp_path)
    kind = load_method("new_idea", [path])
    assert path == tmp_path / "new_idea.py" and kind.__name__ == "NewIdea"
    lm = BaseModel.load(str(llama))
    method = kind(lm, kind.Config(early=0.5, learning_rate=1e-2))
    document = Document("1", "The ferry left at noon without it.")
    before = lm.loss(document).item()
    method.reset()
    method.observe(document)
    assert lm.loss(document).item() < before
    method.reset()
    assert lm.loss(document).item() == before


def test_the_skeleton_keeps_the_project_style(tmp_path: Path) -> None:
    path = new_method("new_idea", tmp_path)
    config = ROOT / "pyproject.toml"
    for command in (["check"], ["format", "--check"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(config), str(path)]
        result = subprocess.run(arguments, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["", "New", "2nd", "a-b", "../a", "class", "a b"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match="cannot name a method"):
        new_method(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = new_method("new_idea", tmp_path)
    path.write_text("mine")
    with pytest.raises(BenchError, match="already exists"):
        new_method("new_idea", tmp_path)
    assert path.read_text() == "mine"


def test_the_name_of_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"named uniform already exists in methods/uniform\.py"):
        new_method("uniform", tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"The folder .* does not exist"):
        new_method("new_idea", tmp_path / "nowhere")
