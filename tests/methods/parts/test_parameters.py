"""Subsets of parameters, on every architecture, chosen by structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.parameters import blocks, blocks_below, is_attention, parts, select
from tests.tiny_models import tiny_model

MLP = {"gpt2": ".mlp.", "llama": ".mlp.", "gpt_neox": ".mlp."}

EMBEDDINGS = {
    "gpt2": "transformer.wte.weight",
    "llama": "model.embed_tokens.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
}


def names(model: Any, subset: Any) -> set[str]:
    return {name for name, _ in select(model, subset)}


@pytest.fixture
def model(checkpoint: Path) -> Any:
    return BaseModel.load(str(checkpoint)).model


def test_the_blocks_are_the_layers(model: Any) -> None:
    assert len(blocks(model)) == 2
    assert {type(block).__name__ for block in blocks(model)} <= {"GPT2Block", "LlamaDecoderLayer", "GPTNeoXLayer"}


def test_all_are_all_parameters_once_in_the_models_order(model: Any) -> None:
    assert [name for name, _ in select(model, "all")] == [name for name, _ in model.named_parameters()]


def test_the_mlp_is_the_blocks_without_attention_and_norms(model: Any) -> None:
    expected = {name for name, _ in model.named_parameters() if MLP[model.config.model_type] in name}
    assert names(model, "mlp") == expected
    assert any(p.ndim == 2 for _, p in select(model, "mlp"))


def test_embeddings_are_those_of_words_at_the_input(model: Any) -> None:
    assert names(model, "embeddings") == {EMBEDDINGS[model.config.model_type]}


def test_norms_and_biases_are_the_vectors(model: Any) -> None:
    vectors = names(model, "norms_and_biases")
    assert vectors == {name for name, p in model.named_parameters() if p.ndim == 1}
    assert all("norm" in name or "ln_" in name or name.endswith("bias") for name in vectors)


@pytest.mark.parametrize(
    ("count", "middle", "last"),
    [(1, [0], [0]), (3, [1], [2]), (4, [1, 2], [3]), (6, [2, 3], [5]), (12, [4, 5, 6, 7], [9, 10, 11])],
)
def test_thirds_and_quarters_count_blocks(count: int, middle: list[int], last: list[int]) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(count))
    model.heads = nn.ModuleList([nn.Linear(2, 2)] if count > 1 else [])
    assert names(model, "middle_third") == {f"layers.{i}.weight" for i in middle}
    assert names(model, "last_quarter") == {f"layers.{i}.weight" for i in last}


def test_the_top_blocks_are_counted_from_the_last(model: Any) -> None:
    last = {id(parameter) for parameter in blocks(model)[-1].parameters()}
    assert names(model, "top_1") == {name for name, p in model.named_parameters() if id(p) in last}
    assert names(model, "top_1") < names(model, "top_2") < names(model, "all")
    with pytest.raises(BenchError, match="learn=top_3 needs 3 blocks, and the base has 2"):
        list(select(model, "top_3"))


@pytest.mark.parametrize(("subset", "count"), [("top_1", 1), ("top_2", 0), ("embeddings", 0), ("all", 0)])
def test_blocks_below_are_those_before_all_that_learns(model: Any, subset: Any, count: int) -> None:
    below = blocks_below(model, (parameter for _, parameter in select(model, subset)))
    assert below == list(blocks(model))[:count]


def test_a_model_without_such_parameters_is_rejected(model: Any) -> None:
    with pytest.raises(BenchError, match="no parameters for learn=mlp"):
        list(select(nn.Linear(2, 2), "mlp"))
    bare = nn.Module()
    bare.matrix = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(BenchError, match="learn=norms_and_biases"):
        list(select(bare, "norms_and_biases"))


def test_the_experts_of_a_block_are_not_taken_for_blocks() -> None:
    model = nn.Module()
    experts = [nn.ModuleList(nn.Linear(3, 3) for _ in range(9)) for _ in range(2)]
    model.layers = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(3), "experts": one}) for one in experts)
    assert blocks(model) is model.layers


def test_a_layer_inside_a_block_is_opened() -> None:
    block = blocks(tiny_model("zamba2"))[1]
    kinds = {type(part).__name__ for part in parts(block)}
    assert {"Zamba2Attention", "Zamba2MLP"} <= kinds
    assert {type(part).__name__ for part in parts(block) if is_attention(part)} == {"Zamba2Attention"}
