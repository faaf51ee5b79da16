"""The harness's own loop, watched: what the conformance checks compare, and what they look for while it runs.

Nothing is added between the harness and the method, so that what is checked is what a board runs.
"""

from __future__ import annotations

import copy
import gc
import math
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.answering.decoding import Decoding
from bench.conformance.fixtures import LENGTH, SEED, Violation, documents, require
from bench.contract.method import Method
from bench.data.documents import Document, Entry, EvidencedQuestion, Question
from bench.harness.loop import Loop

PROBES = (0.5, 1.0)
CANARY = "xylophone-quagmire"
"""An answer that stands in no document, no question and no library."""

State = dict[str, Tensor]


def snapshot(method: Method) -> State:
    """A copy of the method's state.

    Raises:
        Violation: it holds something other than tensors by name.
    """
    state = {}
    for name, value in method.state_dict().items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Violation(
                f"state_dict holds {name!r}, a {type(value).__name__}, which cannot be saved. Return tensors only."
            )
        state[name] = value.detach().contiguous().clone()
    return state


def state_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is in one state only, or is not bit for bit the same in both."""
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            return name
    return None


class WatchedLoop(Loop):
    """Keeps the method's state after every document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states: dict[int, State] = {}

    def step(self, position: int, document: Document) -> None:
        """One document, as the harness does it."""
        super().step(position, document)
        self.states[position] = snapshot(self.method)

    def history(self, seen: int = LENGTH, likelihoods: bool = True) -> dict[str, Any]:
        """Everything that happened until ``seen`` documents had been observed, under words that say what it is."""
        told: dict[str, Any] = {}
        for event in self.document_events:
            if event.position < seen:
                told[f"the score of document {event.position}, segment {event.segment}"] = event.nll
        told.update({f"the state after document {k}": self.states[k] for k in self.states if k < seen})
        for answer in self.answer_events:
            if round(answer.probe * len(self.documents)) <= seen:
                what = f"the answer to question {answer.question_id} at {answer.probe:.0%} of the stream"
                told[what] = (answer.prediction, answer.cut_tokens, answer.nll if likelihoods else None)
        return told


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """What differs first between two histories, among what both tell."""
    for what in a:
        if what in b:
            if isinstance(a[what], dict):
                tensor = state_difference(a[what], b[what])
                if tensor is not None:
                    return f"{what} (tensor {tensor})"
            elif not _same(a[what], b[what]):
                return what
    return None


def _same(one: Any, other: Any) -> bool:
    """Equal; of answers the likelihoods to float32's rounding, which follows where in memory a tensor happens to be."""
    if isinstance(one, tuple):
        *told, nll = one
        *also, likewise = other
        return told == also and (nll == likewise or math.isclose(nll, likewise, rel_tol=1e-5))
    return bool(one == other)


def loop(method: Method, given: Sequence[Entry], kind: type[WatchedLoop] = WatchedLoop, **options: Any) -> WatchedLoop:
    """A loop of the method over the entries, not yet run; what it does to them stays with the loop."""
    given = copy.deepcopy(given)
    return kind(
        method,
        given,
        documents(given),
        seed=SEED,
        **{"probes": PROBES, "decoding": Decoding(max_new_tokens=4), **options},
    )


def run(method: Method, given: Sequence[Entry], kind: type[WatchedLoop] = WatchedLoop, **options: Any) -> WatchedLoop:
    """The loop after one pass of the method over the entries."""
    made = loop(method, given, kind, **options)
    made.run()
    return made


def as_shown(kind: type[Method], entry: Entry, question: Question) -> Question:
    """A question as the harness shows it to a method of this kind."""
    return EvidencedQuestion(question.id, question.text, entry.document) if kind.sees_evidence else question


class GuardedLoop(WatchedLoop):
    """After every document and every probe, no reference answer may be within reach of the method."""

    def step(self, position: int, document: Document) -> None:
        """One document; then look."""
        super().step(position, document)
        self._look(document)

    def probe(self, fraction: float, seen: int) -> None:
        """One probe; then look."""
        super().probe(fraction, seen)
        self._look(*(as_shown(type(self.method), e, g.question) for e in self.entries for g in e.questions))

    def _look(self, *given: object) -> None:
        held = next((value for value in _reachable(self.method, given) if CANARY in value), None)
        require(
            held is None,
            f"reference answers can be reached from the method ({held!r:.60}). It may keep only what observe and "
            f"condition were given: no frame, no loop, no other object of the harness.",
        )


def _reachable(method: Method, given: Sequence[object]) -> Iterator[str]:
    """Every string that can be reached from the method, its class and its module, or what it was given.

    Modules, and classes and function globals of other modules, are left out: they lead everywhere.
    """
    own = type(method).__module__
    todo: list[object] = [method, *given, *vars(sys.modules[own]).values()]
    seen: dict[int, object] = {}
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, types.ModuleType):
            continue
        seen[id(value)] = value
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            yield value.decode(errors="replace")
        elif isinstance(value, type):
            todo += vars(value).values() if value.__module__ == own else ()
        elif isinstance(value, types.FunctionType):
            todo += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
        else:
            todo += gc.get_referents(value)


class RescoredLoop(WatchedLoop):
    """Computes every score a second time, by hand, before the method has seen the document."""

    def score(self, document: Document) -> float:
        """The score, which must be the one computed before."""
        batch = self.lm.tokens(document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        with torch.no_grad():
            log_probs = self.lm.model(input_ids=ids[None, :-1]).logits[0].double().log_softmax(-1)
        expected = -log_probs.gather(1, ids[1:, None])[len(batch.context_ids) - 1 :].sum().item()
        nll = super().score(document)
        require(
            abs(nll - expected) < 1e-4 * (1 + abs(expected)),
            f"document {self.position} was scored {nll} nats, but the model as it stood before observing it gives "
            f"{expected}. A method must leave the harness's scoring alone.",
        )
        return nll
