"""The loop: order of scoring, observing and asking, and their results."""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import Conditioning, Document, EvidencedQuestion, GradientMethod, Method, Question
from bench.data.documents import Entry, GoldQuestion, Segment, document_id
from bench.errors import Diverged, RunError
from bench.harness.loop import Loop, construct
from bench.lm.base_model import BaseModel, TokenBatch
from bench.lm.reading import CarriedCache, Reading
from bench.records.schema import Tally
from tests.conftest import TEXT
from tests.device_reads import DeviceReads


def entry(i: int, revises: str | None = None) -> Entry:
    gold = GoldQuestion(Question(f"q{i}", f"q{i}: Who saw {TEXT[i % 3][:12]}?"), (f"answer {i}", "other"), revises)
    return Entry(Document(f"d{i}", f"{TEXT[i % 3]} {i}"), (gold,))


ENTRIES = tuple(entry(i) for i in range(4))


class Recorder(Method):
    """Logs the calls of its hooks, in a list outside its state."""

    name = "recorder"
    paper = "none"
    log: list[tuple[str, object]]

    def reset(self) -> None:
        super().reset()
        self.log = []

    def observe(self, document: Document) -> None:
        self.log.append(("observe", document))

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        self.log.append(("condition", tuple(questions)))
        return Conditioning()


class Control(Recorder):
    name = "control"
    sees_evidence = True


class Tuner(GradientMethod):
    """Fine-tunes."""

    name = "tuner"
    paper = "none"


class Breaker(Method):
    """Writes a NaN into the weights."""

    name = "breaker"
    paper = "none"

    def observe(self, document: Document) -> None:
        with torch.no_grad():
            next(self.lm.model.parameters()).fill_(math.nan)


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def run_loop(
    method: Method, entries: Sequence[Entry] = ENTRIES, segment_tokens: int | None = None, **options: object
) -> Loop:
    method.experiment_segment_tokens = segment_tokens
    loop = Loop(method, entries, [e.document for e in entries], **options)  # type: ignore[arg-type]
    loop.run()
    return loop


def questions_asked(method: Recorder) -> list[list[Question]]:
    return [list(value) for what, value in method.log if what == "condition"]  # type: ignore[call-overload]


def true_id(question: Question) -> str:
    """The question's id in the data, with which its text begins."""
    return question.text.partition(":")[0]


def question_ids(method: Recorder) -> list[tuple[str, ...]]:
    """The ids in the data of the questions of each probe, sorted: they are asked in a random order."""
    return [tuple(sorted(map(true_id, questions))) for questions in questions_asked(method)]


def test_every_document_is_observed_once_in_order_and_asked_about_at_the_end(lm: BaseModel) -> None:
    method = Recorder(lm)
    run_loop(method)
    observed = [value.id for what, value in method.log if what == "observe"]  # type: ignore[attr-defined]
    assert observed == ["d0", "d1", "d2", "d3"]
    assert question_ids(method) == [("q0", "q1", "q2", "q3")]
    assert method.log[-1][0] == "condition"


