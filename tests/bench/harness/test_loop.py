"""The loop: order of scoring, observing and asking, and their results."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import Conditioning, Document, EvidencedQuestion, GradientMethod, Method, Question
from bench.data.documents import Entry, GoldQuestion, Segment
from bench.errors import Diverged
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from tests.conftest import TEXT


def entry(i: int, revises: str | None = None) -> Entry:
    gold = GoldQuestion(Question(f"q{i}", f"Who saw {TEXT[i % 3][:12]}?"), (f"answer {i}", "other"), revises)
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


def run_loop(method: Method, entries: Sequence[Entry] = ENTRIES, **options: object) -> Loop:
    loop = Loop(method, entries, [e.document for e in entries], **options)  # type: ignore[arg-type]
    loop.run()
    return loop


def question_ids(method: Recorder) -> list[tuple[str, ...]]:
    return [tuple(q.id for q in value) for what, value in method.log if what == "condition"]  # type: ignore[attr-defined]


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


def test_anchors_are_asked_before_the_first_and_after_the_last_document(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop = run_loop(method, anchor=(entry(7), entry(8)), probes=(0.5, 1.0))
    assert question_ids(method) == [("q7", "q8"), ("q0", "q1"), ("q0", "q1", "q2", "q3"), ("q7", "q8")]
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
    assert [question.evidence.id for question in questions] == ["d0", "d1", "d2", "d3"]  # type: ignore[attr-defined]


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
            lives[-1] += [question.id for question in questions]
            return Conditioning()

    loop = Loop(Lives(lm), ENTRIES, [entry.document for entry in ENTRIES], documents_per_reset=3, anchor=ENTRIES[:1])
    loop.run()
    assert lives == [["d0", "d1", "d2", "q0", "q1", "q2"], ["d3", "q3"]], "and no anchor questions"
    assert [event.position for event in loop.answer_events] == [0, 1, 2, 3]


def test_the_state_is_measured_at_the_end_or_with_resets_for_the_largest_group(lm: BaseModel) -> None:
    class Grows(Recorder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.register("memory", torch.zeros(0, dtype=torch.uint8))

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
        ids = (["d0", "d3"], ["d3", "d0", "d1"], [], ["d0"])

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(documents=self.ids[: len(questions)])

    loop = run_loop(Names(lm), probes=(0.5, 1.0))
    assert [event.retrieved for event in loop.answer_events] == [1, 3, 1, 3, 0, 0]
    assert loop.summary().recall == 0.5, "two of four questions at the last probe"
    silent = run_loop(Recorder(lm))
    assert {event.retrieved for event in silent.answer_events} == {None} and silent.summary().recall is None


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


def test_costs_are_charged_to_their_phases(lm: BaseModel) -> None:
    method = Tuner(lm, Tuner.Config(learning_rate=1e-2))
    costs = run_loop(method).ledger.costs(0)
    assert costs.offline.seconds == 0
    assert min(costs.score.flops, costs.observe.flops, costs.answer.flops) > 0
    assert 1.7 < costs.observe.flops / costs.score.flops < 2.3, "the step reuses the forward pass of scoring"
    quiet = run_loop(Tuner(lm), scoring=False).ledger.costs(0)
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


def test_a_method_may_ask_for_shorter_segments(lm: BaseModel) -> None:
    class Pieces(Recorder):
        segment_tokens = 5  # type: ignore[assignment]

    loop = run_loop(Pieces(lm), segment_tokens=7)
    assert max(event.tokens for event in loop.document_events) == 5
