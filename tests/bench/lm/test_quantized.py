"""Bases in 8 and 4 bits: which methods run on them, that their weights stay as they are, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.answering.answers import answer
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.conformance import fixtures
from bench.contract import registry
from bench.contract.method import Conditioning
from bench.errors import BenchError
from bench.harness.loop import Loop, construct
from bench.lm import checkpoint, quantized
from bench.lm.base_model import BaseModel
from bench.lm.flops import FlopCounter, ReadingMeter
from tests.bench.lm.test_families import METHODS
from tests.tiny_models import CONFIGS, tiny_model

SIZES = {**CONFIGS["opt"], "hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64}
"""A model with biases."""
RUN: Mapping[str, Mapping[str, Any]] = {
    **{name: METHODS[name] for name in ("closed_book", "lora", "cmt", "mac")},
    "bm25": {},
    "knn_lm": {},
    "dynamic_evaluation": {"learn": "lora"},
}
REFUSED: Mapping[str, Mapping[str, Any]] = {
    **{name: METHODS[name] for name in ("uniform", "camels", "dynamic_evaluation", "generative_adapter")},
    "lora_fit": {},
    "replay": {},
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    model, generator = tiny_model("opt", **SIZES), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02, generator=generator)
            elif "layer_norm" in name:
                parameter[:2] = 12.0  # outliers, as pretrained models have them
    model.save_pretrained(folder)
    fixtures.base_model().tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[8, 4])
def folder(request: pytest.FixtureRequest, full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as docs/models.md has it quantized."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    bits = {"load_in_8bit": True} if request.param == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    base: Any = AutoModelForCausalLM.from_pretrained(
        full, quantization_config=BitsAndBytesConfig(**bits), dtype=torch.float32
    )
    to = tmp_path_factory.mktemp(f"bits{request.param}")
    base.save_pretrained(to)
    fixtures.base_model().tokenizer.save_pretrained(to)
    return to


@pytest.fixture(params=["float32", "bfloat16"])
def base(request: pytest.FixtureRequest, folder: Path) -> BaseModel:
    return BaseModel.load(str(folder), dtype=request.param)


def test_methods_that_leave_the_base_as_it_is_run_on_it(base: BaseModel) -> None:
    entries = fixtures.entries(3)
    documents = [entry.document for entry in entries]
    before = base.weights_hash()
    losses = {}
    for name, config in RUN.items():
        kind = registry.load_method(name)
        loop = Loop(construct(kind, base, kind.Config(**config), 0), entries, documents)
        loop.run()
        losses[name] = loop.summary().token_nll
        loop.method.reset()
        base.restore()
        assert base.weights_hash() == before, name
    assert losses["closed_book"] == losses["mac"], "nothing is trained"
    assert losses["closed_book"] not in (losses["lora"], losses["dynamic_evaluation"], losses["knn_lm"])


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_change_the_base_are_refused(name: str, folder: Path) -> None:
    kind = registry.load_method(name)
    with pytest.raises(BenchError, match=f"quantized weights, which cannot change, so {name} cannot run"):
        construct(kind, BaseModel.load(str(folder)), kind.Config(**REFUSED[name]), 0)


def test_it_computes_nearly_what_the_base_computes_and_batches_as_one_by_one(folder: Path, full: Path) -> None:
    entries = fixtures.entries(3)
    lm, other = BaseModel.load(str(folder)), BaseModel.load(str(full))
    ids = lm.encode(entries[0].document.text)
    assert lm.log_probs(ids).mean().item() == pytest.approx(other.log_probs(ids).mean().item(), abs=0.5)
    questions = [gold.question for entry in entries for gold in entry.questions]
    texts = [entry.document.text for entry in entries for _ in entry.questions]
    prompts = build_prompts(lm, questions, Conditioning(text=texts), 8)
    together = answer(lm, prompts, Decoding(max_new_tokens=8))
    assert together == [one for prompt in prompts for one in answer(lm, [prompt], Decoding(max_new_tokens=8))]


def test_its_memory_is_that_of_its_bytes_and_its_work_that_of_all_its_numbers(folder: Path, full: Path) -> None:
    lm, other = BaseModel.load(str(folder)), BaseModel.load(str(full))
    ids = lm.encode(fixtures.entries(1)[0].document.text)
    counts = []
    for one in (lm, other):
        with FlopCounter() as counter, ReadingMeter(one) as meter:
            one.log_probs(ids)
        counts.append((counter.flops, meter.flops))
    assert counts[0] == counts[1] != (0, 0)
    assert checkpoint.weight_count(folder) < checkpoint.weight_count(full)


def test_what_it_needs_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BenchError, match="is quantized by gptq"):
        checkpoint.check(tmp_path)
    stored = {**config["quantization_config"], "bnb_4bit_quant_storage": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    with pytest.raises(BenchError, match=r"keeps its 4 bits as bfloat16\. Save it with bnb_4bit_quant_storage"):
        checkpoint.check(tmp_path)
    stored = {name: value for name, value in config["quantization_config"].items() if name != "quant_method"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    checkpoint.check(tmp_path)  # as older versions of transformers wrote it
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BenchError, match="is not installed: pip install bitsandbytes"):
        checkpoint.check(folder)
