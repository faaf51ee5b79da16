"""The ledger: measuring must not change what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.harness.ledger import COUNT_EVERY, Ledger
from bench.lm.base_model import BaseModel
from tests.conftest import TEXT


def gradients(lm: BaseModel) -> list[Tensor]:
    lm.model.zero_grad()
    lm.log_probs(lm.encode(TEXT[0])).sum().backward()
    return [parameter.grad.clone() for parameter in lm.model.parameters()]


def test_counting_operations_changes_no_bit_of_the_gradients(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    ledger = Ledger(lm.device)
    with ledger.phase("observe"):
        counted = gradients(lm)
    assert ledger.costs(0).observe.flops > 0 and COUNT_EVERY > 1
    with ledger.phase("observe"):
        uncounted = gradients(lm)
    assert all(torch.equal(a, b) for a, b in zip(counted, uncounted, strict=True))


def test_operations_are_those_that_pytorch_counts(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    lm.model.set_attn_implementation("eager")  # PyTorch has no formula for the fused kernel of CPUs
    ledger = Ledger(lm.device)
    with ledger.phase("observe"):
        gradients(lm)
    with FlopCounterMode(display=False) as counter:
        gradients(lm)
    assert ledger.costs(0).observe.flops == counter.get_total_flops() > 0


def test_memory_is_measured_where_there_is_no_proc(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    ledger = Ledger(torch.device("cpu"))
    with ledger.phase("observe"):
        pass
    assert ledger.costs(0).observe.peak_bytes > 10_000_000
