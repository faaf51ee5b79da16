"""Adapters: choice of layers, removal without a trace, and equality of merged and exported ones."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.data.documents import Document
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.lora import Lora
from methods.parts.adapters import Adapter, Targets, target_modules
from tests.conftest import TEXT, make_checkpoint
from tests.tiny_models import CONFIGS, tiny_base

LAYERS = {
    "gpt2": (["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]),
    "llama": (
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    ),
    "gpt_neox": (["attention.query_key_value", "attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
}
ENDS = {  # gpt2's embedding table is tied to the output layer and not adapted
    "gpt2": ["transformer.wpe"],
    "llama": ["model.embed_tokens", "lm_head"],
    "gpt_neox": ["gpt_neox.embed_in", "lm_head"],
}


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def trained(lm: BaseModel, targets: Targets = "everything", seed: int = 0) -> Adapter:
    """An adapter far from zero."""
    adapter = Adapter(lm, rank=3, alpha=6, targets=targets, seed=seed)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapter.named_parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    return adapter


def logits(model: nn.Module, lm: BaseModel) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=lm.encode(TEXT[0])[None]).logits
    return output


@pytest.mark.parametrize("targets", ["attention", "attention_output", "mlp", "all", "everything"])
def test_layers_are_found_by_structure(lm: BaseModel, targets: Targets) -> None:
    kind = lm.model.config.model_type
    attention, mlp = LAYERS[kind]
    layers = {"attention": attention, "attention_output": attention[-1:], "mlp": mlp}.get(targets, attention + mlp)
    stem = {"gpt2": "transformer.h", "llama": "model.layers", "gpt_neox": "gpt_neox.layers"}[kind]
    expected = {f"{stem}.{block}.{layer}" for block in range(2) for layer in layers}
    assert set(target_modules(lm.model, targets)) == expected | (set(ENDS[kind]) if targets == "everything" else set())


def test_a_model_without_blocks_is_rejected() -> None:
    with pytest.raises(BenchError, match="has no layers for targets=mlp; choose other targets"):
        target_modules(nn.Sequential(nn.Linear(2, 2)), "mlp")


def test_a_fresh_adapter_changes_nothing(lm: BaseModel) -> None:
    before = logits(lm.model, lm)
    Adapter(lm, rank=3, alpha=6, targets="everything")
    assert torch.equal(logits(lm.model, lm), before)


def test_the_base_keeps_its_names_while_an_adapter_learns(lm: BaseModel) -> None:
    names, untouched = [name for name, _ in lm.named_tensors()], lm.weights_hash()
    adapter = trained(lm)
    assert [name for name, _ in lm.named_tensors()] == names
    assert lm.weights_hash() == untouched and lm.changed_bytes() == 0
    assert not {name for name, _ in adapter.named_parameters()} & set(names)


def test_removal_leaves_the_loaded_model(lm: BaseModel) -> None:
    model = lm.model
    modules, attributes = dict(model.named_modules()), set(vars(model))
    before, untouched = logits(model, lm), lm.weights_hash()
    adapter = trained(lm)
    assert not torch.equal(logits(model, lm), before)
    adapter.remove()
    lm.restore()
    assert dict(model.named_modules()) == modules, "the same objects under the same names"
    assert set(vars(model)) == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert lm.weights_hash() == untouched and torch.equal(logits(model, lm), before)


def test_restoring_the_base_under_an_adapter_is_an_error(lm: BaseModel) -> None:
    Adapter(lm, rank=1, alpha=1, targets="mlp")
    with pytest.raises(RuntimeError, match="structure was changed"):
        lm.restore()


def test_a_merged_adapter_computes_the_same(lm: BaseModel) -> None:
    adapter = trained(lm)
    unmerged = logits(lm.model, lm)
    adapter.merge()
    torch.testing.assert_close(logits(lm.model, lm), unmerged, atol=2e-3, rtol=1e-4)
    lm.restore()  # the loaded structure is back


def test_linear_and_conv1d_layers_are_adapted_together(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "gpt2")  # its blocks store inputs x outputs, a separate output layer the reverse
    model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    lm = BaseModel(model, AutoTokenizer.from_pretrained(folder))
    adapter = trained(lm)
    assert {"lm_head.lora_A", "transformer.h.0.attn.c_attn.lora_A"} <= adapter.state_dict().keys()
    unmerged = logits(lm.model, lm)
    adapter.merge()
    torch.testing.assert_close(logits(lm.model, lm), unmerged, atol=2e-3, rtol=1e-4)


def test_plain_peft_loads_an_export(lm: BaseModel, checkpoint: Path, tmp_path: Path) -> None:
    adapter = trained(lm)
    adapter.save(tmp_path / "export")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "export").iterdir()
    }
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), str(tmp_path / "export"))
    assert torch.equal(logits(loaded.eval(), lm), logits(lm.model, lm))


def test_the_draw_depends_on_the_seed_alone(lm: BaseModel) -> None:
    states = []
    for seed, around in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(around)
        expected = torch.rand(1)
        torch.manual_seed(around)
        adapter = Adapter(lm, rank=2, alpha=2, targets="all", seed=seed)
        assert torch.equal(torch.rand(1), expected), "the global generator is not used"
        states.append(adapter.state_dict())
        adapter.remove()
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_state_is_saved_and_loaded(lm: BaseModel) -> None:
    adapter = trained(lm, "all")
    expected, state = logits(lm.model, lm), adapter.state_dict()
    adapter.remove()
    Adapter(lm, rank=3, alpha=6, targets="all", seed=9).load_state_dict(state)
    assert torch.equal(logits(lm.model, lm), expected)


@pytest.mark.parametrize(("rank", "full"), [(4, False), (32, True)])
def test_the_orthonormal_factor_projects_the_hidden_side(llama: Path, rank: int, full: bool) -> None:
    lm = BaseModel.load(str(llama))
    state = Adapter(lm, rank, rank, "everything", "orthonormal").state_dict()
    drawn = [state["model.layers.0.self_attn.q_proj.lora_A"], state["model.embed_tokens.lora_embedding_B"].T]
    for factor in drawn:
        torch.testing.assert_close(factor @ factor.T, torch.eye(rank))
        assert torch.allclose(factor.T @ factor, torch.eye(32), atol=1e-5) == full


def test_an_adapter_and_its_base_are_kept_in_float32_by_a_base_in_bfloat16(llama: Path) -> None:
    lm = BaseModel.load(str(llama), dtype="bfloat16")
    adapter = Adapter(lm, rank=2, alpha=2, targets="everything", initialization="orthonormal")
    assert {parameter.dtype for _, parameter in adapter.named_parameters()} == {torch.float32}
    assert logits(lm.model, lm).dtype == torch.bfloat16
    adapter.merge()
    assert {value.dtype for _, value in lm.named_tensors()} == {torch.float32}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("targets", ["attention_output", "everything"])
def test_every_factor_of_an_adapter_learns_on_every_architecture(architecture: str, targets: Targets) -> None:
    lm = tiny_base(architecture)
    if architecture in ("mamba", "mamba2"):
        with pytest.raises(BenchError, match=r"has no layers|peft cannot adapt Mamba2?ForCausalLM"):
            Adapter(lm, rank=2, alpha=2, targets=targets)
        return
    adapter = trained(lm, targets)
    lm.loss(Document("d", TEXT[0])).backward()
    assert all(p.grad is not None and p.grad.any() for _, p in adapter.named_parameters())
    adapter.remove()
    lm.restore()


def test_the_output_projection_of_fused_attention_is_not_its_input_projection() -> None:
    assert target_modules(tiny_base("phi3").model, "attention_output") == [
        f"model.layers.{i}.self_attn.o_proj" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("architecture", "targets", "names"),
    [
        ("mixtral", "all", {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("gpt_oss", "everything", {"mlp.router.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("qwen3_next", "mlp", {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("lfm2", "all", {"conv.conv.weight"}),
        ("mixtral", "attention", set()),
        ("llama", "everything", set()),
        ("gpt2", "all", set()),
        ("phi3", "mlp", set()),
    ],
)
def test_matrices_that_no_adapter_reaches_are_named(architecture: str, targets: Targets, names: set[str]) -> None:
    missed = {name.split(".", 3)[-1] for name in Adapter(tiny_base(architecture), 2, 2, targets).unadapted}
    assert missed - {"linear_attn.conv1d.weight"} - {n for n in missed if "bias" in n} == names


def test_a_method_remarks_on_fused_experts() -> None:
    lm = tiny_base("mixtral")
    method = Lora(lm, Lora.Config(rank=2))
    method.reset()
    assert method.notes() == {}
    method.observe(Document("d", TEXT[0]))
    (remark,) = method.notes()["remarks"]
    assert remark.startswith("lora does not adapt model.layers.0.mlp.gate.weight and others of MixtralForCausalLM")
    assert remark.endswith("6 matrices with 49,408 weights.")


def test_targets_without_a_linear_layer_name_what_is_there() -> None:
    with pytest.raises(BenchError, match=r"targets=mlp \(model.layers.0.mlp.gate.weight is not a linear layer\)"):
        target_modules(tiny_base("mixtral").model, "mlp")
