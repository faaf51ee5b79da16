"""What cannot run is refused while a model is loaded, with a sentence that names the file or key."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel

from bench import paths
from bench.errors import BenchError
from bench.hashing import path_hash
from bench.lm import checkpoint
from bench.lm.base_model import FALLBACK_WINDOW, BaseModel
from bench.run.cell import run_cell
from bench.run.runner import Runner
from tests.tiny_models import tiny_base, tiny_model
from tests.world import Inline, make_dataset, make_experiment


def set_json(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: set_json(folder, "config.json", **values)


def generation(**values: Any) -> Callable[[Path], None]:
    return lambda folder: set_json(folder, "generation_config.json", **values)


def remote_code(folder: Path) -> None:
    set_json(folder, "config.json", model_type="invented", auto_map={"AutoConfig": "configuration_invented.Config"})
    (folder / "configuration_invented.py").write_text("raise SystemExit('this code was run')\n")


def longer_tokenizer(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)


def other_end(folder: Path) -> None:
    set_json(folder, "tokenizer_config.json", eos_token="</nowhere>")


def lost_shard(folder: Path) -> None:
    weights = {
        "weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": "model-00002-of-2.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def torn_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"')


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: set_weights(folder, change)


def spoil(name: str, value: float) -> Callable[[Path], None]:
    return weights(lambda tensors: tensors[name].view(-1)[3:4].fill_(value))


NORM, HEAD = "model.layers.0.input_layernorm.weight", "lm_head.weight"
FAULTS = {
    "lost shard": (
        lost_shard,
        r"lacks model-00002-of-2.safetensors, one of the 2 files named in model.safetensors.index",
    ),
    "peft adapter": (adapter, r"holds a peft adapter \(adapter_config.json\)"),
    "remote code": (remote_code, "needs code of its own"),
    "torn configuration": (torn_config, "config.json could not be read"),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings = 0"),
    "negative positions": (config(max_position_embeddings=-1), "max_position_embeddings = -1"),
    "positions in words": (config(max_position_embeddings="many"), "max_position_embeddings"),
    "end token outside": (generation(eos_token_id=100_000), "eos_token_id is 100000 .* outside the vocabulary"),
    "one of the end tokens outside": (generation(eos_token_id=[0, 9_999]), "eos_token_id is 9999"),
    "begin token outside": (generation(bos_token_id=4_000), "bos_token_id is 4000"),
    "longer tokenizer": (longer_tokenizer, r"tokens up to \d+ \('<extra>'\), but the model has embeddings for"),
    "end token of the tokenizer outside": (other_end, "'</nowhere>'"),
    "NaN": (spoil(NORM, float("nan")), f"weights {NORM} .* hold NaN or infinity"),
    "infinity": (spoil(HEAD, float("inf")), f"weights {HEAD} .* hold NaN or infinity"),
    "unused weights": (
        weights(lambda t: t.update({"extra.weight": torch.ones(2)})),
        r"does not use \(extra.weight; 1 in",
    ),
    "fewer layers": (config(num_hidden_layers=1), r"does not use \(model.layers.1"),
    "more layers": (config(num_hidden_layers=3), r"lacks weights of the model \(model.layers.2"),
    "missing weights": (weights(lambda t: t.pop(NORM)), "lacks weights of the model"),
    "other sizes": (config(hidden_size=48), r"lm_head.weight in .* has the shape \(376, 32\)"),
    "impossible sizes": (config(num_attention_heads=0), "could be read from"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_checkpoint_is_refused_with_a_sentence(llama: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(llama, tmp_path / "faulty")
    make, message = FAULTS[fault]
    make(folder)
    with pytest.raises(BenchError, match=message) as caught:
        BaseModel.load(str(folder))
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def older_masks(folder: Path) -> None:
    tables = {
        "model.layers.0.attn.attention.bias": torch.ones(1, 1, 4, 4),
        "model.layers.0.attn.masked_bias": torch.ones(1),
    }
    set_weights(folder, lambda tensors: tensors.update(tables))


def token_of_images(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("change", [older_masks, token_of_images])
def test_what_official_checkpoints_have_beside_their_weights_is_no_fault(
    llama: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(llama, tmp_path / "official")
    change(folder)
    assert BaseModel.load(str(folder)).encode("a")
    for count in (checkpoint.weight_count, checkpoint.parameter_count):
        assert count(folder) == count(llama)


def test_weights_in_another_format_beside_those_of_transformers_do_not_count(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "twice")
    save_file({"layers.0.wq.weight": torch.ones(8)}, folder / "consolidated.safetensors")
    for name in ("trainer_state.json", "all_results.json", "LICENSE.txt", "README.txt"):  # nothing loads them
        (folder / name).write_text("{}")
    assert checkpoint.identity(folder) == checkpoint.identity(llama)
    assert checkpoint.weight_count(folder) == checkpoint.weight_count(llama)


def test_a_folder_is_not_taken_for_the_embedded_model_of_its_name(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(llama, tmp_path / "nano")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.locate("./nano").resolve() == own
    assert checkpoint.locate("nano") == paths.MODELS / "nano"


def test_code_beside_a_known_architecture_is_not_run(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "with_code")
    set_json(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Model"})
    (folder / "modeling_own.py").write_text("raise SystemExit('this code was run')\n")
    assert type(BaseModel.load(str(folder)).model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
def test_a_model_without_a_causal_head_is_refused(llama: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(llama, tmp_path / kind)
    architecture = {"t5": "T5ForConditionalGeneration", "bart": "BartForCausalLM", "llama": "LlamaModel"}[kind]
    set_json(folder, "config.json", model_type=kind, architectures=[architecture], is_encoder_decoder=kind != "llama")
    with pytest.raises(BenchError, match="no causal language-model head"):
        checkpoint.check(folder)


@pytest.mark.parametrize(("kind", "tokens"), [("roberta", 61), ("xlm-roberta", 61), ("bert", 63), ("electra", 63)])
@torch.no_grad()
def test_as_many_tokens_are_read_as_there_are_positions_for(kind: str, tokens: int) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=99, max_position_embeddings=63, **sizes))
    assert checkpoint.positions(model) == tokens
    model(input_ids=torch.full((1, tokens), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, tokens + 1), 5))


def test_a_window_is_known_for_every_way_to_state_it() -> None:
    assert [tiny_base(name).window for name in ("llama", "gpt2", "mpt", "opt")] == [256] * 4
    assert tiny_base("mamba").window == FALLBACK_WINDOW


def test_with_factors_that_depend_on_the_longest_row_the_window_is_that_of_the_short_ones() -> None:
    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert checkpoint.positions(model) == 64


def test_a_table_as_long_as_the_vocabulary_is_not_taken_for_positions() -> None:
    model = tiny_model("llama", max_position_embeddings=tiny_model("llama").config.vocab_size, pad_token_id=0)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert checkpoint.positions(model) == model.config.vocab_size


def test_a_base_in_the_cache_of_the_hub_is_that_of_a_copy_of_its_files(llama: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for file in llama.iterdir():
        name = path_hash(file) if file.suffix == ".safetensors" else hashlib.sha1(file.read_bytes()).hexdigest()
        blob = blobs / name
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(blob)
    expected = checkpoint.identity(llama)
    assert checkpoint.identity(snapshot) == expected
    (snapshot / "model.safetensors").resolve().write_bytes(b"")
    assert checkpoint.identity(snapshot) == expected, "large weights are not read"


def test_a_revision_of_a_base_on_the_hub_is_read_and_recorded(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--tiny"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    (cached / "refs").mkdir(parents=True)
    for revision, commit in commits.items():
        shutil.copytree(llama, cached / "snapshots" / commit)
        (cached / "refs" / revision).write_text(commit)
    for name, commit in (("", "main"), ("@v1", "v1"), (f"@{commits['v1']}", "v1")):
        assert checkpoint.locate(f"someone/tiny{name}", download=False).name == commits[commit]
    with pytest.raises(BenchError, match=r'Download it \(hf download someone/tiny --exclude "\*.bin" --revision v2\)'):
        checkpoint.locate("someone/tiny@v2", download=False)
    experiment = make_experiment(make_dataset(tmp_path / "keepers"), llama, ["closed_book"])
    for model, base in ((llama, None), ("someone/tiny@v1", f"someone/tiny@{commits['v1']}")):
        experiment.model = str(model)
        cell = Runner(experiment, tmp_path / "runs").run(Inline()).cells[0]
        record = run_cell(cell, tmp_path / "runs")[0]
        assert record.status == "complete" and record.provenance.get("base") == base
