"""The conformance checks: what must hold of every method, tried in the harness's own loop on a tiny base model.

A check takes a method's class and raises :class:`Violation`, a sentence with the remedy, where the contract is broken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench.conformance import fixtures
from bench.conformance.fixtures import Violation, prepare, require
from bench.conformance.loops import (
    CANARY,
    GuardedLoop,
    RescoredLoop,
    State,
    WatchedLoop,
    as_shown,
    difference,
    loop,
    run,
    snapshot,
    state_difference,
)
from bench.contract.config import MethodConfig
from bench.contract.method import Conditioning, Method
from bench.data.documents import Document, Entry, document_id

ODD_TEXTS = {
    "an empty text": "",
    "a text of one token": "a",
    "white space": " \n\t ",
    "a text of several windows": "The ferry left at noon, and nobody saw the otter. " * 18,
    "accents, emoji and control characters": "Ærø–東京 🛳️👩‍🔬 e\u0301\x00\x07\u200b\ufeff\r\n",
    "a text seen before": "a",
    "an ordinary text after odd ones": "The mill at Corvale burned down.",
}


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
    observed = fixtures.documents(given)
    for document in observed:
        method.observe(document)
    questions = [as_shown(kind, entry, gold.question) for entry in given for gold in entry.questions]
    before = [dict(vars(question)) for question in questions]
    with torch.no_grad():
        conditioning = method.condition(questions)
    require(isinstance(conditioning, Conditioning), f"condition returned {conditioning!r}, not a bench.Conditioning.")
    require([dict(vars(q)) for q in questions] == before, "condition changed a question: work on a copy of its text.")
    for field in dataclasses.fields(Conditioning):
        value = getattr(conditioning, field.name)
        if value is not None and field.name != "contrast":
            require(
                len(value) == len(questions), f"{field.name} has {len(value)} entries for {len(questions)} questions."
            )
            for each in value:
                _check_entry(field.name, each, {document.id for document in observed})


def _check_entry(field: str, entry: Any, observed: set[str]) -> None:
    if field == "documents":
        good = not isinstance(entry, str) and len(set(entry)) == len(entry) and observed.issuperset(entry)
        require(good, f"documents holds {entry!r:.60}; each entry lists ids of observed documents, each id once.")
    elif field == "text":
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
    given, seen = fixtures.entries(), fixtures.LENGTH - 2  # no probe comes right after it
    whole = run(prepare(kind), given)
    what = difference(_resumed(kind, given, whole.states[seen - 1], seen).history(), whole.history())
    require(what is None, f"{what} is not the same in a run resumed half-way: state_dict leaves something out.")


def _resumed(kind: type[Method], given: Sequence[Entry], state: State, seen: int) -> WatchedLoop:
    """A fresh instance that takes over the state after ``seen`` documents and goes on to the last probe."""
    method = prepare(kind)
    method.reset()
    method.load_state_dict(state)
    tensor = state_difference(state, snapshot(method))
    require(tensor is None, f"the tensor {tensor} is not the same after load_state_dict: restore all of the state.")
    watched = loop(method, given)
    for position in range(seen, len(given)):
        watched.step(position, watched.documents[position])
    watched.probe(1.0, len(given))
    return watched


def reset_forgets(kind: type[Method]) -> None:
    """After ``reset`` the state is that before the first document, and another stream goes as on a fresh instance."""
    method = prepare(kind)
    learned = {name: value for name, value in snapshot(method).items() if name.startswith("method.")}
    method.reset()
    tensor = state_difference(learned, {name: snapshot(method).get(name, value) for name, value in learned.items()})
    require(tensor is None, f"reset loses what fit learned in the tensor {tensor}: it must come back to that.")
    start, weights = snapshot(method), method.lm.weights_hash()
    run(method, fixtures.entries())
    method.reset()
    tensor = state_difference(start, snapshot(method))
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
    _stays_finite(prepare(kind), ODD_TEXTS)
    texts = [document.text for document in fixtures.documents(fixtures.entries(2))]
    _stays_finite(prepare(kind), dict(zip(("a text in segments", "another one"), texts, strict=True)), segment_tokens=7)


def runs_in_bfloat16(kind: type[Method]) -> None:
    """The method also works on a base in bfloat16, and leaves it so."""
    method = prepare(kind, "bfloat16")
    texts = [document.text for document in fixtures.documents(fixtures.entries(2))]
    _stays_finite(method, dict(zip(("a base in bfloat16", "that base, changed"), texts, strict=True)))
    changed = [name for name, value in method.lm.named_tensors() if value.dtype == torch.float32]
    require(not changed, f"the base's {changed and changed[0]} is no longer bfloat16: keep the base's dtype.")


def _stays_finite(method: Method, texts: Mapping[str, str], segment_tokens: int | None = None) -> None:
    questions = fixtures.entries(1)[0].questions
    given = [Entry(Document(document_id(text), text), questions) for text in texts.values()]
    watched = loop(method, given, probes=(1.0,), segment_tokens=segment_tokens)
    names = list(texts)
    try:
        watched.run()
    except Exception as error:
        error.add_note(f"This happened on {names[watched.position or 0]}.")
        raise
    for position, state in watched.states.items():
        broken = next((name for name, value in state.items() if not torch.isfinite(value).all()), None)
        require(broken is None, f"the tensor {broken} became NaN or infinite on {names[position]}.")


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
