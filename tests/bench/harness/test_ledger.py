"""The ledger: a sample of the calls gives the operations of all of them, whatever they read."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.conformance.fixtures import base_model
from bench.contract.method import Method
from bench.contract.registry import load_method
from bench.data.documents import Document, Entry
from bench.harness import ledger
from bench.harness.ledger import Ledger
from bench.harness.loop import Loop, construct
from bench.lm.base_model import BaseModel
from bench.records.schema import Costs, Tally

WORDS = "The ferry office near Corvale has moved to Pier 4 and opens at noon now with eight rooms".split()
NOTHING = Tally(seconds=0, flops=0, peak_bytes=0)
SHORT, LONG, SEVERAL_WINDOWS = (5, 20), (60, 80), (100, 200)
"""Words of a document; in tokens about 3 times as many. The base's window is 256 tokens."""


def documents(*parts: tuple[int, tuple[int, int]]) -> list[Document]:
    rng = random.Random(0)
    sizes = [rng.randint(*words) for count, words in parts for _ in range(count)]
    return [Document(str(i), " ".join(rng.choices(WORDS, k=size))) for i, size in enumerate(sizes)]


def costs(kind: type[Method], config: dict[str, Any], of: list[Document], segment: int | None, scoring: bool) -> Costs:
    method = construct(kind, base_model(), kind.Config(**config), 0, segment)
    loop = Loop(method, [Entry(document, ()) for document in of], of, scoring=scoring)
    loop.run()
    return loop.ledger.costs(0, NOTHING)


class Reader(Method):
    """Reads each document with a network of its own, and never with the base."""

    name, paper = "reader", "none"

    def observe(self, document: Document) -> None:
        count = len(self.lm.tokens(document))
        torch.ones(count, 8) @ torch.ones(8, 8)


class Writer(Method):
    """Lets the base go on with each document."""

    name, paper = "writer", "none"

    def observe(self, document: Document) -> None:
        self.lm.generate([document.text], 12, temperature=1.0)


