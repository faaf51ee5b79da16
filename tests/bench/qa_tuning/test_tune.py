"""tune-qa: a peft adapter or a model folder with recipe, curve and card, made once, from stated data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import run_bench
from bench.conformance import fixtures
from bench.data import reader
from bench.errors import BenchError
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.paths import ROOT
from bench.qa_tuning import tune
from bench.qa_tuning.recipe import DEFAULT, QaRecipe
from bench.settings import read_recipe, recipe_text

RECIPE: dict[str, Any] = {
    "prompt": {"begin": "<|endoftext|>"},
    "documents": 2,
    "closed_share": 0.4,
    "rank": 4,
    "steps": 4,
    "learning_rate": 0.02,
    "warmup": 1,
    "validate_every": 2,
    "validation_documents": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    lm = fixtures.base_model()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "ferries"
    folder.mkdir()
    settings = {
        **{"name": "ferries", "title": "Ferries of the world", "description": "", "language": "en"},
        **{"licence": "CC-BY-4.0", "citation": "A Book of Ferries.", "format": "documents"},
        "source": {"files": {split: f"{split}.jsonl" for split in ("qa_train", "qa_validation")}},
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(settings))
    entries = fixtures.entries(8)
    for split, own in (("qa_train", entries[:6]), ("qa_validation", entries[6:])):
        rows = [
            {
                "text": e.document.text,
                "questions": [
                    {"id": q.question.id, "question": q.question.text, "answers": q.answers} for q in e.questions
                ],
            }
            for e in own
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(base: Path, dataset: Path, **changes: Any) -> QaRecipe:
    return QaRecipe(**{**RECIPE, "base": str(base), "datasets": [str(dataset)], **changes})


def test_an_adapter_is_a_peft_folder_with_recipe_curve_and_card(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    monkeypatch.chdir(base.parent)
    settings, out = recipe(Path(base.name), dataset, dtype="float32"), tmp_path / "tiny-qa"
    assert tune.tune(settings, {}, out) == out
    monkeypatch.chdir(tmp_path)  # where the base has no such path
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in out.iterdir()} == weights | {"README.md", "curve.csv", "documents.csv", "recipe.yaml"}
    documents = [split for split, _ in checkpoint.tuned_on(str(out))]
    assert (documents.count("qa_train"), documents.count("qa_validation")) == (6, 2)
    assert read_recipe(QaRecipe, out / "recipe.yaml") == settings
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (str(base), 4, 8)
    tensors = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert len(tensors) == 2 * 7 * fixtures.LAYERS  # two factors for each of seven linear layers

    lm = BaseModel.load(str(base))
    ids = lm.encode("Where does ferry 3 sail from?")[None]
    before = lm.model(ids).logits
    merged = peft.PeftModel.from_pretrained(lm.model, str(out)).merge_and_unload()
    lora = {name: tensor.double() for name, tensor in tensors.items()}
    own = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    update = 2.0 * lora[own.format("B")] @ lora[own.format("A")]
    original = BaseModel.load(str(base)).model.model.layers[0].mlp.up_proj.weight.double()
    torch.testing.assert_close(merged.model.layers[0].mlp.up_proj.weight.double(), original + update, rtol=0, atol=1e-6)
    assert (merged(ids).logits - before).abs().max() > 0.01
    as_base = BaseModel.load(str(checkpoint.locate(str(out)))).model  # an adapter is a base
    torch.testing.assert_close(as_base(ids).logits, merged(ids).logits, rtol=0, atol=1e-4)

    with (out / "curve.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps == ["0.0", "2.0", "4.0"]
    card = (out / "README.md").read_text()
    for part in ("# tiny-qa", "CC-BY-4.0", "A Book of Ferries.", "40%", checkpoint.identity(base), "| yes |", "| no |"):
        assert part in card
    assert card.count("{") == 1 and '`prompt: {begin: "<|endoftext|>"}`' in card


def test_a_full_run_is_an_ordinary_model_made_once_for_what_it_depends_on(
    base: Path, dataset: Path, own_cache: Path
) -> None:
    settings = recipe(base, dataset, rank=None)
    lines: list[str] = []
    folder = tune.tune(settings, {}, say=lines.append)
    assert folder.parent == own_cache / "models" and folder.name.startswith("tiny-qa-") and lines
    assert BaseModel.load(str(folder)).window == fixtures.WINDOW
    assert not any((own_cache / "tune-qa").iterdir())
    lines.clear()
    assert tune.tune(settings, {}, say=lines.append) == folder and not lines
    other = dataset / "qa_train.jsonl"
    other.write_text("".join(other.read_text().splitlines(keepends=True)[:-1]))
    for cached in (reader.split_data, reader.split_hash):
        cached.cache_clear()
    assert tune.tune(settings, {}) != folder


def test_the_command_line_states_base_datasets_files_and_settings(
    base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(tune, "tune", lambda *arguments: seen.append(arguments) or tmp_path / "result")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(recipe(Path("else"), Path("other"))))
    files = [f"{dataset}={dataset}"]
    run_bench.tune_qa(
        str(base), file, [str(dataset)], files, ["steps=7", "prompt.begin=null"], "cpu", tmp_path / "o", None
    )
    settings, data_files, out, work, device, _ = seen[0]
    assert (settings.base, settings.datasets, settings.steps) == (str(base), [str(dataset)], 7)
    assert settings.prompt.begin is None and settings.rank == 4
    assert sorted(data_files[str(dataset)]) == ["qa_train", "qa_validation"]
    assert (out, work, device) == (tmp_path / "o", None, "cpu")
    with pytest.raises(BenchError, match="takes DATASET=FOLDER"):
        run_bench.tune_qa(str(base), file, None, [str(dataset)], None, "cpu", None, None)
    with pytest.raises(BenchError, match=r"stepz: unknown key\. Did you mean steps"):
        run_bench.tune_qa(str(base), file, None, None, ["stepz=1"], "cpu", None, None)


def test_a_folder_with_another_base_is_refused_before_the_tuning(base: Path, dataset: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").touch()
    for tuned, rank, out in ((base, 4, base), (base, None, base), (base, None, adapter), (adapter, 4, adapter)):
        with pytest.raises(BenchError, match="holds another base, and a tuned one needs a folder of its own"):
            tune.tune(recipe(tuned, dataset, rank=rank), {}, out)


def test_the_command_of_the_card_names_all_that_the_identity_depends_on(base: Path, dataset: Path) -> None:
    settings, command = recipe(base, dataset), f"python run_bench.py tune-qa {base} --recipe recipe.yaml"
    assert tune._command(settings, {}, "cpu") == command
    assert tune._command(settings, {"squad": {}}, "cuda") == f"{command} --data-files squad=FOLDER --device cuda"


def test_wrong_requests_are_named(base: Path, dataset: Path) -> None:
    with pytest.raises(BenchError, match="the recipe does not tune on 'squat'"):
        tune.tune(recipe(base, dataset), {"squat": {}})
    with pytest.raises(ValueError, match="must be a power of two"):
        recipe(base, dataset, scale=3.0)
    with pytest.raises(ValueError, match="closed_share"):
        recipe(base, dataset, closed_share=0.6)


def test_the_committed_recipe_is_a_recipe_on_data_whose_licences_are_stated() -> None:
    settings = read_recipe(QaRecipe, DEFAULT)
    assert (settings.base, set(settings.datasets)) == ("smollm2", {"newsworld", "squad"})
    assert settings.prompt.begin == "<|endoftext|>"
    assert recipe_text(settings) == DEFAULT.read_text()
    assert DEFAULT.is_relative_to(ROOT)
