"""A fingerprint names whatever a method left changed, and nothing when the method brought everything back."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType

import pytest
import torch

from bench.answering import metrics
from bench.conformance import fixtures
from bench.contract.method import Method
from bench.harness import integrity, loop
from bench.harness.integrity import Fingerprint, checksum
from bench.lm.base_model import BaseModel
from bench.records import schema

Patch = pytest.MonkeyPatch


def fake(*_: object, **__: object) -> None:
    """Does nothing, in place of something that does."""


def fill(lm: BaseModel) -> None:
    lm.pristine("lm_head.weight").fill_(0.5)


FAULTS: dict[str, tuple[Callable[[BaseModel, Patch], object], str]] = {
    # code of the harness
    "score": (lambda lm, patch: patch.setattr(metrics, "score", fake), "bench.answering.metrics.score was replaced"),
    "step": (lambda lm, patch: patch.setattr(loop.Loop, "step", fake), "bench.harness.loop.Loop.step was replaced"),
    "code": (
        lambda lm, patch: patch.setattr(metrics.score, "__code__", fake.__code__),
        "the code of bench.answering.metrics.score was replaced",
    ),
    "defaults": (
        lambda lm, patch: patch.setattr(schema.documents_seen, "__defaults__", (1,)),
        "the defaults of bench.records.schema.documents_seen was replaced",
    ),
    "constant": (
        lambda lm, patch: patch.setattr(loop, "metrics", fake) or patch.setitem(metrics.VERSIONS, "f1", "2"),
        "the content of bench.answering.metrics.VERSIONS was replaced",
    ),
    "hidden_builtin": (
        lambda lm, patch: patch.setattr(metrics, "max", min, raising=False),
        "bench.answering.metrics.max was added",
    ),
    "class_attribute": (
        lambda lm, patch: patch.setattr(Method, "memory", [], raising=False),
        "bench.contract.method.Method.memory was added",
    ),
    "base_class": (
        lambda lm, patch: patch.setattr(BaseModel, "encode", fake),
        "bench.lm.base_model.BaseModel.encode was replaced",
    ),
    "checker": (
        lambda lm, patch: patch.setattr(integrity, "_difference", fake),
        "bench.harness.integrity._difference was replaced",
    ),
    # code of libraries
    "cross_entropy": (
        lambda lm, patch: patch.setattr(torch.nn.functional, "cross_entropy", fake),
        "torch.nn.functional.cross_entropy was replaced",
    ),
    "builtin": (lambda lm, patch: patch.setattr(builtins, "round", fake), "builtins.round was replaced"),
    "tensor": (lambda lm, patch: patch.setattr(torch.Tensor, "backward", fake), "torch.Tensor.backward was"),
    "model_class": (lambda lm, patch: patch.setattr(type(lm.model), "forward", fake), "LlamaForCausalLM.forward was"),
    # switches
    "gradients": (lambda lm, patch: torch.set_grad_enabled(False), "is_grad_enabled() changed from True to False"),
    "dtype": (lambda lm, patch: torch.set_default_dtype(torch.float64), "torch.get_default_dtype() changed"),
    "deterministic": (
        lambda lm, patch: torch.use_deterministic_algorithms(True, warn_only=True),
        "torch.are_deterministic_algorithms_enabled() changed",
    ),
    "cudnn": (
        lambda lm, patch: patch.setattr(torch.backends.cudnn, "benchmark", True),
        "torch.backends.cudnn.benchmark changed from False to True",
    ),
    "device": (lambda lm, patch: torch.set_default_device("meta"), "torch."),
    "threads": (lambda lm, patch: torch.set_num_threads(torch.get_num_threads() + 1), "torch.get_num_threads()"),
    "folder": (lambda lm, patch: patch.chdir("/"), "the working folder changed"),
    "global_hook": (
        lambda lm, patch: torch.nn.modules.module.register_module_forward_hook(fake),
        "the hooks in torch.nn.modules.module._global_forward_hooks",
    ),
    # the model
    "hook": (
        lambda lm, patch: lm.model.model.layers[1].mlp.register_forward_hook(fake),
        "lm.model.model.layers.1.mlp._forward_hooks[",
    ),
    "gradient_hook": (
        lambda lm, patch: lm.model.lm_head.weight.register_hook(fake),
        "the hooks on the weights lm_head.weight",
    ),
    "layer_forward": (
        lambda lm, patch: setattr(lm.model.lm_head, "forward", MethodType(fake, lm.model.lm_head)),
        "lm.model.lm_head.forward was added",
    ),
    "layers": (lambda lm, patch: lm.model.model.layers.append(torch.nn.Identity()), "layers._modules['2'] was added"),
    "configuration": (
        lambda lm, patch: setattr(lm.model.config, "max_position_embeddings", 64),
        "max_position_embeddings changed from 256 to 64",
    ),
    "attention": (lambda lm, patch: lm.model.set_attn_implementation("eager"), "the model's attention changed"),
    "generation": (
        lambda lm, patch: setattr(lm.model.generation_config, "max_new_tokens", 3),
        "the generation configuration: max_new_tokens",
    ),
    "rotary": (lambda lm, patch: lm.model.model.rotary_emb.inv_freq.mul_(2), "the model gives other logits"),
    "weights": (lambda lm, patch: fill(lm), "the weights lm_head.weight changed"),
    # the tokenizer, and the object that methods get
    "added_token": (lambda lm, patch: lm.tokenizer.add_tokens(["ferry"]), "the tokenizer's vocabulary size changed"),
    "special_token": (
        lambda lm, patch: lm.tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"}),
        "lm.tokenizer._special_tokens_map['pad_token'] was changed",
    ),
    "padding": (lambda lm, patch: setattr(lm.tokenizer, "padding_side", "left"), "lm.tokenizer.padding_side changed"),
    "normalizer": (
        lambda lm, patch: setattr(
            lm.tokenizer.backend_tokenizer, "normalizer", __import__("tokenizers").normalizers.Lowercase()
        ),
        "the tokens of a fixed text was changed",
    ),
    "encode": (lambda lm, patch: setattr(lm, "encode", fake), "lm.encode was added"),
    "stop_ids": (lambda lm, patch: setattr(lm, "newline_ids", frozenset()), "lm.newline_ids was changed"),
    "notes": (lambda lm, patch: setattr(lm, "memory", ["a text"]), "lm.memory was added"),
}
"""What a method may leave behind, and the clause that names it."""


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Restores the switches of torch after the test."""
    threads, folder = torch.get_num_threads(), os.getcwd()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)
    torch.set_num_threads(threads)
    torch.nn.modules.module._global_forward_hooks.clear()
    os.chdir(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, monkeypatch: Patch, torch_as_it_was: None) -> None:
    change, clause = FAULTS[fault]
    lm = fixtures.base_model()
    difference = Fingerprint(lm).difference
    with monkeypatch.context() as patch:
        change(lm, patch)
        with contextlib.suppress(RuntimeError):  # a changed structure
            lm.restore()
        named = difference(lm)
    assert named is not None and clause in named and not named.endswith(".")