CUT = "dynamic_evaluation"
STREAMS: dict[str, tuple[Any, dict[str, Any], list[Document], int | None, bool]] = {
    "whole": ("uniform", {}, documents((16, SHORT)), None, True),
    "whole, not scored": ("uniform", {}, documents((16, SHORT)), None, False),
    "adapter": ("lora", {}, documents((16, SHORT)), None, True),
    "a growing store": ("knn_lm", {}, documents((16, SHORT)), None, True),
    "own writing": (Writer, {}, documents((16, SHORT)), None, True),
    "several steps": ("uniform", {"steps_per_document": 3}, documents((16, SHORT)), None, True),
    "windows": ("uniform", {}, documents((6, SHORT), (2, SEVERAL_WINDOWS), (6, SHORT)), None, True),
    "windows, not scored": ("uniform", {}, documents((6, SHORT), (2, SEVERAL_WINDOWS), (6, SHORT)), None, False),
    "full context": (CUT, {}, documents((4, LONG)), 26, True),
    "full context, not scored": (CUT, {}, documents((4, LONG)), 26, False),
    "limited context": (CUT, {"context": "limited", "context_tokens": 30}, documents((4, LONG)), 26, True),
    "carried context": (CUT, {"context": "carry"}, documents((4, LONG)), 26, True),
    "carried context, not scored": (CUT, {"context": "carry"}, documents((4, LONG)), 26, False),
    "skipping": (CUT, {"between": "skip", "period": 4}, documents((4, LONG)), 26, True),
    "skipping, not scored": (
        CUT,
        {"between": "skip", "period": 10, "context": "carry"},
        documents((4, LONG)),
        26,
        False,
    ),
    "gathering": (CUT, {"period": 3}, documents((4, LONG)), 26, True),
    "no base": (Reader, {}, documents((40, SHORT)), None, False),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_sample_gives_the_operations_of_all_calls(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, *rest = STREAMS[stream]
    kind = load_method(method) if isinstance(method, str) else method
    sampled = costs(kind, *rest)
    monkeypatch.setattr(ledger._Calls, "is_counted_next", lambda _: True)
    exact = costs(kind, *rest)
    assert exact.observe.flops > 0 and (exact.score.flops > 0) == rest[-1]
    error = 0.05 if stream == "adapter" else 0.03  # the share of attention in a pass over frozen weights is larger
    for phase in ("score", "observe"):
        assert getattr(sampled, phase).flops == pytest.approx(getattr(exact, phase).flops, rel=error), phase


class LateReader(Reader):
    """Reads some documents only."""

    def __init__(self, *args: Any, first: int, every: int) -> None:
        super().__init__(*args)
        self.position, self.first, self.every = 0, first, every

    def observe(self, document: Document) -> None:
        if self.position >= self.first and (self.position - self.first) % self.every == 0:
            super().observe(document)
        self.position += 1


@pytest.mark.parametrize(("first", "every", "error"), [(0, 1000, 0.0), (0, 4, 0.8), (1, 2, 0.8), (40, 1, 0.8)])
def test_what_is_done_at_some_documents_only_is_counted(
    first: int, every: int, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set-up at the first one exactly, and the rest roughly."""
    kind = functools.partial(LateReader, first=first, every=every)
    of = documents((100, SHORT))
    lm = base_model()

    def flops() -> float:
        loop = Loop(kind(lm, LateReader.Config(), 0), [Entry(document, ()) for document in of], of, scoring=False)
        loop.run()
        return loop.ledger.costs(0, NOTHING).observe.flops

    sampled = flops()
    monkeypatch.setattr(ledger._Calls, "is_counted_next", lambda _: True)
    assert sampled == pytest.approx(flops(), rel=error)


def test_seconds_are_scaled_by_the_same_work_from_the_calls_that_are_not_slowed_by_counting(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that reads nothing takes a second for a token, and ten if the call is counted."""
    now = 0.0
    monkeypatch.setattr(ledger.time, "perf_counter", lambda: now)
    monkeypatch.setattr(ledger, "COUNT_EVERY", 4)  # of calls 2-3 and 4-7 after the first, 2 and 6 are drawn
    book, counted = Ledger(BaseModel.load(str(llama))), []
    for tokens in (1, 2, 3, 4, 5, 6, 7, 60, 8):
        counted.append(book._calls["observe", "alone"].is_counted_next())
        with book.phase("observe", tokens):
            torch.ones(1, tokens) @ torch.ones(tokens, 1)
            now += tokens * (10 if counted[-1] else 1)
    assert counted == [True, True, True, True, True, False, True, False, True]
    tally = book.costs(0, NOTHING).observe
    assert (tally.flops, tally.seconds) == (2 * 96, pytest.approx(10 + 95))
    assert book.seconds("observe") == now


@pytest.mark.parametrize("name", ["uniform", "lora"])
def test_the_state_is_measured_without_a_copy_of_the_base(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, kind = base_model(), load_method(name)
    method = construct(kind, lm, kind.Config(optimizer="adam"), 0)
    method.reset()
    method.observe(Document("1", " ".join(WORDS)))
    method.register("sparse", torch.zeros(2, 2).to_sparse())
    state = method.state_dict()
    added = [value for key, value in state.items() if not key.startswith("model.")]
    expected = sum(value.numel() * value.element_size() for value in added) + lm.changed_bytes()
    monkeypatch.setattr(method, "state_dict", lambda: state.update(kind.state_dict(method)) or state)
    assert ledger.state_bytes(method) == expected
    assert all(state[f"model.{key}"].data_ptr() == weight.data_ptr() for key, weight in lm.named_tensors())


def test_memory_is_measured_where_there_is_no_proc(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise OSError

    lm = BaseModel.load(str(llama))
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(Path, "write_text", missing)
    book = Ledger(lm)
    with book.phase("observe"):
        pass
    assert book.costs(0, NOTHING).observe.peak_bytes > 10_000_000
