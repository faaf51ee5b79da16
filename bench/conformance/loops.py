"""The harness's own loop with observers, which record what the conformance checks compare and check while it runs.

Nothing comes between the harness and the method: the checks run what a board runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.answering.decoding import Decoding
from bench.conformance.fixtures import LENGTH, SEED, Violation, documents, prepare, require
from bench.conformance.reach import reachable_strings
from bench.contract.method import Method
from bench.data.documents import Document, Entry
from bench.harness.loop import DueQuestion, Loop, Score, question_for_method
from bench.lm.base_model import TokenBatch

PROBES = (0.5, 1.0)
CANARY = "xylophone-quagmire"
"""An answer that occurs in no document, no question and no library."""

State = dict[str, Tensor]


def snapshot(method: Method) -> State:
    """A copy of the method's state.

    Raises:
        Violation: the state holds something other than named tensors.
    """
    state = {}
    for name, value in method.state_dict().items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Violation(
                f"state_dict holds {name!r} of type {type(value).__name__}, which cannot be saved: return tensors only."
            )
        state[name] = value.detach().contiguous().clone()
    return state


def state_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that is not in both states, or not bit for bit the same."""
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            return name
    return None


class WatchedLoop(Loop):
    """A loop that keeps the method's state after every document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states: dict[int, State] = {}

    def step(self, position: int, document: Document) -> None:
        """Process one document, and keep the state."""
        super().step(position, document)
        self.states[position] = snapshot(self.method)

    def history(self, seen: int = LENGTH, likelihoods: bool = True) -> dict[str, Any]:
        """Scores, states and answers until ``seen`` documents had been observed, each under its description."""
        history: dict[str, Any] = {}
        for event in self.document_events:
            if event.position < seen:
                history[f"The score of document {event.position}, segment {event.segment},"] = event.nll
        history.update({f"The state after document {k}": self.states[k] for k in self.states if k < seen})
        for answer in self.answer_events:
            if round(answer.probe * len(self.documents)) <= seen:
                item = f"The answer to question {answer.question_id} at {answer.probe:.0%} of the stream"
                history[item] = (answer.prediction, answer.cut_tokens, answer.nll if likelihoods else None)
        return history


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The description of the first item that is in both histories and not the same."""
    for item in a:
        if item in b:
            if isinstance(a[item], dict):
                tensor = state_difference(a[item], b[item])
                if tensor is not None:
                    return f"{item} (tensor {tensor})"
            elif not same(a[item], b[item]):
                return item
    return None


def same(a: Any, b: Any) -> bool:
    """Equality; the likelihoods of answers up to float32 rounding, which depends on the memory layout of tensors."""
    if isinstance(a, tuple):
        (*prediction_a, nll_a), (*prediction_b, nll_b) = a, b
        return prediction_a == prediction_b and (nll_a == nll_b or math.isclose(nll_a, nll_b, rel_tol=1e-5))
    return bool(a == b)


def make_loop(
    method: Method,
    entries: Sequence[Entry],
    kind: type[WatchedLoop] = WatchedLoop,
    observed: Sequence[Entry] | None = None,
    **options: Any,
) -> WatchedLoop:
    """A loop, not yet run, over a copy of the entries; the method observes their documents, or ``observed``."""
    entries, observed = copy.deepcopy((entries, entries if observed is None else observed))
    return kind(
        method,
        entries,
        documents(observed),
        seed=SEED,
        **{"probes": PROBES, "decoding": Decoding(max_new_tokens=4), **options},
    )


def run(method: Method, entries: Sequence[Entry], kind: type[WatchedLoop] = WatchedLoop, **options: Any) -> WatchedLoop:
    """A loop after one pass of the method over the entries."""
    loop = make_loop(method, entries, kind, **options)
    loop.run()
    return loop


def answers(loop: Loop, due: Sequence[DueQuestion]) -> list[tuple[str, int, float | None]]:
    """Ask these questions as at the end of a stream: their predictions, cut tokens and likelihoods."""
    with loop.method.answering():
        loop.ask(1.0, due)
    events = loop.answer_events[-len(due) :]
    return [(event.prediction, event.cut_tokens, event.nll) for event in events]


class FlushedLoop(WatchedLoop):
    """A loop that calls ``flush`` after every document, and loads the state back from before it."""

    def step(self, position: int, document: Document) -> None:
        """Process one document, then flush and undo it."""
        super().step(position, document)
        self.method.flush()
        self.method.load_state_dict(self.states[position])


class GuardedLoop(WatchedLoop):
    """A loop that searches for reference answers within reach of the method, after every document and every probe."""

    def step(self, position: int, document: Document) -> None:
        """Process one document, then search."""
        super().step(position, document)
        self._search(document)

    def probe(self, fraction: float, seen: int) -> None:
        """Run one probe, then search."""
        super().probe(fraction, seen)
        sees = type(self.method).sees_evidence
        self._search(*(question_for_method(sees, g.question, e.document) for e in self.entries for g in e.questions))

    def _search(self, *inputs: object) -> None:
        for place, string in reachable_strings(self.method, inputs):
            require(
                CANARY not in string,
                f"Reference answers can be reached from the method ({string!r:.60} from {place}). Keep only the "
                f"documents and questions that observe and condition receive: no frame, no loop, no other object of "
                f"the harness.",
            )


def resumed(kind: type[Method], state: State) -> Method:
    """A fresh instance that has loaded the state."""
    method = prepare(kind)
    method.reset()
    method.load_state_dict(state)
    tensor = state_difference(state, snapshot(method))
    require(tensor is None, f"The tensor {tensor} differs after load_state_dict, which must restore the whole state.")
    return method


class InterruptedLoop(WatchedLoop):
    """A loop that stops after every document and goes on with a fresh instance, which has nothing but the saved state.

    If such a run ends like one without interruptions, so does a run that resumes from any one of the positions.
    """

    def step(self, position: int, document: Document) -> None:
        """Process one document, and go on with another instance."""
        super().step(position, document)
        self.method = resumed(type(self.method), self.states[position])
        self.lm = self.method.lm


class RescoredLoop(WatchedLoop):
    """A loop that recomputes every score without the harness's code, before the method observes the document."""

    def score(self, batch: TokenBatch) -> Score:
        """The harness's score, which must equal the recomputed one."""
        reading = self.method.reading
        begin, context = batch.context_ids[:1], batch.context_ids[1:]
        if len(context) and reading.cache is not None:
            return super().score(batch)  # keys and values from before the last update cannot be computed again
        if reading.context_tokens is not None:
            context = context[max(0, len(context) - reading.context_tokens) :]
        ids = torch.cat([begin, context, batch.token_ids])
        with torch.no_grad():
            output = self.lm.model(input_ids=ids[None, :-1], output_hidden_states=True)
            first = len(context)
            log_probs, hidden = output.logits[0, first:].double().log_softmax(-1), output.hidden_states[-1][0, first:]
            log_probs = self.method.mix_next_token(log_probs.float(), hidden, ids[:-1]).double()
        expected = -log_probs.gather(1, ids[first + 1 :, None]).sum().item()
        score = super().score(batch)
        require(
            abs(score.nll - expected) < 1e-4 * (1 + abs(expected)),
            f"Document {self.position} was scored {score.nll} nats, but the model before observing it gives "
            f"{expected}. Do not interfere with the harness's scoring.",
        )
        return score
