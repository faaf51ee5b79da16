"""A base and an adapter are merged into a base that is the same bits wherever it is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.errors import BenchError
from bench.lm import adapters, checkpoint
from tests.conftest import make_checkpoint

ALPHA, RANK = 8, 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def make_adapter(folder: Path, base: Path, seed: int = 0, **settings: Any) -> Any:
    """Save a random adapter on all linear layers, in bfloat16, and return the base with it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    with_adapter: Any = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in with_adapter.named_parameters():
            if "lora_" in name:
                parameter.copy_((torch.randn(parameter.shape, generator=generator) / 10).bfloat16())
    with_adapter.save_pretrained(folder)
    path = folder / adapters.WEIGHTS
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    return with_adapter


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    make_adapter(tmp_path / "tuned", llama)
    return tmp_path / "tuned"


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / adapters.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / adapters.WEIGHTS)


def test_the_merge_is_a_sum_in_order_in_float64_rounded_once() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((5, 7), (3, 7), (5, 3)))
    a, b = a.bfloat16(), (b * 1e-6).bfloat16()
    merged = adapters.merge(weight, a, b, 2.0)
    for i in range(5):
        for j in range(7):
            update = 0.0
            for k in range(3):
                update += float(b[i, k]) * float(a[k, j])
            assert merged[i, j].item() == float(np.float32(float(weight[i, j]) + 2.0 * update))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_the_merged_base_is_that_of_peft_and_a_whole_model(architecture: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", architecture)
    expected = make_adapter(tmp_path / "tuned", base).merge_and_unload().state_dict()
    folder = checkpoint.locate(str(tmp_path / "tuned"))
    checkpoint.check(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float32
    own, before = model.state_dict(), AutoModelForCausalLM.from_pretrained(base).state_dict()
    changed = {name for name in own if not torch.equal(own[name], before[name])}
    assert len(changed) == (14 if architecture == "llama" else 8)
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=0, atol=1e-5)
    for path in base.glob("tokenizer*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_the_rank_of_each_matrix_counts_and_a_base_may_be_stored_in_bfloat16(llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "base")
    save_file(
        {name: tensor.bfloat16() for name, tensor in load_file(llama / "model.safetensors").items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    expected = make_adapter(tmp_path / "tuned", base, rank_pattern={"q_proj": 2}).merge_and_unload().state_dict()
    merged = load_file(checkpoint.locate(str(tmp_path / "tuned")) / "model.safetensors")
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_the_identity_is_the_same_wherever_the_base_is_made(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = checkpoint.locate(str(adapter))
    monkeypatch.setenv("OAB_CACHE", str(tmp_path / "other"))
    elsewhere = shutil.copytree(adapter, tmp_path / "copy")
    second = checkpoint.locate(str(elsewhere))
    assert first != second and checkpoint.identity(first) == checkpoint.identity(second)


def test_it_is_made_once_and_again_when_the_adapter_or_the_base_has_changed(
    llama: Path, tmp_path: Path, cache: Path
) -> None:
    base, folder = shutil.copytree(llama, tmp_path / "base"), tmp_path / "tuned"
    make_adapter(folder, base)
    first = checkpoint.locate(str(folder))
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert checkpoint.locate(str(folder)) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    set_weights(folder, lambda tensors: next(iter(tensors.values())).mul_(2))
    second = checkpoint.locate(str(folder))
    shutil.copyfile(
        make_checkpoint(tmp_path / "new", "llama", seed=1) / "model.safetensors", base / "model.safetensors"
    )
    third = checkpoint.locate(str(folder))
    assert len({checkpoint.identity(path) for path in (first, second, third)}) == 3
    assert sorted(path for path in cache.iterdir() if path.is_dir()) == sorted([first, second, third])


def test_an_adapter_may_build_on_another_but_not_on_itself(llama: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "second")
    set_config(tmp_path / "second", base_model_name_or_path=str(adapter))
    name = "model.layers.0.mlp.up_proj.weight"
    zero, one, two = (
        load_file(checkpoint.locate(str(path)) / "model.safetensors")[name]
        for path in (llama, adapter, tmp_path / "second")
    )
    torch.testing.assert_close(two - one, one - zero, rtol=0, atol=1e-5)
    set_config(adapter, base_model_name_or_path=str(tmp_path / "second"))
    with pytest.raises(BenchError, match="builds on itself"):
        checkpoint.locate(str(adapter))


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another scale": (lambda f: set_config(f, use_rslora=True), "use_rslora = True, and only plain LoRA can be merged"),
    "another kind": (lambda f: set_config(f, peft_type="LOHA"), "peft_type = 'LOHA'"),
    "a changed base": (lambda f: set_config(f, init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "no base": (lambda f: set_config(f, base_model_name_or_path=None), "names no base"),
    "no alpha": (lambda f: set_config(f, lora_alpha="8"), "lora_alpha = '8'"),
    "unknown base": (
        lambda f: set_config(f, base_model_name_or_path="no/such"),
        r"no model 'no/such'.* Give base_model_name_or_path in .*adapter_config\.json a folder",
    ),
    "torn settings": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json could not be read"),
    "not settings": (lambda f: (f / "adapter_config.json").write_text("[]"), "adapter_config.json could not be read"),
    "no weights": (lambda f: (f / adapters.WEIGHTS).unlink(), "is missing, cut short or damaged"),
    "empty weights": (lambda f: set_weights(f, dict.clear), "holds no weights"),
    "half a pair": (lambda f: set_weights(f, lambda t: t.pop(A)), "no two matrices of one rank for model.layers.0"),
    "other tensors": (lambda f: set_weights(f, lambda t: t.update(bias=torch.ones(2))), "has bias, which is not LoRA"),
    "another width": (
        lambda f: set_weights(f, lambda t: t.update({A: torch.ones(RANK, 3)})),
        r"does not fit model\.layers\.0\.self_attn\.q_proj\.weight of .*\(32, 32\)",
    ),
    "another base": (
        lambda f: set_weights(f, lambda t: t.update({k.replace(".0.", ".7."): t[k].clone() for k in list(t)})),
        r"has no weights model\.layers\.7",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(adapter: Path, cache: Path, fault: str) -> None:
    make, message = FAULTS[fault]
    make(adapter)
    with pytest.raises(BenchError, match=message) as caught:
        checkpoint.locate(str(adapter))
    assert "\n" not in str(caught.value)
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(adapter: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file")
    with pytest.raises(BenchError, match=r"could not be written \(.*OAB_CACHE"):
        checkpoint.locate(str(adapter))