def test_honest_use_leaves_no_difference() -> None:
    lm = fixtures.base_model()
    fingerprint = Fingerprint(lm)
    ids = lm.encode("The mill burned down.")
    lm.log_probs(ids).sum().backward()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(1.0)
        with lm.frozen():
            lm.model(input_ids=ids[None], output_hidden_states=True, use_cache=True)
    handle = lm.model.lm_head.register_forward_hook(fake)
    handle.remove()
    lm.model.train().requires_grad_(False)
    lm.tokenizer(["a", "b c"], truncation=True, max_length=1)
    import bench.help.skeleton  # noqa: F401

    lm.restore()
    assert fingerprint.difference(lm) is None


def test_a_base_that_cannot_be_read_is_a_difference() -> None:
    lm = fixtures.base_model()
    fingerprint = Fingerprint(lm)
    del lm.model
    assert "can no longer be read" in str(fingerprint.difference(lm))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_checksum_sees_one_bit_and_swapped_rows(dtype: str) -> None:
    lm = fixtures.base_model(dtype)
    before = checksum(lm)
    names = [name for name, _ in lm.named_tensors()]
    assert checksum(lm) == before and len(before) == len(names)
    weight = lm.model.lm_head.weight.detach()
    old = weight[3, 5].item()
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0, dtype=weight.dtype))
    changed = [name for name, a, b in zip(names, before, checksum(lm), strict=True) if a != b]
    assert changed == ["lm_head.weight"]
    weight[3, 5] = old
    assert checksum(lm) == before
    weight[1, 1] *= -1  # the highest bit, in a row whose number is even
    assert checksum(lm) != before
    weight[1, 1] *= -1
    weight[[0, 1]] = weight[[1, 0]]
    assert checksum(lm) != before


def test_large_weights_are_sampled_by_rows(monkeypatch: Patch) -> None:
    lm = fixtures.base_model()
    total = sum(tensor.nbytes for _, tensor in lm.named_tensors())
    monkeypatch.setattr(integrity, "WHOLE_BYTES", total // 4 + 1)
    before = checksum(lm)
    weight = lm.model.lm_head.weight.detach()
    weight[1] += 1  # rows 0, 4, 8, ... are read
    assert checksum(lm) == before
    weight[4] += 1
    assert checksum(lm) != before


def test_the_checksum_takes_any_shape_and_type(tmp_path: Path) -> None:
    tensors = [
        torch.tensor(1.5),
        torch.zeros(0),
        torch.ones(3, dtype=torch.bool),
        torch.arange(5, dtype=torch.float16),
        torch.ones(2, 3, 4, dtype=torch.bfloat16)[:, 1:],
        torch.arange(6, dtype=torch.int64).view(2, 3).T,
    ]

    class Weights:
        device = torch.device("cpu")

        def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            return ((str(i), tensor) for i, tensor in enumerate(tensors))

    lm: BaseModel = Weights()  # type: ignore[assignment]
    before = checksum(lm)
    for i, tensor in enumerate(tensors):
        if tensor.numel():
            tensor.view(-1)[-1:].add_(1) if tensor.dtype != torch.bool and tensor.is_contiguous() else tensor.fill_(0)
            assert checksum(lm)[i] != before[i]
