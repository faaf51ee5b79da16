"""joint: learns at probes only, from the base, on every document as often as it says; and is a control."""

from __future__ import annotations

from pathlib import Path

import torch

from bench import Document
from bench.contract.registry import find_method
from bench.data.documents import Entry
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods.joint import Joint
from tests.conftest import TEXT


def test_each_probe_learns_all_documents_so_far_from_the_base(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    learned: list[list[str]] = []

    class Watched(Joint):
        def flush(self) -> None:
            start = torch.cat([p.detach().flatten() for p in self.lm.model.parameters()])
            assert torch.equal(start, base), "every probe begins with the base"
            learned.append([])
            super().flush()

        def backward(self, batch):  # type: ignore[no-untyped-def]
            learned[-1].append(batch.document.id)
            return super().backward(batch)

    base = torch.cat([p.detach().flatten() for p in lm.model.parameters()])
    documents = [Document(f"d{i}", text) for i, text in enumerate(TEXT)]
    method = Watched(lm, Watched.Config(passes=4, optimizer="sgd", learning_rate=0.1))
    loop = Loop(method, [Entry(document) for document in documents], documents, probes=(0.5, 1.0))
    loop.run()
    assert [len(ids) for ids in learned] == [2 * 4, 3 * 4]
    assert all(sorted(ids[i : i + 3]) == ["d0", "d1", "d2"] for ids in learned[1:] for i in range(0, 12, 3))
    closed = Loop(Joint(lm), loop.entries, documents, probes=(1.0,))
    closed.run()
    nll = [event.nll for event in loop.document_events]
    assert nll == [event.nll for event in closed.document_events], "text is scored by the base"


def test_it_is_a_control() -> None:
    assert find_method("joint").control and Joint.control and not Joint.sees_evidence
