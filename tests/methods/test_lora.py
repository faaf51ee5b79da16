"""LoRA: steps are projected steps of full fine-tuning; merging, exporting and resuming keep the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoModelForCausalLM

from bench import Document, GradientMethod
from bench.harness.ledger import state_bytes
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods.lora import Lora
from tests.conftest import TEXT
from tests.tiny_models import weights

DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXT)]
FULL = 32
"""Hidden size of the tiny checkpoints, the highest rank on the side of the hidden states."""


class Matrices(GradientMethod):
    """Full fine-tuning of all parameters that an adapter can reach: all but the gains of norms."""

    name = "matrices"
    paper = "none"

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        return [(name, value) for name, value in self.lm.model.named_parameters() if value.ndim > 1]


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def lora(lm: BaseModel, **config: Any) -> Lora:
    values = {"optimizer": "sgd", "learning_rate": 0.1, "rank": 4, "alpha": 4, "initialization": "orthonormal"}
    return Lora(lm, Lora.Config(**{**values, **config}), seed=3)


def learn(method: GradientMethod, documents: Iterable[Document] = DOCUMENTS) -> dict[str, Tensor]:
    """Changes of the base's weights after these documents."""
    method.reset()
    before = weights(method.lm)
    for document in documents:
        method.observe(document)
    if isinstance(method, Lora):
        method.merge()
    after = weights(method.lm)
    method.reset()
    return {name: after[name] - before[name] for name in before}


def log_probs(lm: BaseModel) -> Tensor:
    with torch.no_grad():
        return lm.log_probs(lm.encode(TEXT[1]))


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Norm of the difference, relative to ``b``."""
    gap = sum((a[name] - b[name]).square().sum().item() for name in b)
    return float((gap / sum(value.square().sum().item() for value in b.values())) ** 0.5)


def test_at_full_rank_the_first_step_equals_full_fine_tuning(lm: BaseModel) -> None:
    full = learn(Matrices(lm, Matrices.Config(optimizer="sgd", learning_rate=0.1)), DOCUMENTS[:1])
    ours = learn(lora(lm, targets="everything", rank=2 * FULL, alpha=2 * FULL), DOCUMENTS[:1])
    for name in full:  # the MLP's inner size, the longest input, is 64
        torch.testing.assert_close(ours[name], full[name], atol=1e-5, rtol=1e-3)


def test_at_a_lower_rank_the_first_step_is_projected(lm: BaseModel) -> None:
    full = learn(Matrices(lm, Matrices.Config(optimizer="sgd", learning_rate=0.1)), DOCUMENTS[:1])
    method = lora(lm, targets="everything", alpha=8)  # alpha / rank = 2 scales both the update and its gradient
    drawn = method.adapter.state_dict()
    ours = learn(method, DOCUMENTS[:1])
    a, b = drawn["lm_head.lora_A"], drawn["model.embed_tokens.lora_embedding_B"]
    torch.testing.assert_close(ours["lm_head.weight"], 4 * full["lm_head.weight"] @ a.T @ a, atol=1e-5, rtol=1e-3)
    embedded = "model.embed_tokens.weight"
    torch.testing.assert_close(ours[embedded], 4 * full[embedded] @ b @ b.T, atol=1e-5, rtol=1e-3)


def test_a_higher_rank_is_closer_to_full_fine_tuning(lm: BaseModel) -> None:
    full = learn(Matrices(lm, Matrices.Config(optimizer="sgd", learning_rate=0.01)))
    gaps = [
        distance(learn(lora(lm, targets="everything", rank=rank, alpha=rank, learning_rate=0.01)), full)
        for rank in (4, 16, 2 * FULL)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.15


def test_the_update_has_the_configured_rank_and_targets(lm: BaseModel) -> None:
    added = learn(lora(lm, targets="mlp", optimizer="adam", learning_rate=1e-2))
    ranks = {name: int(torch.linalg.matrix_rank(value, rtol=1e-4)) for name, value in added.items() if value.any()}
    assert set(ranks) == {name for name in added if ".mlp." in name}
    assert set(ranks.values()) == {4}


def test_the_base_is_untouched_and_the_adapter_is_the_state(lm: BaseModel) -> None:
    untouched = lm.weights_hash()
    method = lora(lm, targets="attention_output")
    method.reset()
    method.observe(DOCUMENTS[0])
    assert lm.weights_hash() == untouched
    assert state_bytes(method) == 2 * 4 * (FULL + FULL) * 4, "blocks x rank x (inputs + outputs) x bytes"


def test_nothing_changes_at_a_rate_of_zero(lm: BaseModel) -> None:
    before = log_probs(lm)
    method = lora(lm, targets="everything", learning_rate=0.0)
    method.reset()
    method.observe(DOCUMENTS[0])
    assert torch.equal(log_probs(lm), before)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_from_the_scoring_graph_is_learning(lm: BaseModel, optimizer: str) -> None:
    states = []
    for scoring in (True, False):
        method = lora(lm, optimizer=optimizer, learning_rate=1e-2)
        Loop(method, (), DOCUMENTS, scoring=scoring).run()
        states.append(method.state_dict())
        method.reset()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_merging_keeps_the_answers_and_removes_the_adapter(lm: BaseModel) -> None:
    method = lora(lm, targets="everything")
    method.reset()
    method.observe(DOCUMENTS[0])
    unmerged = log_probs(lm)
    method.merge()
    torch.testing.assert_close(log_probs(lm), unmerged, atol=1e-3, rtol=1e-4)
    assert not any("lora" in name for name, _ in lm.model.named_modules())
    method.observe(DOCUMENTS[1])  # with a new adapter
    method.reset()
    assert lm.changed_bytes() == 0


def test_plain_peft_loads_the_export(checkpoint: Path, tmp_path: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    method = lora(lm, targets="everything", learning_rate=0.01)
    method.reset()
    method.observe(DOCUMENTS[0])
    method.export(tmp_path)
    expected = log_probs(lm)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not torch.equal(log_probs(BaseModel(base, lm.tokenizer)), expected)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(log_probs(BaseModel(loaded, lm.tokenizer)), expected)


def test_an_export_before_the_first_document_changes_nothing(lm: BaseModel, llama: Path, tmp_path: Path) -> None:
    method = lora(lm)
    method.reset()
    method.export(tmp_path)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), str(tmp_path))
    method.reset()
    assert torch.equal(log_probs(BaseModel(loaded, lm.tokenizer)), log_probs(lm))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adafactor"])
def test_a_resumed_run_equals_an_uninterrupted_one(lm: BaseModel, llama: Path, optimizer: str) -> None:
    first, resumed = (lora(each, optimizer=optimizer) for each in (lm, BaseModel.load(str(llama))))
    first.reset()
    resumed.reset()
    start = first.state_dict()
    first.observe(DOCUMENTS[0])
    resumed.load_state_dict(first.state_dict())
    for method in (first, resumed):
        method.observe(DOCUMENTS[1])
    whole, again = first.state_dict(), resumed.state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    first.load_state_dict(start)
    lm.restore()  # a state from before the first document has no adapter
