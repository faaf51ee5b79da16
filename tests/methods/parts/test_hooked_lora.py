"""Adapters by hooks: the layers that make keys and values, the outputs added to them alone, and their removal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.hooked_lora import HookedLora, Target, key_value_targets
from tests.conftest import TEXT

FUSED = {  # the fused layer, and those of its outputs that are queries (32 hidden units, 2 heads)
    "gpt2": ("attn.c_attn", set(range(32))),
    "gpt_neox": ("attention.query_key_value", {*range(16), *range(48, 64)}),
}


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def randomized(lora: HookedLora) -> HookedLora:
    with torch.no_grad():
        for number, up in enumerate(lora.ups):
            up.weight.normal_(generator=torch.Generator().manual_seed(number))
    return lora


def cached(lm: BaseModel) -> list[Tensor]:
    """Keys and values of every layer."""
    with torch.no_grad():
        cache = lm.model(input_ids=lm.encode(TEXT[0])[None], use_cache=True).past_key_values
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def test_keys_and_values_are_found_in_every_layout(lm: BaseModel) -> None:
    names = {module: name for name, module in lm.model.named_modules()}
    targets = key_value_targets(lm)
    kind = lm.model.config.model_type
    if kind == "llama":
        assert [names[module].split(".", 2)[2] for module, _ in targets] == [
            f"{layer}.self_attn.{part}" for part in ("k_proj", "v_proj") for layer in range(2)
        ]
        assert all(outputs is None for _, outputs in targets)
        return
    layer, queries = FUSED[kind]
    assert all(names[module].endswith(layer) for module, _ in targets) and len(targets) == 4
    spans = [set(outputs.tolist()) for _, outputs in targets if outputs is not None]
    assert spans[0] == spans[1] and spans[2] == spans[3]
    assert sorted([*spans[0], *spans[2], *queries]) == list(range(96))


@pytest.mark.parametrize("last", [1, 2, 6])
def test_the_last_blocks_are_taken(lm: BaseModel, last: int) -> None:
    targets = key_value_targets(lm, last)
    assert len(targets) == 2 * min(last, 2)
    before = cached(lm)
    lora = randomized(HookedLora(targets[: len(targets) // 2], 3, 6))  # keys only
    lora.attach()
    changed = [not torch.equal(a, b) for a, b in zip(before, cached(lm), strict=True)]
    assert changed == ([False, False, True, False] if last == 1 else [True, False, True, True])


def test_queries_do_not_change(lm: BaseModel) -> None:
    if lm.model.config.model_type == "llama":
        pytest.skip("its layers are not fused")
    layer, queries = FUSED[lm.model.config.model_type]
    fused = next(module for name, module in lm.model.named_modules() if name.endswith(layer))
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 32)
    with randomized(HookedLora(key_value_targets(lm), 3, 6)).attached():
        adapted = fused(inputs)
    changed = (adapted != fused(inputs)).any(0).any(0)
    assert set(changed.nonzero()[:, 0].tolist()) == set(range(96)) - queries


def test_finding_the_layers_leaves_no_trace(lm: BaseModel) -> None:
    before, state = lm.weights_hash(), torch.random.get_rng_state()
    key_value_targets(lm)
    assert lm.weights_hash() == before and torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks for module in lm.model.modules())
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())


def test_a_base_that_shows_no_keys_is_refused(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**lm.model.config.to_dict()))
    forward = plain.forward
    monkeypatch.setattr(plain, "forward", lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=False))
    with pytest.raises(BenchError, match="shows no keys to adapt"):
        key_value_targets(BaseModel(plain, lm.tokenizer))


def test_the_low_rank_product_is_added_to_the_chosen_outputs_alone() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 6), torch.randn(2, 3, 5)
    outputs = torch.tensor([1, 4])
    lora = randomized(HookedLora([Target(layer, outputs)], rank=2, alpha=3))
    before = layer(inputs)
    lora.attach()
    lora.attach()  # no effect
    after = layer(inputs)
    a, b = lora.downs[0].weight, lora.ups[0].weight
    torch.testing.assert_close(after[..., outputs] - before[..., outputs], 3 / 2 * inputs @ a.T @ b.T)
    assert torch.equal(after[..., [0, 2, 3, 5]], before[..., [0, 2, 3, 5]])
    lora.remove()
    assert torch.equal(layer(inputs), before) and not layer._forward_hooks


def test_dropout_follows_the_first_factor_while_training() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(5, 6), torch.randn(4, 5)
    lora = randomized(HookedLora([Target(layer)], rank=64, alpha=64, dropout=0.5))
    lora.attach()
    calls: list[tuple[Tensor, Tensor]] = []
    lora.dropout.register_forward_hook(lambda _, low, out: calls.append((low[0], out)))
    lora.eval()
    assert torch.equal(layer(inputs), layer(inputs))
    lora.train()
    layer(inputs)
    low, out = calls[-1]
    assert torch.equal(low, lora.downs[0](inputs)) and 0.3 < (out == 0).float().mean() < 0.7
