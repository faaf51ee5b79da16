"""bfloat16 and float16: forward passes in that type, weights and updates in float32."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from bench import Document, GradientMethod
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.conformance import fixtures
from bench.contract.method import Conditioning
from bench.data.documents import Question
from bench.errors import Diverged
from bench.harness.ledger import state_bytes
from bench.lm import base_model
from bench.lm.base_model import BaseModel
from bench.lm.precision import DTYPES, cast_matrices
from methods.lora import Lora
from methods.uniform import Uniform
from tests.conftest import TEXT, make_checkpoint

LOW = ["bfloat16", "float16"]
QUESTIONS = [Question(str(i), text) for i, text in enumerate(TEXT)]
IDS = torch.tensor([[5, 7, 11, 13]])


@pytest.fixture(autouse=True, params=["units for bfloat16", "none"])
def processor(request: Any, monkeypatch: Any) -> None:
    """Both kinds of processors, whatever this one is."""
    monkeypatch.setattr(base_model, "multiplies_bfloat16", lambda: request.param != "none")


@pytest.mark.parametrize("dtype", LOW)
def test_a_loaded_base_has_the_weights_of_float32_and_computes_in_its_type(tmp_path: Any, dtype: str) -> None:
    folder = str(make_checkpoint(tmp_path, "llama"))
    lm, full = BaseModel.load(folder, dtype=dtype), BaseModel.load(folder)
    assert lm.weights_hash() == full.weights_hash() and lm.dtype == DTYPES[dtype]
    assert lm.abilities == full.abilities
    logits = lm.model(input_ids=IDS).logits
    assert logits.dtype == DTYPES[dtype] and full.model(input_ids=IDS).logits.dtype == torch.float32
    torch.testing.assert_close(logits.float(), full.model(input_ids=IDS).logits, atol=0.5, rtol=0.05)


def test_a_bfloat16_checkpoint_is_learned_from_in_float32(tmp_path: Any) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    BaseModel.load(str(folder)).model.to(torch.bfloat16).save_pretrained(folder)
    for dtype in DTYPES:
        assert {value.dtype for _, value in BaseModel.load(str(folder), dtype=dtype).named_tensors()} == {torch.float32}


@pytest.mark.parametrize("dtype", LOW)
@torch.no_grad()
def test_every_way_of_calling_the_model_computes_in_its_type(dtype: str) -> None:
    lm = fixtures.base_model(dtype)
    logits = lm.model(input_ids=IDS).logits
    parameters = dict(lm.model.named_parameters())
    assert torch.equal(torch.func.functional_call(lm.model, parameters, (), {"input_ids": IDS}).logits, logits)
    written = lm.model.generate(
        IDS, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )
    torch.testing.assert_close(written.logits[0][0], logits[0, -1].float())
    with lm.autocast():
        hidden = lm.model.base_model(input_ids=IDS).last_hidden_state
        assert torch.equal(lm.model.get_output_embeddings()(hidden), logits)
    expected = inspect.signature(type(lm.model).forward).parameters
    assert [*inspect.signature(lm.model.forward).parameters] == [name for name in expected if name != "self"]


@torch.no_grad()
def test_a_copy_of_the_model_is_independent() -> None:
    lm = fixtures.base_model("bfloat16")
    before, other = lm.model(input_ids=IDS).logits, copy.deepcopy(lm.model)
    for parameter in other.parameters():
        parameter.zero_()
    assert other(input_ids=IDS).logits.dtype == torch.bfloat16 and not other(input_ids=IDS).logits.any()
    assert torch.equal(lm.model(input_ids=IDS).logits, before)


def test_float32_is_left_alone() -> None:
    lm = fixtures.base_model()
    assert "forward" not in vars(lm.model)
    with lm.autocast(), lm.inference():
        assert not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


def moved(method: GradientMethod, document: Document) -> float:
    """Share of the weights that learn which the document moves."""
    method.reset()
    before = {name: parameter.detach().clone() for name, parameter in method.trainable_parameters()}
    method.observe(document)
    changed = [(parameter != before[name]).flatten() for name, parameter in method.trainable_parameters()]
    return torch.cat(changed).double().mean().item()


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", [Uniform, Lora])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adafactor"])
def test_as_many_weights_move_as_in_float32(dtype: str, kind: type[GradientMethod], optimizer: str) -> None:
    [document] = fixtures.documents(fixtures.entries(1))
    for rate in (1e-3, 3e-4, 1e-4, 3e-5):
        config = kind.Config(learning_rate=rate, optimizer=optimizer)
        methods = [kind(fixtures.base_model(precision), config) for precision in (dtype, "float32")]
        share, full = (moved(method, document) for method in methods)
        assert share == pytest.approx(full, abs=0.01)
        assert full > 0.3, "many rows of the embeddings are not read, and half of the factors begin at zero"


@pytest.mark.parametrize("dtype", LOW)
def test_learning_stays_finite_and_close_to_float32(dtype: str) -> None:
    documents, losses, states = fixtures.documents(fixtures.entries(4)), {}, {}
    for precision in (dtype, "float32"):
        method = Uniform(fixtures.base_model(precision), Uniform.Config(learning_rate=1e-3, steps_per_document=3))
        method.reset()
        for document in documents:
            method.observe(document)
        losses[precision] = sum(method.lm.loss(document).item() for document in documents)
        states[precision] = state_bytes(method)
    assert losses[dtype] == pytest.approx(losses["float32"], rel=0.02)
    assert states[dtype] == states["float32"], "the state is in float32"


def test_what_float16_cannot_hold_is_not_blamed_on_the_rate_alone() -> None:
    for dtype, reason in (("float16", "bfloat16 or a lower learning rate"), ("float32", "; a lower learning rate")):
        method = Uniform(fixtures.base_model(dtype), Uniform.Config(learning_rate=1e30, steps_per_document=3))
        method.reset()
        with pytest.raises(Diverged, match=reason):
            method.observe(Document("d", TEXT[0]))


def prefixes(lm: BaseModel) -> Conditioning:
    generator = torch.Generator().manual_seed(0)
    config = lm.model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    pairs = torch.randn(config.num_hidden_layers, 2, heads, 3, config.hidden_size // config.num_attention_heads)
    pairs.normal_(generator=generator)
    return Conditioning(prefix_key_values=[[(keys, values) for keys, values in pairs]] * len(QUESTIONS))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_prefixes_and_soft_prompts_work(tmp_path: Any, architecture: str, dtype: str) -> None:
    folder = str(make_checkpoint(tmp_path, architecture))
    lm, full = BaseModel.load(folder, dtype=dtype), BaseModel.load(folder)
    soft = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for conditioning in (prefixes(lm), Conditioning(prefix_embeddings=[soft] * 3), Conditioning(contrast=0.5)):
        values: list[list[float]] = []
        for base in (lm, full):
            asked = build_prompts(base, QUESTIONS, conditioning, 8)
            values.append(answer_and_nll(base, asked, TEXT, Decoding(max_new_tokens=8))[1])
        assert values[0] == pytest.approx(values[1], abs=0.3)


class Casts(TorchDispatchMode):
    """Counts the tensors of float32 that are cast to bfloat16, by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.shapes.append(next(iter(args)).shape)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("learning", [True, False])