def test_a_probe_asks_about_the_documents_seen_so_far(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop = run_loop(method, probes=(0.0, 0.25, 0.5, 1.0))
    assert question_ids(method) == [("q0",), ("q0", "q1"), ("q0", "q1", "q2", "q3")]
    assert [event.probe for event in loop.answer_events] == [0.25, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_probes_that_fall_on_one_document_are_both_kept(lm: BaseModel) -> None:
    loop = run_loop(Recorder(lm), ENTRIES[:1], probes=(0.25, 0.5, 1.0))
    assert [event.probe for event in loop.answer_events] == [0.25, 0.5, 1.0]


def test_a_superseded_question_is_asked_until_its_revision_has_been_seen(lm: BaseModel) -> None:
    method = Recorder(lm)
    run_loop(method, (entry(0), entry(1), entry(2, revises="q0"), entry(3)), probes=(0.5, 1.0))
    assert question_ids(method) == [("q0", "q1"), ("q1", "q2", "q3")]


def test_for_retention_every_probe_asks_the_questions_of_the_first(lm: BaseModel) -> None:
    method = Recorder(lm)
    entries = (*ENTRIES, entry(4, revises="q1"), entry(5, revises="q3"), entry(6))
    loop = run_loop(method, entries, probes=(0.0, 0.5, 0.6, 1.0), questions="first")
    assert question_ids(method) == [("q0", "q2")] * 3, "q1 and q3 become wrong later, so they are never asked"
    assert [(e.probe, e.question_id, e.position) for e in loop.answer_events] == [
        (probe, identity, position) for probe in (0.5, 0.6, 1.0) for identity, position in (("q0", 0), ("q2", 2))
    ]
    observed = [what for what, _ in method.log]
    assert observed == ["observe"] * 4 + ["condition"] + ["observe"] + ["condition"] + ["observe"] * 2 + ["condition"]


def test_a_question_that_revises_another_is_asked_for_retention_if_both_are_among_the_first(lm: BaseModel) -> None:
    method = Recorder(lm)
    run_loop(method, (entry(0), entry(1, revises="q0"), entry(2), entry(3)), probes=(0.5, 1.0), questions="first")
    assert question_ids(method) == [("q1",), ("q1",)]


def test_retention_asks_the_same_questions_on_other_documents_on_none_and_after_resets(lm: BaseModel) -> None:
    for entries, every, probes in ((ENTRIES[::-1], None, 2), ((), None, 1), (ENTRIES, 2, 1)):
        options: dict[str, Any] = {"probes": (0.5, 1.0), "questions": "first", "documents_per_reset": every}
        loop = Loop(Recorder(lm), ENTRIES, [item.document for item in entries], **options)
        loop.run()
        assert [event.question_id for event in loop.answer_events] == ["q0", "q1"] * probes


def test_positions_and_probes_count_irrelevant_documents(lm: BaseModel) -> None:
    other = Entry(Document("other", "The ferry left at noon."))
    method = Recorder(lm)
    loop = run_loop(method, (ENTRIES[0], other, ENTRIES[1], ENTRIES[2], other, ENTRIES[3]), probes=(0.5, 1.0))
    assert question_ids(method) == [("q0", "q1"), ("q0", "q1", "q2", "q3")]
    assert [event.position for event in loop.answer_events if event.probe == 1.0] == [0, 2, 3, 5]
    assert loop.summary().documents == 6 and loop.summary().questions == 4


def test_anchors_are_asked_before_the_first_and_after_the_last_document(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop = run_loop(method, anchor=(entry(7), entry(8)), probes=(0.5, 1.0))
    assert question_ids(method) == [("q7", "q8"), ("q0", "q1"), ("q0", "q1", "q2", "q3", "q7", "q8")]
    assert [e.probe for e in loop.answer_events if e.set == "anchor"] == [0.0, 0.0, 1.0, 1.0]
    summary = loop.summary()
    assert summary.anchor_nll_before == summary.anchor_nll, "nothing was learned"
    assert summary.questions == 4


def test_only_controls_get_the_evidence_and_no_method_gets_the_answers(lm: BaseModel) -> None:
    method, control = Recorder(lm), Control(lm)
    run_loop(method)
    run_loop(control)
    (questions,) = [value for what, value in method.log if what == "condition"]
    assert all(type(question) is Question for question in questions)  # type: ignore[attr-defined]
    (questions,) = [value for what, value in control.log if what == "condition"]
    assert all(isinstance(question, EvidencedQuestion) for question in questions)  # type: ignore[attr-defined]
    evidence = {true_id(question): question.evidence.id for question in questions}  # type: ignore[attr-defined]
    assert evidence == {"q0": "d0", "q1": "d1", "q2": "d2", "q3": "d3"}


def test_the_number_of_a_question_tells_neither_probe_nor_set_and_the_records_have_its_id(lm: BaseModel) -> None:
    method = Recorder(lm)
    anchor = (Entry(entry(8).document, (GoldQuestion(Question("q0", "q8: Who?"), ("a",)),)),)  # the id of another one
    loop = run_loop(method, anchor=anchor, probes=(0.5, 1.0))
    numbers: dict[str, set[str]] = {}
    for asked in questions_asked(method):
        assert [question.id for question in asked] == [str(place) for place in range(len(asked))]
        for question in asked:
            numbers.setdefault(true_id(question), set()).add(question.id)
    assert len(numbers) == 5 and max(map(len, numbers.values())) > 1, "another number at another probe"
    assert [event.question_id for event in loop.answer_events] == [
        "q0", "q0", "q1", "q0", "q1", "q2", "q3", "q0",
    ]  # fmt: skip


def test_the_order_of_questions_tells_neither_document_nor_set_and_that_of_events_is_the_documents(
    lm: BaseModel,
) -> None:
    """It follows from their texts: a method that draws from the seeds of the harness cannot undo it."""
    entries, anchor = [entry(i) for i in range(12)], [entry(i) for i in range(20, 32)]

    def run(entries: list[Entry], anchor: list[Entry], seed: int) -> tuple[list[list[str]], Loop]:
        method = Recorder(lm)
        loop = run_loop(method, entries, anchor=anchor, probes=(0.5, 1.0), seed=seed)
        return [list(map(true_id, questions)) for questions in questions_asked(method)], loop

    asked, loop = run(entries, anchor, 0)
    assert asked[-1] == run(entries[::-1], anchor, 0)[0][-1] == run(anchor, entries, 1)[0][-1]
    assert all(order != sorted(order, key=lambda name: int(name[1:])) for order in asked)
    assert [len(order) for order in asked] == [12, 6, 24], "the anchor questions are among the others"
    for which, items in (("stream", entries), ("anchor", anchor)):
        events = [event for event in loop.answer_events if (event.set, event.probe) == (which, 1.0)]
        assert [event.question_id for event in events] == [item.questions[0].question.id for item in items]
        assert [event.document_id for event in events] == [item.document.id for item in items]


def test_answers_belong_to_their_questions_in_whatever_order_these_are_asked(lm: BaseModel) -> None:
    entries = [entry(i) for i in range(12)]
    for together, item in zip(run_loop(Recorder(lm), entries).answer_events, entries, strict=True):
        (alone,) = run_loop(Recorder(lm), [item]).answer_events
        assert (together.question_id, together.prediction) == (alone.question_id, alone.prediction)
        assert together.nll == pytest.approx(alone.nll, rel=1e-4)


SCHEMES: Mapping[str, Callable[[Document, str], str]] = {
    "the default of the reader": lambda document, text: document_id(f"{document.id} {text}"),
    "the document's id and a number": lambda document, text: f"{document.id}-0",
    "the document's title": lambda document, text: document.title,
    "a hash of the document's text": lambda document, text: document_id(document.text + "0"),
}
"""How datasets may make the id of a question."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_method_that_knows_how_ids_are_made_finds_no_document_by_them(lm: BaseModel, scheme: str) -> None:
    identity = SCHEMES[scheme]

    class Oracle(Method):
        name = "oracle"

        def reset(self) -> None:
            super().reset()
            self.documents: list[Document] = []

        def observe(self, document: Document) -> None:
            self.documents.append(document)

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            found = [[d.id for d in self.documents if identity(d, q.text) == q.id] for q in questions]
            return Conditioning(documents=found)

    documents = [Document(document_id(text), text, title=f"ship {i}") for i, text in enumerate(TEXT)]
    golds = [GoldQuestion(Question(identity(document, "Who?"), "Who?"), ("a",)) for document in documents]
    entries = [Entry(document, (gold,)) for document, gold in zip(documents, golds, strict=True)]
    loop = run_loop(Oracle(lm), entries)
    assert loop.summary().recall == 0
    assert [event.question_id for event in loop.answer_events] == [gold.question.id for gold in golds]


def _set_on_the_instance(value: bool) -> Callable[[Any], None]:
    def change(method: Any) -> None:
        method.sees_evidence = value

    return change


@pytest.mark.parametrize(
    ("declared", "change"),
    [
        (False, _set_on_the_instance(True)),
        (True, _set_on_the_instance(False)),
        (False, lambda method: setattr(type(method), "sees_evidence", True)),
        (False, lambda method: method.__dict__.update(sees_evidence=True)),
    ],
    ids=["instance", "instance that hides a control", "class", "past setattr"],
)
def test_a_constructor_cannot_change_who_sees_the_evidence(
    lm: BaseModel, declared: bool, change: Callable[[Any], None]
) -> None:
    class Changes(Recorder):
        name = "changes"
        sees_evidence = declared

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            change(self)

    with pytest.raises(TypeError, match="changes changes sees_evidence: state it once, in the body of the class"):
        construct(Changes, lm, Changes.Config(), 0)


def test_what_the_class_says_later_does_not_count(lm: BaseModel) -> None:
    class Late(Recorder):
        def observe(self, document: Document) -> None:
            type(self).sees_evidence = True

    method = Late(lm)
    run_loop(method)
    assert all(type(question) is Question for asked in questions_asked(method) for question in asked)


def test_a_document_is_scored_before_any_update_on_it(lm: BaseModel, llama: Path) -> None:
    loop = run_loop(Tuner(lm, Tuner.Config(learning_rate=1e-2)))
    by_hand = Tuner(BaseModel.load(str(llama)), Tuner.Config(learning_rate=1e-2))
    by_hand.reset()
    for event, item in zip(loop.document_events, ENTRIES, strict=True):
        ids = by_hand.lm.encode(item.document.text)
        with torch.no_grad():
            assert event.nll == pytest.approx(-by_hand.lm.log_probs(ids).double().sum().item(), rel=1e-6)
        assert (event.tokens, event.bytes) == (len(ids), len(item.document.text.encode()))
        by_hand.observe(item.document)


@pytest.mark.parametrize("segment_tokens", [None, 10])
def test_a_segment_is_scored_again_right_after_it_was_observed(lm: BaseModel, segment_tokens: int | None) -> None:
    scores = []

    class Scoring(Tuner):
        def observe(self, document: Document) -> None:
            super().observe(document)
            with torch.no_grad():
                windows = self.reading.log_probs(self.lm, self.lm.tokens(document))
                scores.append(-sum(window.double().sum().item() for window in windows))

    method = Scoring(lm, Tuner.Config(learning_rate=1e-3))
    again = run_loop(method, segment_tokens=segment_tokens, reread=True)
    assert [event.nll_after for event in again.document_events] == pytest.approx(scores, rel=1e-9)
    once = run_loop(Tuner(lm, Tuner.Config(learning_rate=1e-3)), segment_tokens=segment_tokens)
    assert [event.nll for event in again.document_events] == [event.nll for event in once.document_events]
    assert {event.nll_after for event in once.document_events} == {once.summary().token_nll_after} == {None}
    tokens = sum(event.tokens for event in again.document_events)
    assert again.summary().token_nll_after == pytest.approx(sum(scores) / tokens)
    assert again.answer_events == once.answer_events


def test_a_method_that_learns_nothing_scores_the_same_again(lm: BaseModel) -> None:
    events = run_loop(Recorder(lm), reread=True).document_events
    assert [event.nll_after for event in events] == [event.nll for event in events]


def test_the_summary_averages_over_tokens_and_bytes_not_documents(lm: BaseModel) -> None:
    loop = run_loop(Recorder(lm))
    nll = sum(event.nll or 0 for event in loop.document_events)
    summary = loop.summary()
    assert summary.token_nll == pytest.approx(nll / sum(e.tokens for e in loop.document_events))
    assert summary.bits_per_byte == pytest.approx(nll / math.log(2) / sum(e.bytes for e in loop.document_events))


def test_segments_are_scored_and_observed_in_turn(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop = run_loop(method, segment_tokens=10)
    whole = run_loop(Recorder(lm))
    segments = [value for what, value in method.log if what == "observe"]
    assert all(isinstance(segment, Segment) and len(segment.token_ids) <= 10 for segment in segments)
    assert len(segments) == 2 * len(ENTRIES)
    total = sum(event.nll or 0 for event in loop.document_events)
    assert total == pytest.approx(sum(event.nll or 0 for event in whole.document_events), rel=1e-5)


def test_placebo_documents_are_observed_and_the_streams_questions_asked(lm: BaseModel) -> None:
    method = Recorder(lm)
    other = [entry(i + 10).document for i in range(4)]
    loop = Loop(method, ENTRIES, other)
    loop.run()
    assert [value for what, value in method.log if what == "observe"] == other
    assert question_ids(method) == [("q0", "q1", "q2", "q3")]


def test_without_documents_every_question_is_asked_once(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop = Loop(method, ENTRIES, ())
    loop.run()
    assert [what for what, _ in method.log if what == "observe"] == []
    assert question_ids(method) == [("q0", "q1", "q2", "q3")]
    assert loop.summary().f1 is not None and loop.summary().token_nll is None


def test_with_resets_each_question_is_asked_after_the_documents_of_its_group(lm: BaseModel) -> None:
    lives: list[list[str]] = []

    class Lives(Recorder):
        def reset(self) -> None:
            super().reset()
            lives.append([])

        def observe(self, document: Document) -> None:
            lives[-1].append(document.id)

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            lives[-1] += map(true_id, questions)
            return Conditioning()

    loop = Loop(Lives(lm), ENTRIES, [entry.document for entry in ENTRIES], documents_per_reset=3, anchor=ENTRIES[:1])
    loop.run()
    assert [sorted(life) for life in lives] == [["d0", "d1", "d2", "q0", "q1", "q2"], ["d3", "q3"]], "no anchor"
    assert [event.position for event in loop.answer_events] == [0, 1, 2, 3]


def test_the_state_is_measured_at_the_end_or_with_resets_for_the_largest_group(lm: BaseModel) -> None:
    class Grows(Recorder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register("memory", torch.zeros(0, dtype=torch.uint8))

        def state_dict(self) -> dict[str, torch.Tensor]:
            state = super().state_dict()
            state["model.of_its_own"] = state.pop("method.memory")  # only weights of the base are left out
            return state

        def observe(self, document: Document) -> None:
            self.memory = torch.zeros(len(self.memory) + 5, dtype=torch.uint8)

    for every, expected in ((None, 20), (3, 15)):
        loop = Loop(Grows(lm), ENTRIES, [entry.document for entry in ENTRIES], documents_per_reset=every)
        loop.run()
        assert loop.state_bytes == expected, "5 bytes a document, 4 documents or 3 and 1"


def test_with_resets_the_questions_are_those_of_the_whole_stream(lm: BaseModel) -> None:
    revised = [*ENTRIES, entry(9, revises="q1")]
    documents = [one.document for one in revised]
    whole, parts = Loop(Recorder(lm), revised, documents), Loop(Recorder(lm), revised, documents, documents_per_reset=2)
    for loop in (whole, parts):
        loop.run()
    ids = [[event.question_id for event in loop.answer_events] for loop in (whole, parts)]
    assert ids[0] == ids[1] == ["q0", "q2", "q3", "q9"]


def test_the_same_seed_gives_the_same_events(lm: BaseModel) -> None:
    first, second = (run_loop(Tuner(lm, Tuner.Config(learning_rate=1e-2)), seed=3) for _ in range(2))
    assert [e.model_dump(exclude={"observe_seconds"}) for e in first.document_events] == [
        e.model_dump(exclude={"observe_seconds"}) for e in second.document_events
    ]
    assert first.answer_events == second.answer_events


def test_the_rank_of_the_right_document_is_recorded(lm: BaseModel) -> None:
    class Names(Recorder):
        ids: Mapping[str, list[str]] = {"q0": ["d0", "d3"], "q1": ["d3", "d0", "d1"], "q2": [], "q3": ["d0"]}

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(documents=[self.ids[true_id(question)] for question in questions])

    loop = run_loop(Names(lm), probes=(0.5, 1.0))
    assert [event.retrieved for event in loop.answer_events] == [1, 3, 1, 3, 0, 0]
    assert loop.summary().recall == 0.5, "two of four questions at the last probe"
    silent = run_loop(Recorder(lm))
    assert {event.retrieved for event in silent.answer_events} == {None} and silent.summary().recall is None


def test_a_conditioning_that_ranks_by_itself_is_refused(lm: BaseModel) -> None:
    class Flattering(Conditioning):
        def rank(self, index: int, document_id: str) -> int | None:
            return 1

    class Flatters(Recorder):
        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Flattering()

    with pytest.raises(RunError, match="condition returned a Flattering"):
        run_loop(Flatters(lm))


def test_a_method_with_a_base_of_its_own_is_refused(lm: BaseModel) -> None:
    class Copies(Recorder):
        def __init__(self, lm: BaseModel, *rest: Any) -> None:
            super().__init__(BaseModel(copy.deepcopy(lm.model), lm.tokenizer), *rest)

    with pytest.raises(TypeError, match=r"recorder replaces self\.lm"):
        construct(Copies, lm, Copies.Config(), 0)


def test_a_method_with_other_settings_or_another_seed_than_it_was_given_is_refused(lm: BaseModel) -> None:
    class Drops(Recorder):
        def __init__(self, lm: BaseModel, config: Any, seed: int) -> None:
            super().__init__(lm, Recorder.Config())

    with pytest.raises(TypeError, match="recorder drops its settings or its seed: pass config and seed on"):
        construct(Drops, lm, Drops.Config(), 1)


def test_documents_must_be_named_for_every_question(lm: BaseModel) -> None:
    class NamesTooFew(Recorder):
        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(documents=[["d0"]])

    with pytest.raises(ValueError, match=r"Conditioning\.documents has 1 entries for 4 questions"):
        run_loop(NamesTooFew(lm))


def test_nan_weights_end_the_run_as_diverged_at_a_position(lm: BaseModel) -> None:
    loop = Loop(Breaker(lm), ENTRIES, [e.document for e in ENTRIES])
    with pytest.raises(Diverged):
        loop.run()
    assert loop.position == 1, "the next document's score shows it"


def test_sound_weights_are_not_read_one_by_one_before_answering(lm: BaseModel) -> None:
    loop = Loop(Recorder(lm), ENTRIES, [])
    with DeviceReads() as reads, loop._answering("1.0"):
        pass
    assert reads.count == 0


def test_costs_are_charged_to_their_phases(lm: BaseModel) -> None:
    method = Tuner(lm, Tuner.Config(learning_rate=1e-2))
    nothing = Tally(seconds=0, flops=0, peak_bytes=0)
    costs = run_loop(method).ledger.costs(0, nothing)
    assert costs.fit.seconds == 0
    assert min(costs.score.flops, costs.observe.flops, costs.answer.flops) > 0
    assert 1.7 < costs.observe.flops / costs.score.flops < 2.3, "the step reuses the forward pass of scoring"
    quiet = run_loop(Tuner(lm), scoring=False).ledger.costs(0, nothing)
    assert quiet.score.seconds == 0
    assert quiet.observe.flops / costs.score.flops == pytest.approx(
        1 + costs.observe.flops / costs.score.flops, rel=0.1
    )


def test_reusing_the_forward_pass_of_scoring_changes_no_result(lm: BaseModel) -> None:
    class Separate(Tuner):
        learns_from_scoring = False  # type: ignore[assignment]

    config = Tuner.Config(optimizer="sgd", learning_rate=1e-2, steps_per_document=2)
    reused, separate = run_loop(Tuner(lm, config)), run_loop(Separate(lm, config))
    assert [e.nll for e in reused.document_events] == [e.nll for e in separate.document_events]
    assert reused.method.scored is None


def test_the_scoring_graph_is_freed_after_observe_even_if_the_method_does_not_use_it(lm: BaseModel) -> None:
    class Node:
        """Stands for a tensor that a graph saves for its backward pass."""

    nodes: weakref.WeakSet[Node] = weakref.WeakSet()

    def save(_: torch.Tensor) -> Node:
        node = Node()
        nodes.add(node)
        return node

    class Ignores(Recorder):
        learns_from_scoring = True  # type: ignore[assignment]

        def begin_document(self) -> None:
            assert self.scored is None and not nodes

        def observe(self, document: Document) -> None:
            super().observe(document)
            assert self.scored is not None and self.scored.document is document and nodes

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            assert self.scored is None and not nodes
            return super().condition(questions)

    method = Ignores(lm)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda node: node):
        run_loop(method)
    assert [what for what, _ in method.log] == ["observe"] * 4 + ["condition"]


def test_what_begins_a_document_draws_the_same_with_and_without_a_probe_before_it(lm: BaseModel) -> None:
    class Draws(Recorder):
        def begin_document(self) -> None:
            drawn.append(torch.rand(()).item())

    runs = []
    for probes in ((1.0,), (0.5, 1.0)):
        drawn: list[float] = []
        run_loop(Draws(lm), probes=probes)
        runs.append(drawn)
    assert runs[0] == runs[1] and len({*runs[0]}) == len(runs[0])


def test_a_method_may_change_the_weights_while_answering_if_it_undoes_this(lm: BaseModel) -> None:
    class Blanks(Recorder):
        @contextlib.contextmanager
        def answering(self) -> Iterator[None]:
            head = self.lm.model.lm_head.weight
            before = head.detach().clone()
            head.data.zero_()
            yield
            head.data.copy_(before)

    blank, plain = run_loop(Blanks(lm), probes=(0.5, 1.0)), run_loop(Recorder(lm), probes=(0.5, 1.0))
    assert [e.nll for e in blank.document_events] == [e.nll for e in plain.document_events]
    vocabulary = lm.model.lm_head.weight.shape[0]
    assert {round(e.nll, 4) for e in blank.answer_events} == {round(math.log(vocabulary), 4)}


class Careless(Method):
    """Changes weights at a probe: ``where`` says when, and ``how`` one of several ways."""

    name = "careless"
    paper = "none"
    where, how = "condition", "scale"

    def observe(self, document: Document) -> None:
        pass

    def change(self, place: str) -> None:
        weight = self.lm.model.lm_head.weight.detach()
        if place == self.where:
            if self.how == "scale":
                weight.mul_(1.01)
            elif self.how == "data":
                self.lm.model.lm_head.weight.data[7, 3] += 1e-6
            elif self.how == "sign of zero":
                weight[0, 0] = -0.0 if str(weight[0, 0].item()) == "0.0" else 0.0
            elif self.how == "swap":
                weight[[0, 1]] = weight[[1, 0]]

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        self.change("condition")
        return Conditioning()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        self.change("entry")
        yield
        self.change("exit")


@pytest.mark.parametrize("options", [{}, {"documents_per_reset": 1}])
@pytest.mark.parametrize("where", ["condition", "entry", "exit"])
@pytest.mark.parametrize("how", ["scale", "data", "sign of zero", "swap"])
def test_weights_that_change_while_questions_are_answered_end_the_cell(
    lm: BaseModel, where: str, how: str, options: dict[str, Any]
) -> None:
    method = Careless(lm)
    method.where, method.how = where, how
    with pytest.raises(RunError, match=r"The weights lm_head\.weight changed while questions were answered"):
        run_loop(method, **options)


def test_every_call_of_a_hook_has_its_context(lm: BaseModel) -> None:
    calls: list[tuple[str, int | None]] = []
    open_: list[str] = []

    @contextlib.contextmanager
    def hook(name: str, position: int | None) -> Iterator[None]:
        assert not open_, "hooks do not nest"
        open_.append(name)
        calls.append((name, position))
        yield
        open_.pop()

    class Strict(Recorder):
        def observe(self, document: Document) -> None:
            assert open_ == ["observe"]

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            assert open_ == ["condition"]
            return Conditioning()

        @contextlib.contextmanager
        def answering(self) -> Iterator[None]:
            assert open_ == ["answering"]
            yield
            assert open_ == ["answering"]

    run_loop(Strict(lm), ENTRIES[:2], hook=hook)
    per_document = [[("begin_document", i), ("observe", i)] for i in range(2)]
    probe = [("answering", 1), ("condition", 1), ("answering", 1)]
    assert calls == [("reset", None), *per_document[0], *per_document[1], *probe, ("state_dict", 1)]


def test_a_method_may_ask_for_shorter_segments(lm: BaseModel) -> None:
    class Pieces(Recorder):
        segment_tokens = 5  # type: ignore[assignment]

    loop = run_loop(Pieces(lm), segment_tokens=7)
    assert max(event.tokens for event in loop.document_events) == 5


class _SoftPrompts(Recorder):
    def condition(self, questions: Sequence[Question]) -> Conditioning:
        lengths = [200 if "long" in question.text else 3 for question in questions]
        return Conditioning(prefix_embeddings=[torch.zeros(length, 32) for length in lengths])


@pytest.mark.parametrize("kind", [Recorder, _SoftPrompts])
@pytest.mark.parametrize("text", ["Who saw " * 80, "How long is it? " * 60, "a" * 900])
def test_an_over_long_question_costs_that_question_and_not_the_cell(
    lm: BaseModel, kind: type[Recorder], text: str
) -> None:
    long = Entry(Document("long", "A text."), (GoldQuestion(Question("long", f"long: {text}"), ("answer",)),))
    with_it, without = (run_loop(kind(lm), entries=entries) for entries in ((long, *ENTRIES), ENTRIES))
    first, *others = with_it.answer_events
    assert (first.question_id, first.prediction, first.f1, first.em, first.nll) == ("long", "", 0.0, 0.0, None)
    assert first.unanswered is not None and "does not fit into a window of 96 tokens" in first.unanswered
    assert [(e.question_id, e.prediction) for e in others] == [
        (e.question_id, e.prediction) for e in without.answer_events
    ]
    assert [e.nll for e in others] == pytest.approx([e.nll for e in without.answer_events], abs=1e-5)
    assert all(event.unanswered is None for event in others)
    summary, expected = with_it.summary(), without.summary()
    assert summary.questions == 5 and expected.f1 is not None
    assert summary.f1 == pytest.approx(expected.f1 * 4 / 5), "it counts as answered wrongly"
    assert summary.answer_nll == pytest.approx(expected.answer_nll), "and has no likelihood"


def test_what_waits_is_learned_for_a_probe_and_the_stream_goes_on_as_without_it(lm: BaseModel) -> None:
    class Batches(Tuner):
        """Learns three documents at a time."""

        def reset(self) -> None:
            super().reset()
            self.register("waiting", torch.zeros(0, dtype=torch.long))
            self.learned: list[int] = []

        def observe(self, document: Document) -> None:
            self.waiting = torch.cat([self.waiting, torch.tensor([int(document.id[1:])])])
            if len(self.waiting) == 3:
                self.flush()

        def flush(self) -> None:
            for i in self.waiting.tolist():
                self.learned.append(i)
                super().observe(ENTRIES[i].document)
            self.waiting = self.waiting[:0]

    config = Batches.Config(optimizer="sgd", learning_rate=0.5)
    probed, whole = Batches(lm, config), Batches(lm, config)
    loop = run_loop(probed, probes=(0.5, 1.0))
    assert probed.learned == [0, 1, 0, 1, 2, 3], (
        "the first two for the probe, then three as ever, the last for the probe"
    )
    assert probed.waiting.tolist() == [3], "the state of before the probe is back"
    unprobed = run_loop(whole, probes=(1.0,))
    assert [e.nll for e in loop.document_events] == [e.nll for e in unprobed.document_events]
    at_end = [(e.prediction, e.nll) for e in loop.answer_events if e.probe == 1.0]
    assert at_end == [(e.prediction, e.nll) for e in unprobed.answer_events]
    sequential = run_loop(Tuner(lm, config))
    assert at_end == [(e.prediction, e.nll) for e in sequential.answer_events], "nothing is left out of the answers"


def test_each_question_is_answered_with_its_weights_and_gets_its_own_answer(lm: BaseModel) -> None:
    used: list[str] = []

    class Adapters(Recorder):
        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(weights=[true_id(question) in ("q1", "q3") for question in questions])

        @contextlib.contextmanager
        def using(self, key: bool) -> Iterator[None]:
            used.append(str(key))
            head = self.lm.model.get_output_embeddings().weight
            before = head.detach().clone()
            head.data += key * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
            yield
            head.data.copy_(before)

    class Everywhere(Adapters):
        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(weights=[True] * len(questions))

    mixed, plain, all_changed = (run_loop(kind(lm)).answer_events for kind in (Adapters, Recorder, Everywhere))
    assert sorted(used[:2]) == ["False", "True"] and used[2:] == ["True"], "once for each key"
    for event, bare, other in zip(mixed, plain, all_changed, strict=True):
        expected = other if event.question_id in ("q1", "q3") else bare
        assert event.prediction == expected.prediction and event.nll == pytest.approx(expected.nll, rel=1e-5)
        assert bare.nll != pytest.approx(other.nll, rel=1e-3)


def test_a_question_brings_the_date_on_which_it_is_asked(lm: BaseModel) -> None:
    gold = GoldQuestion(Question("q", "q: Who?", "2031-05-02"), ("x",))
    document = Document("d", TEXT[0], timestamp="2030-01-01")
    method, control = Recorder(lm), Control(lm)
    for recorder in (method, control):
        run_loop(recorder, (Entry(document, (gold,)),))
        (question,) = questions_asked(recorder)[0]
        assert question.timestamp == "2031-05-02"
    assert isinstance(question, EvidencedQuestion) and question.evidence == document


class Flattered(CarriedCache):
    """Says that all is certain."""

    def log_probs(self, lm: BaseModel, batch: TokenBatch) -> Iterator[torch.Tensor]:
        yield torch.zeros(len(batch))


def test_a_method_does_not_score_itself(lm: BaseModel) -> None:
    class Own(Recorder):
        own: Reading

        @property
        def reading(self) -> Reading:
            return self.own

    patched, method = CarriedCache(), Own(lm)
    patched.log_probs = Flattered().log_probs  # type: ignore[method-assign]
    for method.own in (Reading(cache=Flattered()), Reading(cache=patched), type("Own", (Reading,), {})()):
        with pytest.raises(RunError, match="the harness alone scores"):
            run_loop(method)


def test_a_mixture_is_not_what_is_learned(lm: BaseModel) -> None:
    class Mixed(Tuner):
        name = "mixed"

        def mix_next_token(self, log_probs: torch.Tensor, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return (2 * log_probs).log_softmax(-1)

    learned = []
    for kind, scoring in ((Tuner, True), (Mixed, True), (Mixed, False)):
        method = kind(lm)
        run_loop(method, probes=(), scoring=scoring)
        learned.append(lm.model.lm_head.weight.detach().clone())
        method.reset()
    assert torch.equal(learned[0], learned[1]) and torch.equal(learned[0], learned[2])


def test_the_anchor_text_is_scored_with_the_mixture(lm: BaseModel) -> None:
    class Certain(Recorder):
        def mix_next_token(self, log_probs: torch.Tensor, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(log_probs).log_softmax(-1)

    uniform = math.log(len(lm.tokenizer))
    loop = run_loop(Certain(lm), anchor=ENTRIES[:2])
    assert list(loop.anchor_nll.values()) == pytest.approx([uniform, uniform])
    assert loop.summary().token_nll == pytest.approx(uniform) and loop.summary().answer_nll == pytest.approx(uniform)
