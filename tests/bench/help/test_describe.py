"""Descriptions of what has a name, and of what is at a path."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from bench.data import recipe, streams
from bench.errors import BenchError
from bench.help.describe import describe
from bench.lm import pretrained
from tests.conftest import ROOT
from tests.world import make_dataset, make_experiment

METHOD = '''
import pydantic
from bench import Document, Method, MethodConfig


class Example(Method):
    """Reads {name}."""

    name = "{name}"
    paper = "smith2031"

    class Config(MethodConfig):
        speed: float = pydantic.Field(default=1.5, gt=0, description="words per second")

    def observe(self, document: Document) -> None:
        pass
'''


def described(name: str | Path) -> str:
    """What the command prints, on one line."""
    file = io.StringIO()
    Console(file=file, width=200).print(describe(str(name)))
    return " ".join(file.getvalue().split())


def plug_in(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(METHOD.format(name=name))
    return path


def test_a_method_is_described_with_its_paper_and_its_settings() -> None:
    text = described("uniform")
    assert "(2023). Meta-Learning Online Adaptation of Language Models." in text
    assert "Nathan Hu, Eric Mitchell" in text and "https://aclanthology.org/2023.emnlp-main.268/" in text
    assert "learning_rate = 0.0001 float >= 0" in text
    assert "Paper: none." in described("closed_book")
    assert "Control: with each question" in described("gold_in_prompt")


def test_the_file_of_a_plug_in_is_described(tmp_path: Path) -> None:
    text = described(plug_in(tmp_path, "strider"))
    assert "strider" in text and "speed = 1.5 float > 0 words per second" in text
    assert "Paper: smith2031, which has no entry in CITATIONS.bib." in text


def test_a_folder_with_plug_ins_is_described_and_names_those_that_cannot_be_used(tmp_path: Path) -> None:
    plug_in(tmp_path, "strider")
    plug_in(tmp_path, "runner")
    (tmp_path / "broken.py").write_text("import unobtainium\n" + METHOD.format(name="walker"))
    (tmp_path / "helper.py").write_text("PACE = 3\n")
    text = described(tmp_path)
    assert "Reads strider." in text and "Reads runner." in text
    assert "it imports unobtainium (line 1), which is not installed" in text
    with pytest.raises(BenchError, match="unobtainium"):
        describe(str(tmp_path / "broken.py"))


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_folder_with_a_dataset_is_described(tmp_path: Path, place: str) -> None:
    folder = make_dataset(tmp_path / "keepers")
    path = folder if place == "folder" else folder / "dataset.yaml"
    assert "licence: CC0-1.0" in described(path)
    assert "frozen streams: 'none: they are drawn when a run needs them'" in described(path)
    streams.build(recipe.read(folder), "test", 5, 2)
    assert "frozen streams: 2 of test-5" in described(path)


def test_a_dataset_with_a_wrong_recipe_is_refused(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "keepers")
    (folder / "dataset.yaml").write_text("name: keepers\n")
    with pytest.raises(BenchError, match=r"dataset\.yaml"):
        describe(str(folder))


def test_an_experiment_is_described_by_its_file(tmp_path: Path, llama: Path) -> None:
    plan = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["closed_book"])
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plan.model_dump(mode="json", exclude={"decoding"})))
    assert "split: test documents: 5 count: 2" in described(path)
    assert "prompt" not in described(path)
    path.write_text(yaml.safe_dump({**plan.model_dump(mode="json"), "prompt": {"begin": "<s>"}}))
    assert "prompt: begin: <s>" in described(path) and "{question}" not in described(path)


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_folder_with_a_base_model_is_described(llama: Path, place: str) -> None:
    text = described(llama if place == "folder" else llama / "config.json")
    words = json.loads((llama / "config.json").read_text())["vocab_size"]
    assert "architecture: LlamaForCausalLM" in text
    assert f"window: 96 vocabulary: {words} layers: 2 hidden size: 32" in text


def test_an_embedded_base_model_is_described_by_its_name() -> None:
    from safetensors.torch import load_file

    values = load_file(ROOT / "bench" / "models" / "nano-plain" / "model.safetensors")
    text = described("nano-plain")
    assert f"parameters: {sum(value.numel() for value in values.values())} window: 1024" in text
    assert "folder: bench/models/nano-plain card: bench/models/nano-plain/README.md use: python run_bench.py" in text


def test_a_base_that_is_fetched_is_described_or_its_command_is_named(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path))
    with pytest.raises(BenchError, match=r"python run_bench\.py model get smollm2"):
        describe("smollm2")
    shutil.copytree(llama, pretrained.folder("smollm2"))
    assert f"weights: {pretrained.folder('smollm2')} use: python run_bench.py run EXPERIMENT --model smollm2" in (
        described("smollm2")
    )


def test_a_base_model_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BenchError, match=str(tmp_path)):
        describe(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "has neither a dataset.yaml"),
        (lambda path: path.write_text("a,b\n"), "thing cannot be described: give a plug-in"),
        (lambda path: None, "There is no file or folder .*thing"),
    ],
)
def test_what_cannot_be_described_gets_a_remedy(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "thing")
    with pytest.raises(BenchError, match=message):
        describe(str(tmp_path / "thing"))


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(BenchError, match=r"named 'newsword'.* Did you mean newsworld"):
        describe("newsword")
    for name in ("", "x" * 5000, "\0"):
        with pytest.raises(BenchError):
            describe(name)