def test_weights_are_cast_once_for_many_answers(learning: bool) -> None:
    lm = fixtures.base_model("bfloat16")
    lm.model.requires_grad_(learning)
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 8)
    with Casts() as casts:
        answer_and_nll(lm, prompts, TEXT, Decoding(max_new_tokens=8))
    assert casts.shapes.count(lm.model.lm_head.weight.shape) == 1
    assert {parameter.requires_grad for parameter in lm.model.parameters()} == {learning}
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()
    _, nll = answer_and_nll(lm, prompts, TEXT, Decoding(max_new_tokens=8))
    assert nll == pytest.approx([torch.tensor(float(len(lm.tokenizer))).log().item()] * 3), "no cast is kept for later"


@torch.no_grad()
def change(weight: Any, how: str) -> None:
    if how == "in place":
        weight.mul_(2)
    elif how == "through data":
        weight.data.mul_(2)
    elif how == "by an optimizer":
        weight.grad = -weight
        torch.optim.SGD([weight], lr=1.0, fused=True).step()
        weight.grad = None
    else:
        weight.data = weight * 2


@pytest.mark.parametrize(
    ("architecture", "how"),
    [("llama", how) for how in ("in place", "through data", "by an optimizer", "replaced")] + [("gpt2", "in place")],
)
def test_a_weight_is_cast_again_only_when_it_has_changed(tmp_path: Any, architecture: str, how: str) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, architecture)), dtype="bfloat16")
    name, weight = next((n, p) for n, p in lm.model.named_parameters() if "mlp" in n and p.ndim == 2)
    document = Document("d", TEXT[0])
    with torch.no_grad(), Casts() as casts:
        before = lm.loss(document)
        casts.shapes.clear()
        assert lm.loss(document) == before and weight.shape not in casts.shapes
        change(weight, how)
        after = lm.loss(document)
        assert weight.shape in casts.shapes and after != before, name
        casts.shapes.clear()
        lm.loss(document)
        assert weight.shape not in casts.shapes
    assert lm.loss(document) == after, "with gradients, autocast casts the weights"


