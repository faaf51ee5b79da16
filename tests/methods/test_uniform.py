"""Uniform: the parameters that learn take plain steps, and the others stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import Document
from bench.lm.base_model import BaseModel
from methods.uniform import Uniform
from tests.conftest import TEXT


@pytest.mark.parametrize("learn", ["all", "embeddings"])
def test_a_step_moves_only_what_learns(checkpoint: Path, learn: str) -> None:
    lm = BaseModel.load(str(checkpoint))
    document = Document("d", TEXT[0])
    lm.loss(document).backward()
    rows = lm.model.get_input_embeddings().weight
    expected = {
        name: p.detach() - 0.1 * p.grad if learn == "all" or p is rows else p.detach().clone()
        for name, p in lm.model.named_parameters()
        if p.grad is not None
    }
    lm.model.zero_grad()
    method = Uniform(lm, Uniform.Config(optimizer="sgd", learning_rate=0.1, learn=learn))
    method.reset()
    method.observe(document)
    for name, p in lm.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], msg=name)
