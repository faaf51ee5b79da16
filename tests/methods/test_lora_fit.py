"""LoRA fitted per document: the update of each document, their sum, and the model between documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import Document
from bench.lm.base_model import BaseModel
from bench.seeds import seed_for
from methods.lora_fit import LoraFit
from methods.parts.adapters import Adapter
from tests.conftest import TEXT

DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXT)]
OUTPUTS = [f"model.layers.{block}.self_attn.o_proj.weight" for block in range(2)]


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def fit(lm: BaseModel, **config: Any) -> LoraFit:
    """A method after its reset, on a base of hidden size 32."""
    method = LoraFit(
        lm, LoraFit.Config(**{"learning_rate": 1e-2, "steps_per_document": 3, "rank": 2, **config}), seed=3
    )
    method.reset()
    return method


def added(lm: BaseModel) -> dict[str, Tensor]:
    """Changes of the weights since they were loaded, without those that are 0."""
    changes = {name: value.detach() - lm.pristine(name) for name, value in lm.named_tensors()}
    return {name: value for name, value in changes.items() if value.any()}


def rank(matrix: Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-4))


def test_the_rank_is_a_thirty_second_of_the_hidden_size(lm: BaseModel) -> None:
    assert fit(lm, rank=None).rank == 1
    lm.model.config.hidden_size = 4096
    assert fit(lm, rank=None, targets="attention").rank == 128, "as in the paper"


def test_a_document_adds_the_adapter_that_plain_adam_fits(lm: BaseModel) -> None:
    adapter = Adapter(lm, rank=2, alpha=4, targets="attention_output", seed=seed_for(3, "adapter", 0))
    adam = torch.optim.Adam([parameter for _, parameter in adapter.named_parameters()], lr=1e-2, fused=True)
    for _ in range(3):
        adam.zero_grad()
        lm.loss(DOCUMENTS[0]).backward()
        adam.step()
    adapter.merge()
    expected = added(lm)
    fit(lm, scale=2).observe(DOCUMENTS[0])
    ours = added(lm)
    assert list(ours) == list(expected) == OUTPUTS
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert [rank(value) for value in ours.values()] == [2, 2]


def test_adapters_are_fitted_on_top_of_each_other_and_summed(lm: BaseModel) -> None:
    method = fit(lm)
    method.observe(DOCUMENTS[0])
    before = added(lm)
    with torch.no_grad():
        loss = lm.loss(DOCUMENTS[1])
    method.observe(DOCUMENTS[1])
    with torch.no_grad():
        assert lm.loss(DOCUMENTS[1]) < loss
    total = added(lm)
    assert [rank(total[name] - before[name]) for name in OUTPUTS] == [2, 2]
    assert [rank(total[name]) for name in OUTPUTS] == [4, 4], "each adapter is drawn anew, so the rank of the sum grows"


def test_other_layers_can_be_adapted(lm: BaseModel) -> None:
    method = fit(lm, targets="everything", initialization="orthonormal")
    for document in DOCUMENTS[:2]:
        method.observe(document)
    total = added(lm)
    assert set(total) == {name for name, value in lm.named_tensors() if value.ndim > 1}
    assert {rank(value) for value in total.values()} == {4}


def test_between_documents_the_model_is_an_ordinary_one(lm: BaseModel) -> None:
    modules = dict(lm.model.named_modules())
    method = fit(lm)
    method.observe(DOCUMENTS[0])
    assert dict(lm.model.named_modules()) == modules
    assert not any(name.startswith("optimizer.") for name in method.state_dict()), "each document has its own optimizer"
    assert method.learns_from_scoring
    method.before_scoring()
    assert dict(lm.model.named_modules()) != modules, "scoring needs the graph of the next adapter"
    method.reset()
    assert dict(lm.model.named_modules()) == modules and lm.changed_bytes() == 0


def test_a_resumed_run_equals_an_uninterrupted_one(lm: BaseModel, llama: Path) -> None:
    first, resumed = (fit(each) for each in (lm, BaseModel.load(str(llama))))
    first.observe(DOCUMENTS[0])
    resumed.load_state_dict(first.state_dict())
    for method in (first, resumed):
        method.observe(DOCUMENTS[1])
    whole, again = first.state_dict(), resumed.state_dict()
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_an_empty_document_adds_nothing(lm: BaseModel) -> None:
    fit(lm).observe(Document("empty", ""))
    assert added(lm) == {}
