"""Adapters by hooks: where keys and values are made, what is added there and nowhere else, and no trace afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.hooked_lora import HookedLora, Place, key_value_places
from tests.conftest import TEXT

FUSED = {  # of 32 hidden units in 2 heads: which outputs of the fused layer are queries
    "gpt2": ("attn.c_attn", set(range(32))),
    "gpt_neox": ("attention.query_key_value", {*range(16), *range(48, 64)}),
}


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def moved(lora: HookedLora) -> HookedLora:
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
    places = key_value_places(lm)
    kind = lm.model.config.model_type
    if kind == "llama":
        assert [names[module].split(".", 2)[2] for module, _ in places] == [
            f"{layer}.self_attn.{part}" for part in ("k_proj", "v_proj") for layer in range(2)
        ]
        assert all(outputs is None for _, outputs in places)
        return
    layer, queries = FUSED[kind]
    assert all(names[module].endswith(layer) for module, _ in places) and len(places) == 4
    found = [set(outputs.tolist()) for _, outputs in places if outputs is not None]
    assert found[0] == found[1] and found[2] == found[3]
    assert sorted([*found[0], *found[2], *queries]) == list(range(96))


@pytest.mark.parametrize("last", [1, 2, 6])
def test_the_last_blocks_are_taken(lm: BaseModel, last: int) -> None:
    places = key_value_places(lm, last)
    assert len(places) == 2 * min(last, 2)
    before = cached(lm)
    lora = moved(HookedLora(places[: len(places) // 2], 3, 6))  # of the keys alone
    lora.attach()
    changed = [not torch.equal(a, b) for a, b in zip(before, cached(lm), strict=True)]
    assert changed == ([False, False, True, False] if last == 1 else [True, False, True, True])


def test_queries_stay_as_they_are(lm: BaseModel) -> None:
    if lm.model.config.model_type == "llama":
        pytest.skip("its layers are not fused")
    layer, queries = FUSED[lm.model.config.model_type]
    fused = next(module for name, module in lm.model.named_modules() if name.endswith(layer))
    torch.manual_seed(0)
    given = torch.randn(2, 3, 32)
    with moved(HookedLora(key_value_places(lm), 3, 6)).attached():
        adapted = fused(given)
    changed = (adapted != fused(given)).any(0).any(0)
    assert set(changed.nonzero()[:, 0].tolist()) == set(range(96)) - queries


def test_finding_them_leaves_no_trace(lm: BaseModel) -> None:
    before, state = lm.weights_hash(), torch.random.get_rng_state()
    key_value_places(lm)
    assert lm.weights_hash() == before and torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks for module in lm.model.modules())
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())


def test_a_base_without_keys_is_refused_with_a_sentence(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**lm.model.config.to_dict()))
    forward = plain.forward
    monkeypatch.setattr(plain, "forward", lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=False))
    with pytest.raises(BenchError, match="shows no keys to adapt"):
        key_value_places(BaseModel(plain, lm.tokenizer))


def test_some_outputs_get_the_low_rank_product_and_the_others_nothing() -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(5, 6), torch.randn(2, 3, 5)
    some = torch.tensor([1, 4])
    lora = moved(HookedLora([Place(layer, some)], rank=2, alpha=3))
    before = layer(given)
    lora.attach()
    lora.attach()  # once is enough
    after = layer(given)
    a, b = lora.downs[0].weight, lora.ups[0].weight
    torch.testing.assert_close(after[..., some] - before[..., some], 3 / 2 * given @ a.T @ b.T)
    assert torch.equal(after[..., [0, 2, 3, 5]], before[..., [0, 2, 3, 5]])
    lora.remove()
    assert torch.equal(layer(given), before) and not layer._forward_hooks


def test_dropout_stands_behind_the_first_factor_while_training() -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(5, 6), torch.randn(4, 5)
    lora = moved(HookedLora([Place(layer)], rank=64, alpha=64, dropout=0.5))
    lora.attach()
    seen: list[tuple[Tensor, Tensor]] = []
    lora.dropout.register_forward_hook(lambda _, low, out: seen.append((low[0], out)))
    lora.eval()
    assert torch.equal(layer(given), layer(given))
    lora.train()
    layer(given)
    low, out = seen[-1]
    assert torch.equal(low, lora.downs[0](given)) and 0.3 < (out == 0).float().mean() < 0.7
