"""The layers that take an update are those that compute last, whatever the order of their declaration."""

from __future__ import annotations

import pytest
import torch

from bench.errors import BenchError
from methods.parts.adapted_layers import AdaptedLayers
from tests.tiny_models import tiny_base

OUTPUTS = {  # of attention, and of what is outside it, in the last block
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "phi3": ("self_attn.o_proj", "mlp.down_proj"),
    "gemma2": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3_next": ("self_attn.o_proj", "mlp.shared_expert.down_proj"),
    "lfm2": ("self_attn.out_proj", "feed_forward.w2"),
    "zamba2": ("shared_transformer.self_attn.o_proj", "mamba_decoder.mamba.out_proj"),
    "mixtral": ("self_attn.o_proj", None),
}


@pytest.mark.parametrize("architecture", OUTPUTS)
def test_output_projections_are_those_that_compute_last(architecture: str) -> None:
    lm = tiny_base(architecture)
    attention, mlp = OUTPUTS[architecture]
    assert AdaptedLayers(lm, "attention_output").names[-1].endswith(f".1.{attention}")
    if mlp is None:
        with pytest.raises(BenchError, match="has no layers for target=mlp_output"):
            AdaptedLayers(lm, "mlp_output")
    else:
        assert AdaptedLayers(lm, "mlp_output").names[-1].endswith(f".1.{mlp}")
        assert AdaptedLayers(lm, "both").names[-2:] == [
            AdaptedLayers(lm, target).names[-1] for target in ("attention_output", "mlp_output")
        ]


@pytest.mark.parametrize("architecture", ["phi3", "falcon", "gpt2", "opt"])
def test_the_shapes_are_those_of_the_updates_that_the_layers_take(architecture: str) -> None:
    lm = tiny_base(architecture)
    layers = AdaptedLayers(lm, "both")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    before = lm.model(input_ids=ids).logits
    for (inputs, outputs), activations in zip(layers.shapes(), layers.activations(ids), strict=True):
        assert activations.inputs.shape == (2, 3, inputs) and outputs == lm.model.config.hidden_size
    layers.set_updates([torch.ones(outputs, inputs) for inputs, outputs in layers.shapes()])
    assert not torch.equal(lm.model(input_ids=ids).logits, before)
    layers.restore()
    assert torch.equal(lm.model(input_ids=ids).logits, before)


def test_blocks_without_attention_take_no_update_of_it() -> None:
    for architecture in ("lfm2", "bamba", "granitemoehybrid"):
        (name,) = AdaptedLayers(tiny_base(architecture), "attention_output").names
        assert ".1." in name
    with pytest.raises(BenchError, match="has no layers for target=attention_output"):
        AdaptedLayers(tiny_base("mamba2"), "attention_output")


def test_a_block_that_the_base_lacks_is_refused_with_a_remedy() -> None:
    with pytest.raises(BenchError, match=r"no block 2: it has 2, counted from 0\. Set training\.blocks"):
        AdaptedLayers(tiny_base("gpt2"), "attention_output", [0, 2])
