"""The conformance checks, which every method must pass in the harness's own loop on a tiny base model.

A check takes a method's class. If the method breaks the contract, it raises :class:`Violation` with the remedy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench.conformance import fixtures
from bench.conformance.fixtures import Violation, prepare, require
from bench.conformance.loops import (
    CANARY,
    FlushedLoop,
    GuardedLoop,
    InterruptedLoop,
    RescoredLoop,
    WatchedLoop,
    answers,
    difference,
    make_loop,
    resumed,
    run,
    same,
    snapshot,
    state_difference,
)
from bench.conformance.reach import reachable_strings, spelled
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.contract.method import Conditioning, Method
from bench.contract.search import examples
from bench.data.documents import Document, Entry, document_id
from bench.errors import first_problem
from bench.harness.integrity import Fingerprint
from bench.harness.loop import due_questions, question_for_method
from bench.lm.base_model import BaseModel
from bench.lm.mixing import head_inputs, mixed

ODD_TEXTS = {
    "an empty text": "",
    "a text of one token": "a",
    "whitespace": " \n\t ",
    "a text of several windows": "The ferry left at noon, and nobody saw the otter. " * 18,
    "accents, emoji and control characters": "Ærø–東京 🛳️👩‍🔬 e\u0301\x00\x07\u200b\ufeff\r\n",
    "a text seen before": "a",
    "an ordinary text after odd ones": "The mill at Corvale burned down.",
}


def config_is_sound(kind: type[Method]) -> None:
    """All settings have valid defaults and descriptions, and the search space stays within their bounds."""
    require(
        issubclass(kind.Config, MethodConfig), "Config must derive from bench.MethodConfig, which refuses unknown keys."
    )
    _check_settings(kind.Config())
    for name, values in kind.search_space(kind.Config()).items():
        require(name in kind.Config.model_fields, f"search_space has {name!r}, which is not a field of Config.")
        require(len(examples(values)), f"search_space has no values for {name!r}: list its choices, or remove it.")
        for value in examples(values):
            try:
                kind.Config(**{name: value})
            except pydantic.ValidationError as error:
                raise Violation(f"Correct the search space: {first_problem(error, kind.Config)}") from None


def _check_settings(group: pydantic.BaseModel, place: str = "Config") -> None:
    """Check that a group of settings, and each group in it, refuses unknown keys and describes its own."""
    kind = type(group)
    strict = kind.model_config.get("extra") == "forbid"
    require(strict, f"{place} accepts unknown keys: derive {kind.__name__} from bench.MethodConfig.")
    for name, field in kind.model_fields.items():
        own = f"{place}.{name}"
        require(field.description, f"{own} has no description: give it with pydantic.Field(description=...).")
        if isinstance(value := getattr(group, name), pydantic.BaseModel):
            _check_settings(value, own)


def observe_only_reads(kind: type[Method]) -> None:
    """``observe`` returns nothing and leaves the documents as they were."""
    method = prepare(kind)
    observe: Callable[[Document], Any] = method.observe
    observed: list[tuple[Document, dict[str, Any]]] = []

    def watched(document: Document) -> None:
        observed.append((document, dict(vars(document))))
        result = observe(document)
        require(result is None, f"observe returned a {type(result).__name__}: keep what it learns in the state.")

    vars(method)["observe"] = watched
    run(method, fixtures.entries(), probes=())
    unchanged = all(vars(document) == before for document, before in observed)
    require(unchanged, "observe changed a document, which other methods and the scoring share: copy its text instead.")


def condition_fits_the_questions(kind: type[Method]) -> None:
    """``condition`` returns nothing, or one well-formed entry per question, and leaves the questions as they were."""
    method, entries = prepare(kind), fixtures.entries()
    run(method, entries, probes=())
    sees = kind.sees_evidence
    questions = [question_for_method(sees, gold.question, e.document) for e in entries for gold in e.questions]
    before = [dict(vars(question)) for question in questions]
    method.flush()
    with method.answering():
        conditioning = method.condition(questions)
    require(
        isinstance(conditioning, Conditioning), f"condition returned {conditioning!r}: return a bench.Conditioning."
    )
    require([dict(vars(q)) for q in questions] == before, "condition changed a question: copy its text instead.")
    document_ids = {document.id for document in fixtures.documents(entries)}
    for field in dataclasses.fields(Conditioning):
        value = getattr(conditioning, field.name)
        if value is not None and field.name not in ("contrast", "weights"):
            require(
                len(value) == len(questions),
                f"{field.name} has {len(value)} entries for {len(questions)} questions: give one per question.",
            )
            for item in value:
                _check_item(field.name, item, document_ids, method.lm)


def _check_item(field: str, item: Any, document_ids: set[str], lm: BaseModel) -> None:
    if field == "documents":
        good = not isinstance(item, str) and len(set(item)) == len(item) and document_ids.issuperset(item)
        require(good, f"documents holds {item!r:.60}: each entry must list ids of observed documents, each id once.")
    elif field == "text":
        require(isinstance(item, str), f"text holds a {type(item).__name__}: each entry must be a string.")
    elif field == "prefix_embeddings":
        width = lm.model.get_input_embeddings().embedding_dim
        good = isinstance(item, Tensor) and item.ndim == 2 and item.shape[-1] == width
        require(good, f"prefix_embeddings must be tensors of shape (length, hidden size = {width}).")
    else:
        layers, heads, size = lm.key_value_shape
        good = len(item) == layers and all(
            pair[side].ndim == 3
            and (pair[side].shape[0], pair[side].shape[2]) == (heads, size)
            and pair[side].shape[1] == item[0][0].shape[1]
            for pair in item
            for side in (0, 1)
        )
        require(
            good,
            "prefix_key_values must hold a (keys, values) pair per layer, each of shape (heads, length, head size).",
        )


def same_seed_same_results(kind: type[Method]) -> None:
    """Two instances with the same seed give the same scores, states and answers."""
    entries = fixtures.entries()
    first, second = (run(prepare(kind), entries).history() for _ in range(2))
    item = difference(first, second)
    if issubclass(kind, MetaTrained):
        one, other = fixtures.learner(kind, "float32"), fixtures.train_learner(kind, "float32")
        different = (name for name, value in one.items() if not torch.equal(value, other[name]))
        item = next((f"{name}, of the learner after training," for name in different), item)
    require(
        item is None,
        f"{item} differs between two runs. Draw all random numbers from a torch.Generator seeded with self.seed, "
        f"and keep nothing in class or module variables.",
    )


def blind_to_the_future(kind: type[Method]) -> None:
    """Nothing before a position depends on the documents and questions after it."""
    entries, seen = fixtures.entries(), fixtures.LENGTH // 2
    other = entries[:seen] + fixtures.entries(fixtures.LENGTH - seen)
    past, other_past = (run(prepare(kind), stream).history(seen) for stream in (entries, other))
    item = difference(past, other_past)
    require(
        item is None,
        f"{item} depends on later documents. Use only the documents and questions that observe and condition receive.",
    )


def blind_to_the_answers(kind: type[Method]) -> None:
    """Reference answers do not change what the method does, and cannot be reached from it."""
    entries = fixtures.entries()
    words = (CANARY, f"not {CANARY} but cello")
    first, second = (run(prepare(kind), _with_answers(entries, word), GuardedLoop) for word in words)
    item = difference(first.history(likelihoods=False), second.history(likelihoods=False))
    require(
        item is None,
        f"{item} depends on the reference answers. "
        f"Use only the documents and questions that observe and condition receive.",
    )


def _with_answers(entries: Sequence[Entry], word: str) -> tuple[Entry, ...]:
    golds = [tuple(dataclasses.replace(g, answers=(f"{word} {g.question.id}",)) for g in e.questions) for e in entries]
    return tuple(dataclasses.replace(entry, questions=gold) for entry, gold in zip(entries, golds, strict=True))


def scored_before_update(kind: type[Method]) -> None:
    """Every document is scored once, in order, by the model as it was before observing it."""
    loop = run(prepare(kind), fixtures.entries(), RescoredLoop)
    order = [(event.position, event.segment) for event in loop.document_events]
    require(
        order == sorted(set(order)) and {position for position, _ in order} == set(range(fixtures.LENGTH)),
        f"Documents and their segments were scored in the order {order}, not each once, first to last. "
        f"Do not interfere with the harness's scoring.",
    )


def scores_read_only_the_past(kind: type[Method]) -> None:
    """The tokens of a text are as likely, under the adapted model, whatever follows them."""
    method, entries = prepare(kind), fixtures.entries()
    loop = run(method, entries, probes=())
    for document in fixtures.documents(entries):
        whole = method.lm.tokens(document)
        half = dataclasses.replace(whole, token_ids=whole.token_ids[: len(whole) // 2])
        alone, among = (torch.cat(list(loop.score_again(batch).log_probs)) for batch in (half, whole))
        require(
            torch.allclose(among[: len(alone)], alone, atol=1e-3),
            "The score of a token depends on later tokens: what is added to the model may mix a position with earlier "
            "ones only.",
        )


def probes_leave_no_trace(kind: type[Method]) -> None:
    """A probe changes no later score, state or answer."""
    entries = fixtures.entries()
    probed = run(prepare(kind), entries).history()
    item = difference(run(prepare(kind), entries, probes=(1.0,)).history(), probed)
    require(item is None, f"{item} depends on questions asked earlier: condition must not change the state.")


def flush_leaves_no_state(kind: type[Method]) -> None:
    """A state that was saved before ``flush`` and loaded after it goes on as if ``flush`` had never been called."""
    prepare(kind)
    if kind.flush is Method.flush:
        return
    entries = fixtures.entries(fixtures.LONG)
    whole, flushed = (
        run(prepare(kind), entries, loop, probes=(1.0,)).history(fixtures.LONG) for loop in (WatchedLoop, FlushedLoop)
    )
    item = difference(flushed, whole)
    require(
        item is None,
        f"{item} differs if flush is called after every document and its state is then loaded back: keep everything "
        f"that flush changes, what it has not learned yet included, in state_dict.",
    )


def next_token_is_normalised(kind: type[Method]) -> None:
    """``mix_next_token`` gives a distribution at every position, which the tokens after it do not change."""
    method = prepare(kind)
    if kind.mix_next_token is Method.mix_next_token:
        return
    entries = fixtures.entries()
    run(method, entries, probes=())
    for entry in entries:
        batch = method.lm.tokens(entry.document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        half = len(ids) // 2
        with torch.no_grad(), head_inputs(method.lm.model) as hidden:
            logits = method.lm.model(input_ids=ids[None], use_cache=False).logits[0]
            shorter, longer = (  # in this order: the hook could remember
                mixed(method.mix_next_token, logits[:end], hidden[0][0, :end], ids[:end]) for end in (half, len(ids))
            )
        require(
            torch.allclose(longer[:half], shorter, atol=1e-3),
            "mix_next_token depends on later tokens: at each position use its hidden state and the ids up to it only.",
        )


def question_weights_do_not_leak(kind: type[Method]) -> None:
    """A question gets the same answer alone as among others, whose weights may differ."""
    method = prepare(kind)
    if kind.using is Method.using:
        return
    entries = fixtures.entries()
    loop, due = run(method, entries, probes=()), due_questions(entries)
    method.flush()
    together = answers(loop, due)
    for question, expected in zip(due, together, strict=True):
        require(
            same(answers(loop, [question])[0], expected),
            f"The answer to {question.gold.question.id} changes when other questions are asked beside it: using must "
            f"restore on exit all that it changed on entry.",
        )


def state_survives_saving(kind: type[Method]) -> None:
    """The state, saved and loaded into a fresh instance, is the same and gives the same answers."""
    from safetensors.torch import load, save

    entries = fixtures.entries()
    first = run(prepare(kind), entries)
    loop = make_loop(resumed(kind, load(save(first.states[fixtures.LENGTH - 1]))), entries)
    loop.probe(1.0, len(entries))
    item = difference(loop.history(), first.history())
    require(item is None, f"{item} differs after saving and loading: state_dict must return the whole state.")


def resumes_in_mid_stream(kind: type[Method]) -> None:
    """A run that resumes from a saved state, at any position, goes on like one that was never interrupted."""
    entries = fixtures.entries(fixtures.LONG)
    whole, interrupted = (
        run(prepare(kind), entries, loop, probes=(1.0,)).history(fixtures.LONG)
        for loop in (WatchedLoop, InterruptedLoop)
    )
    item = difference(interrupted, whole)
    require(item is None, f"{item} differs in a run resumed in mid-stream: state_dict must return the whole state.")


def reset_forgets(kind: type[Method]) -> None:
    """``reset`` brings back the initial state, and another stream then goes as with a fresh instance."""
    method = prepare(kind)
    learned = {name: value for name, value in snapshot(method).items() if name.startswith("method.")}
    method.reset()
    tensor = state_difference(learned, {name: snapshot(method).get(name, value) for name, value in learned.items()})
    require(tensor is None, f"reset loses what fit learned in the tensor {tensor}: it must restore that value.")
    start, weights = snapshot(method), method.lm.weights_hash()
    entries, others = fixtures.entries(), fixtures.entries()
    before = run(method, entries, observed=others).history()
    run(method, entries)
    method.reset()
    tensor = state_difference(start, snapshot(method))
    require(tensor is None, f"reset does not restore the tensor {tensor}: undo all that observe changed.")
    require(method.lm.weights_hash() == weights, "reset does not restore the base's weights: call super().reset().")
    item = difference(run(method, entries, observed=others).history(), before)
    require(
        item is None,
        f"{item} changes once the documents with the answers were observed before the last reset: reset must forget "
        f"every document, also what is kept in classes, modules, caches or files.",
    )
    entries = fixtures.entries()
    reused, fresh = run(method, entries).history(), run(prepare(kind), entries).history()
    item = difference(reused, fresh)
    require(item is None, f"{item} depends on a stream before the last reset: reset must forget every document.")


def no_text_survives_reset(kind: type[Method]) -> None:
    """After ``reset`` no text of an earlier document or question can be reached from the method or its modules."""
    method = prepare(kind)
    entries, marks = fixtures.marked_entries()
    run(method, entries)
    method.reset()
    texts = re.compile("|".join(marks), re.IGNORECASE)
    spellings = [spelling for mark in marks for spelling in (mark, f" {mark}", mark.lower(), f" {mark.lower()}")]
    ids = [spelled(method.lm.encode(spelling).tolist()) for spelling in spellings]
    for place, string in reachable_strings(method):
        mark = texts.search(string)
        found = string[max(0, mark.start() - 20) : mark.end()] if mark else next(filter(string.__contains__, ids), None)
        require(
            found is None,
            f"Text of an earlier stream can be reached after reset ({found!r:.60} from {place}): reset must forget "
            f"every document and question, also what is kept in classes, modules, closures and caches.",
        )


def base_is_restored(kind: type[Method]) -> None:
    """After ``reset`` and ``lm.restore()`` the base, the harness and torch are as before the method was imported."""
    lm = fixtures.base_model()
    before = Fingerprint(lm)
    method = prepare(kind, lm=lm)
    run(method, fixtures.entries())
    method.reset()
    lm.restore()
    other, first = fixtures.first_fingerprint()
    change = before.difference(lm) or first.difference(other)
    require(
        change is None,
        f"After reset and lm.restore(), {change}. Change nothing of the base but the values of its weights, or undo it "
        f"in reset (hooks, wrappers), and leave the harness, the libraries and their settings alone.",
    )


def reads_odd_documents(kind: type[Method]) -> None:
    """The method observes any text, whole or in segments, without an error, and its state stays finite."""
    _stays_finite(prepare(kind), ODD_TEXTS)
    texts = [document.text for document in fixtures.documents(fixtures.entries(2))]
    _stays_finite(prepare(kind), dict(zip(("a text in segments", "another one"), texts, strict=True)), segment_tokens=7)


def runs_in_bfloat16(kind: type[Method]) -> None:
    """The method also works on a base that computes in bfloat16, and keeps its weights in float32."""
    method = prepare(kind, "bfloat16")
    texts = [document.text for document in fixtures.documents(fixtures.entries(2))]
    _stays_finite(method, dict(zip(("a base in bfloat16", "the same base, adapted"), texts, strict=True)))
    for name, value in method.lm.named_tensors():
        require(
            value.dtype == torch.float32,
            f"The base's {name} became {value.dtype}: keep its weights in float32, or small updates are rounded away.",
        )


def _stays_finite(method: Method, texts: Mapping[str, str], segment_tokens: int | None = None) -> None:
    questions = fixtures.entries(1)[0].questions
    entries = [Entry(Document(document_id(text), text), questions) for text in texts.values()]
    method.experiment_segment_tokens = segment_tokens
    loop = make_loop(method, entries, probes=(1.0,))
    names = list(texts)
    try:
        loop.run()
    except Exception as error:
        if loop.position is not None:  # the first reset is over
            answering = loop.position in loop.states
            when = "while the questions were answered" if answering else f"on {names[loop.position]}"
            error.add_note(f"This happened {when}.")
        raise
    for position, state in loop.states.items():
        tensor = next((name for name, value in state.items() if not torch.isfinite(value).all()), None)
        require(
            tensor is None,
            f"The tensor {tensor} became NaN or infinite on {names[position]}: keep every update finite.",
        )


CHECKS: dict[str, Callable[[type[Method]], None]] = {
    check.__name__: check
    for check in (
        config_is_sound,
        observe_only_reads,
        condition_fits_the_questions,
        next_token_is_normalised,
        same_seed_same_results,
        blind_to_the_future,
        blind_to_the_answers,
        scored_before_update,
        scores_read_only_the_past,
        probes_leave_no_trace,
        flush_leaves_no_state,
        question_weights_do_not_leak,
        state_survives_saving,
        resumes_in_mid_stream,
        reset_forgets,
        no_text_survives_reset,
        base_is_restored,
        reads_odd_documents,
        runs_in_bfloat16,
    )
}