@torch.no_grad()
def test_values_that_somebody_holds_may_change_at_any_time() -> None:
    lm, document = fixtures.base_model("bfloat16"), Document("d", TEXT[0])
    lm.loss(document)
    held = lm.model.lm_head.weight.data
    losses = set()
    for _ in range(3):
        held.mul_(2)
        losses.add(lm.loss(document).item())
    assert len(losses) == 3


def test_a_frozen_weight_passes_the_gradient_on() -> None:
    lm, document = fixtures.base_model("bfloat16"), Document("d", TEXT[0])
    first = next(parameter for name, parameter in lm.model.named_parameters() if "norm" in name)
    gradients = []
    for frozen in (False, True):
        lm.model.requires_grad_(not frozen)
        first.requires_grad_(True)
        lm.loss(document).backward()
        gradients.append(first.grad)
        first.grad = None
    assert torch.equal(*gradients), "the kept casts are those that autocast makes"


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("kind", [torch.nn.Linear, Conv1D])
def test_rounded_factors_give_the_products_of_bfloat16(kind: Any, learning: bool) -> None:
    torch.manual_seed(0)
    module = kind(24, 16)
    module.requires_grad_(learning)
    cast_matrices(module, round_only=True)
    inputs, upstream = torch.randn(5, module.weight.shape[kind is torch.nn.Linear]), None
    inputs.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        product = module(inputs)
    assert product.dtype == torch.bfloat16
    upstream = torch.randn_like(product)
    product.backward(upstream)

    def exact(value: torch.Tensor) -> torch.Tensor:
        return value.detach().bfloat16().double()

    weight = exact(module.weight).T if kind is torch.nn.Linear else exact(module.weight)
    bias = exact(module.bias)
    pairs = [(product, exact(inputs) @ weight + bias), (inputs.grad, exact(upstream) @ weight.T)]
    if learning:
        gradient = exact(inputs).T @ exact(upstream)
        pairs += [(module.weight.grad, gradient.T if kind is torch.nn.Linear else gradient)]
        pairs += [(module.bias.grad, exact(upstream).sum(0))]
    for ours, reference in pairs:
        assert torch.equal(ours.double(), reference.bfloat16().double()), "rounded once, after the sum"
    assert torch.equal(module(inputs), type(module).forward(module, inputs)), "without autocast it is in float32"


def test_a_weight_that_no_linear_layer_reads_is_not_rounded() -> None:
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(2, 8))  # one gain for each head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    norm, x = Norm(), torch.randn(2, 8)
    expected = norm(x)
    cast_matrices(norm)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), expected)
