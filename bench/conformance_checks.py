"""The conformance checks: what must hold of every method, tried in the harness's own loop on a tiny base model.

A check takes a method's class and raises :class:`Violation` with a sentence and its remedy where the contract is broken.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench import conformance_fixtures as fixtures
from bench.conformance_fixtures import Skip, Violation, WatchedLoop, difference, prepare, run, snapshot
from bench.method import Conditioning, Method, MethodConfig
from bench.stream import Document, Entry, EvidencedQuestion, Question

CANARY = "xylophone-quagmire"
"""An answer that stands in no document, no question and no library."""
ODD_TEXTS = {
    "an empty text": ("",),
    "a text of one token": ("a",),
    "white space": (" \n\t ",),
    "a text of several windows": ("The ferry left at noon, and nobody saw the otter. " * 60,),
    "accents, emoji and control characters": ("Ærø–東京 🛳️👩‍🔬 e\u0301\x00\x07\u200b\ufeff\r\n",),
    "the same text twice": ("The mill at Corvale burned down.",) * 2,
}


def require(condition: object, message: str) -> None:
    """Raise the message as a violation unless the condition holds."""
    if not condition:
        raise Violation(message)


def config_is_sound(kind: type[Method]) -> None:
    """The settings have valid defaults and descriptions, and the grid stays within their bounds."""
    require(
        issubclass(kind.Config, MethodConfig), "Config must derive from bench.MethodConfig, which refuses bad keys."
    )
    kind.Config()
    for name, field in kind.Config.model_fields.items():
        require(field.description, f"Config.{name} has no description: give it with pydantic.Field(description=...).")
    for name, values in kind.grid.items():
        require(name in kind.Config.model_fields, f"grid names {name!r}, which is no key of Config.")
        require(len(values), f"grid[{name!r}] is empty: give candidates, or leave it out.")
        for value in values:
            try:
                kind.Config(**{name: value})
            except pydantic.ValidationError as error:
                raise Violation(f"grid[{name!r}] holds {value!r}: {error.errors()[0]['msg']}.") from None


def observe_only_reads(kind: type[Method]) -> None:
    """``observe`` returns nothing and leaves the documents as they were."""
    method = prepare(kind)
    method.reset()
    given = fixtures.documents(fixtures.entries())
    before = [dict(vars(document)) for document in given]
    for document in given:
        returned = method.observe(document)
        require(returned is None, f"observe returned a {type(returned).__name__}; what it learns belongs in the state.")
    unchanged = [dict(vars(document)) for document in given] == before
    require(unchanged, "observe changed a document. Other methods and the scores share it: work on a copy of its text.")


def condition_fits_the_questions(kind: type[Method]) -> None:
    """``condition`` gives nothing, or one well-formed entry per question, and leaves the questions as they were."""
    method = prepare(kind)
    method.reset()
    given = fixtures.entries()
    for document in fixtures.documents(given):
        method.observe(document)
    questions = [_as_shown(kind, entry, gold.question) for entry in given for gold in entry.questions]
    before = [dict(vars(question)) for question in questions]
    with torch.no_grad():
        conditioning = method.condition(questions)
    require(isinstance(conditioning, Conditioning), f"condition returned {conditioning!r}, not a bench.Conditioning.")
    require([dict(vars(q)) for q in questions] == before, "condition changed a question: work on a copy of its text.")
    for field in dataclasses.fields(Conditioning):
        value = getattr(conditioning, field.name)
        if value is not None:
            require(
                len(value) == len(questions), f"{field.name} has {len(value)} entries for {len(questions)} questions."
            )
            for each in value:
                _check_entry(field.name, each)


def _as_shown(kind: type[Method], entry: Entry, question: Question) -> Question:
    return EvidencedQuestion(question.id, question.text, entry.document) if kind.sees_evidence else question


def _check_entry(field: str, entry: Any) -> None:
    if field == "text":
        require(isinstance(entry, str), f"text holds a {type(entry).__name__}; each entry is a string.")
    elif field == "prefix_embeddings":
        good = isinstance(entry, Tensor) and entry.ndim == 2 and entry.shape[-1] == fixtures.HIDDEN
        require(good, f"prefix_embeddings must be tensors of shape (length, {fixtures.HIDDEN}), the hidden size.")
    else:
        good = len(entry) == fixtures.LAYERS and all(
            pair[side].ndim == 3
            and (pair[side].shape[0], pair[side].shape[2]) == (fixtures.HEADS, fixtures.HIDDEN // fixtures.HEADS)
            and pair[side].shape[1] == entry[0][0].shape[1]
            for pair in entry
            for side in (0, 1)
        )
        require(good, "prefix_key_values must be one (keys, values) pair per layer, each (heads, length, head size).")


def same_seed_same_results(kind: type[Method]) -> None:
    """Two instances with one seed give the same scores, states and answers."""
    given = fixtures.entries()
    first, second = (run(prepare(kind), given).history() for _ in range(2))
    what = difference(first, second)
    require(
        what is None,
        f"{what} is not the same in two runs. Draw all chance from a torch.Generator seeded with self.seed, "
        f"and keep nothing in class or module variables.",
    )


def blind_to_the_future(kind: type[Method]) -> None:
    """Other documents and questions from some position on change nothing before it."""
    given, seen = fixtures.entries(), fixtures.LENGTH // 2
    other = given[:seen] + fixtures.entries(fixtures.LENGTH - seen)
    past, also_past = (run(prepare(kind), stream).history(seen) for stream in (given, other))
    what = difference(past, also_past)
    require(
        what is None,
        f"{what} changes with documents that come only after it. A method may use nothing but what observe and "
        f"condition were given.",
    )


def blind_to_the_answers(kind: type[Method]) -> None:
    """Reference answers neither change what the method does nor can be reached from it."""
    given = fixtures.entries()
    one, two = (run(prepare(kind), _answered(given, word), GuardedLoop) for word in (CANARY, f"not {CANARY} but cello"))
    what = difference(one.history(likelihoods=False), two.history(likelihoods=False))
    require(what is None, f"{what} changes with the reference answers. They are the harness's; a method must not look.")


def _answered(given: Sequence[Entry], word: str) -> tuple[Entry, ...]:
    golds = [tuple(dataclasses.replace(g, answers=(f"{word} {g.question.id}",)) for g in e.questions) for e in given]
    return tuple(dataclasses.replace(entry, questions=gold) for entry, gold in zip(given, golds, strict=True))


class GuardedLoop(WatchedLoop):
    """After every document and every probe, no reference answer may be within reach of the method."""

    def step(self, position: int, document: Document) -> None:
        """One document; then look."""
        super().step(position, document)
        self._look(document)

    def probe(self, fraction: float, seen: int) -> None:
        """One probe; then look."""
        super().probe(fraction, seen)
        self._look(*(_as_shown(type(self.method), e, g.question) for e in self.entries for g in e.questions))

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
    """Computes every document's score a second time, by hand, before the method has seen the document."""

    def step(self, position: int, document: Document) -> None:
        """One document; its recorded score must be the one computed before."""
        batch = self.lm.tokens(document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        with torch.no_grad():
            log_probs = self.lm.model(input_ids=ids[None, :-1]).logits[0].double().log_softmax(-1)
        expected = -log_probs.gather(1, ids[1:, None])[len(batch.context_ids) - 1 :].sum().item()
        super().step(position, document)
        event = self.document_events[-1]
        require(
            event.nll is not None and abs(event.nll - expected) < 1e-4 * (1 + abs(expected)),
            f"document {position} was scored {event.nll} nats, but the model as it stood before observing it gives "
            f"{expected}. A method must leave the harness's scoring alone.",
        )


def scored_before_update(kind: type[Method]) -> None:
    """Every document is scored once, in order, by the model as it was before observing it."""
    watched = run(prepare(kind), fixtures.entries(), RescoredLoop)
    order = [event.position for event in watched.document_events]
    require(order == list(range(fixtures.LENGTH)), f"documents were scored in the order {order}.")


def probes_leave_no_trace(kind: type[Method]) -> None:
    """An earlier probe changes no later score, state or answer."""
    given = fixtures.entries()
    probed = run(prepare(kind), given).history()
    what = difference(run(prepare(kind), given, probes=(1.0,)).history(), probed)
    require(what is None, f"{what} changes with questions asked before. condition must not change the state.")


def state_survives_saving(kind: type[Method]) -> None:
    """Saved, and loaded into a fresh instance, the state is the same and gives the same answers."""
    from safetensors.torch import load, save

    given = fixtures.entries()
    first = run(prepare(kind), given)
    state = load(save(first.states[fixtures.LENGTH - 1]))
    what = difference(_resumed(kind, given, state, fixtures.LENGTH).history(), first.history())
    require(what is None, f"{what} is not the same after saving and loading: state_dict leaves something out.")


def resumes_in_mid_stream(kind: type[Method]) -> None:
    """A run that goes on from a saved state ends like one that was never interrupted."""
    given, seen = fixtures.entries(), fixtures.LENGTH // 2
    whole = run(prepare(kind), given)
    what = difference(_resumed(kind, given, whole.states[seen - 1], seen).history(), whole.history())
    require(what is None, f"{what} is not the same in a run resumed half-way: state_dict leaves something out.")


def _resumed(kind: type[Method], given: Sequence[Entry], state: fixtures.State, seen: int) -> WatchedLoop:
    """A fresh instance that takes over the state after ``seen`` documents and goes on to the last probe."""
    method = prepare(kind)
    method.reset()
    method.load_state_dict(state)
    tensor = fixtures.state_difference(state, snapshot(method))
    require(tensor is None, f"the tensor {tensor} is not the same after load_state_dict: restore all of the state.")
    loop = fixtures.loop(method, given)
    for position in range(seen, len(given)):
        loop.step(position, loop.documents[position])
    loop.probe(1.0, len(given))
    return loop


def reset_forgets(kind: type[Method]) -> None:
    """After ``reset`` the state is that before the first document, and another stream goes as on a fresh instance."""
    method = prepare(kind)
    method.reset()
    start, weights = snapshot(method), method.lm.weights_hash()
    run(method, fixtures.entries())
    method.reset()
    tensor = fixtures.state_difference(start, snapshot(method))
    require(tensor is None, f"reset does not bring back the tensor {tensor}: undo all that observe changed.")
    require(method.lm.weights_hash() == weights, "reset does not bring back the base's weights: call super().reset().")
    given = fixtures.entries()
    used, fresh = run(method, given).history(), run(prepare(kind), given).history()
    what = difference(used, fresh)
    require(what is None, f"{what} depends on a stream before the last reset: reset must empty all that was kept.")


def base_is_restored(kind: type[Method]) -> None:
    """After ``reset`` and ``lm.restore()`` the base is, for whoever uses it next, what was loaded."""
    method, fresh = prepare(kind), fixtures.base_model()
    run(method, fixtures.entries())
    method.reset()
    lm = method.lm
    lm.restore()
    require(lm.weights_hash() == fresh.weights_hash(), "the base's weights are not what was loaded.")
    ids = fresh.encode(fixtures.entries(1)[0].document.text)
    with torch.no_grad():
        same = torch.equal(lm.log_probs(ids), fresh.log_probs(ids))
    require(same, "the base has its weights back but computes something else: reset must remove hooks and wrappers.")


def reads_odd_documents(kind: type[Method]) -> None:
    """Any text, and any piece of one, is observed without an error, and the state stays finite."""
    for what, texts in ODD_TEXTS.items():
        _stays_finite(prepare(kind), [Document(f"odd{i}", text) for i, text in enumerate(texts)], what)
    _stays_finite(prepare(kind), fixtures.documents(fixtures.entries(2)), "documents cut into segments", 7)


def runs_in_bfloat16(kind: type[Method]) -> None:
    """The method also works on a base in bfloat16, and leaves it so."""
    method = prepare(kind, "bfloat16")
    _stays_finite(method, fixtures.documents(fixtures.entries(3)), "a base in bfloat16")
    changed = [name for name, value in method.lm.named_tensors() if value.dtype == torch.float32]
    require(not changed, f"the base's {changed and changed[0]} is no longer bfloat16: keep the base's dtype.")


def _stays_finite(method: Method, given: Sequence[Document], what: str, segment_tokens: int | None = None) -> None:
    questions = fixtures.entries(1)[0].questions
    try:
        run(method, [Entry(document, questions) for document in given], probes=(1.0,), segment_tokens=segment_tokens)
    except (Violation, Skip):
        raise
    except Exception as error:
        error.add_note(f"This happened on {what}.")
        raise
    broken = [name for name, value in snapshot(method).items() if not torch.isfinite(value).all()]
    require(not broken, f"{what}: {broken and broken[0]} became NaN or infinite.")


CHECKS: dict[str, Callable[[type[Method]], None]] = {
    check.__name__: check
    for check in (
        config_is_sound,
        observe_only_reads,
        condition_fits_the_questions,
        same_seed_same_results,
        blind_to_the_future,
        blind_to_the_answers,
        scored_before_update,
        probes_leave_no_trace,
        state_survives_saving,
        resumes_in_mid_stream,
        reset_forgets,
        base_is_restored,
        reads_odd_documents,
        runs_in_bfloat16,
    )
}
