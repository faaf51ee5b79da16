"""The one loop: what is scored, observed and asked, and when."""

from __future__ import annotations

import contextlib
import math
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
    """Remembers in which order things happened (a list outside its state: for looking at the harness only)."""

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


def loop(method: Method, entries: Sequence[Entry] = ENTRIES, **options: object) -> Loop:
    made = Loop(method, entries, [e.document for e in entries], **options)  # type: ignore[arg-type]
    made.run()
    return made


def asked(method: Recorder) -> list[tuple[str, ...]]:
    return [tuple(q.id for q in value) for what, value in method.log if what == "condition"]  # type: ignore[attr-defined]


def test_every_document_is_observed_once_in_order_and_asked_about_at_the_end(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop(method)
    observed = [value.id for what, value in method.log if what == "observe"]  # type: ignore[attr-defined]
    assert observed == ["d0", "d1", "d2", "d3"]
    assert asked(method) == [("q0", "q1", "q2", "q3")]
    assert method.log[-1][0] == "condition"


def test_a_probe_asks_about_the_documents_seen_so_far(lm: BaseModel) -> None:
    method = Recorder(lm)
    done = loop(method, probes=(0.0, 0.25, 0.5, 1.0))
    assert asked(method) == [("q0",), ("q0", "q1"), ("q0", "q1", "q2", "q3")]
    assert [event.probe for event in done.answer_events] == [0.25, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]


def test_probes_that_fall_on_one_document_are_both_kept(lm: BaseModel) -> None:
    done = loop(Recorder(lm), ENTRIES[:1], probes=(0.25, 0.5, 1.0))
    assert [event.probe for event in done.answer_events] == [0.25, 0.5, 1.0]


def test_a_superseded_question_is_asked_until_its_revision_has_been_seen(lm: BaseModel) -> None:
    method = Recorder(lm)
    loop(method, (entry(0), entry(1), entry(2, revises="q0"), entry(3)), probes=(0.5, 1.0))
    assert asked(method) == [("q0", "q1"), ("q1", "q2", "q3")]


def test_anchors_are_asked_before_the_first_and_after_the_last_document(lm: BaseModel) -> None:
    method = Recorder(lm)
    done = loop(method, anchor=(entry(7), entry(8)), probes=(0.5, 1.0))
    assert asked(method) == [("q7", "q8"), ("q0", "q1"), ("q0", "q1", "q2", "q3"), ("q7", "q8")]
    assert [e.probe for e in done.answer_events if e.set == "anchor"] == [0.0, 0.0, 1.0, 1.0]
    summary = done.summary()
    assert summary.anchor_nll_before == summary.anchor_nll, "nothing was learned"
    assert summary.questions == 4


def test_only_controls_are_given_the_evidence_and_nobody_the_answers(lm: BaseModel) -> None:
    method, control = Recorder(lm), Control(lm)
    loop(method)
    loop(control)
    (given,) = [value for what, value in method.log if what == "condition"]
    assert all(type(question) is Question for question in given)  # type: ignore[attr-defined]
    (given,) = [value for what, value in control.log if what == "condition"]
    assert all(isinstance(question, EvidencedQuestion) for question in given)  # type: ignore[attr-defined]
    assert [question.evidence.id for question in given] == ["d0", "d1", "d2", "d3"]  # type: ignore[attr-defined]


def test_a_document_is_scored_before_any_update_on_it(lm: BaseModel, llama: Path) -> None:
    done = loop(Tuner(lm, Tuner.Config(learning_rate=1e-2)))
    by_hand = Tuner(BaseModel.load(str(llama)), Tuner.Config(learning_rate=1e-2))
    by_hand.reset()
    for event, item in zip(done.document_events, ENTRIES, strict=True):
        ids = by_hand.lm.encode(item.document.text)
        with torch.no_grad():
            assert event.nll == pytest.approx(-by_hand.lm.log_probs(ids).double().sum().item(), rel=1e-6)
        assert (event.tokens, event.bytes) == (len(ids), len(item.document.text.encode()))
        by_hand.observe(item.document)


def test_summary_weighs_tokens_and_bytes_not_documents(lm: BaseModel) -> None:
    done = loop(Recorder(lm))
    nll = sum(event.nll or 0 for event in done.document_events)
    summary = done.summary()
    assert summary.token_nll == pytest.approx(nll / sum(e.tokens for e in done.document_events))
    assert summary.bits_per_byte == pytest.approx(nll / math.log(2) / sum(e.bytes for e in done.document_events))


def test_segments_are_scored_and_observed_in_turn(lm: BaseModel) -> None:
    method = Recorder(lm)
    done = loop(method, segment_tokens=10)
    whole = loop(Recorder(lm))
    pieces = [value for what, value in method.log if what == "observe"]
    assert all(isinstance(piece, Segment) and len(piece.token_ids) <= 10 for piece in pieces)
    assert len(pieces) == 2 * len(ENTRIES)
    total = sum(event.nll or 0 for event in done.document_events)
    assert total == pytest.approx(sum(event.nll or 0 for event in whole.document_events), rel=1e-5)


def test_placebo_documents_are_observed_and_the_streams_questions_asked(lm: BaseModel) -> None:
    method = Recorder(lm)
    other = [entry(i + 10).document for i in range(4)]
    made = Loop(method, ENTRIES, other)
    made.run()
    assert [value for what, value in method.log if what == "observe"] == other
    assert asked(method) == [("q0", "q1", "q2", "q3")]


def test_without_documents_every_question_is_asked_once(lm: BaseModel) -> None:
    method = Recorder(lm)
    made = Loop(method, ENTRIES, ())
    made.run()
    assert [what for what, _ in method.log if what == "observe"] == []
    assert asked(method) == [("q0", "q1", "q2", "q3")]
    assert made.summary().f1 is not None and made.summary().token_nll is None


def test_apart_the_method_starts_afresh_and_each_question_is_asked_after_its_own_documents(lm: BaseModel) -> None:
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

    made = Loop(Lives(lm), ENTRIES, [entry.document for entry in ENTRIES], apart=3, anchor=ENTRIES[:1])
    made.run()
    assert lives == [["d0", "d1", "d2", "q0", "q1", "q2"], ["d3", "q3"]], "and no anchor, which has no place there"
    assert [event.position for event in made.answer_events] == [0, 1, 2, 3]


def test_the_state_is_as_large_as_at_the_end_and_apart_as_for_the_largest_group(lm: BaseModel) -> None:
    class Grows(Recorder):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.register("kept", torch.zeros(0, dtype=torch.uint8))

        def observe(self, document: Document) -> None:
            self.kept = torch.zeros(len(self.kept) + 5, dtype=torch.uint8)

    for every, expected in ((None, 20), (3, 15)):
        made = Loop(Grows(lm), ENTRIES, [entry.document for entry in ENTRIES], apart=every)
        made.run()
        assert made.state_bytes == expected, "5 bytes a document, 4 documents or 3 and 1"


def test_apart_asks_what_the_whole_stream_asks(lm: BaseModel) -> None:
    revised = [*ENTRIES, entry(9, revises="q1")]
    documents = [one.document for one in revised]
    whole, parts = Loop(Recorder(lm), revised, documents), Loop(Recorder(lm), revised, documents, apart=2)
    for made in (whole, parts):
        made.run()
    ids = [[event.question_id for event in made.answer_events] for made in (whole, parts)]
    assert ids[0] == ids[1] == ["q0", "q2", "q3", "q9"]


def test_the_same_seed_gives_the_same_events(lm: BaseModel) -> None:
    first, second = (loop(Tuner(lm, Tuner.Config(learning_rate=1e-2)), seed=3) for _ in range(2))
    assert [e.model_dump(exclude={"observe_seconds"}) for e in first.document_events] == [
        e.model_dump(exclude={"observe_seconds"}) for e in second.document_events
    ]
    assert first.answer_events == second.answer_events


def test_where_the_right_document_is_among_those_given_is_recorded(lm: BaseModel) -> None:
    class Names(Recorder):
        given = (["d0", "d3"], ["d3", "d0", "d1"], [], ["d0"])

        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(documents=self.given[: len(questions)])

    done = loop(Names(lm), probes=(0.5, 1.0))
    assert [event.retrieved for event in done.answer_events] == [1, 3, 1, 3, 0, 0]
    assert done.summary().recall == 0.5, "two of four at the last probe"
    silent = loop(Recorder(lm))
    assert {event.retrieved for event in silent.answer_events} == {None} and silent.summary().recall is None


def test_documents_must_be_named_for_every_question(lm: BaseModel) -> None:
    class NamesTooFew(Recorder):
        def condition(self, questions: Sequence[Question]) -> Conditioning:
            return Conditioning(documents=[["d0"]])

    with pytest.raises(ValueError, match=r"Conditioning\.documents has 1 entries for 4 questions"):
        loop(NamesTooFew(lm))


def test_nan_weights_are_called_diverged_with_the_position(lm: BaseModel) -> None:
    made = Loop(Breaker(lm), ENTRIES, [e.document for e in ENTRIES])
    with pytest.raises(Diverged):
        made.run()
    assert made.position == 1, "the score of the document after the damage shows it"


def test_costs_are_charged_to_their_phases(lm: BaseModel) -> None:
    method = Tuner(lm, Tuner.Config(learning_rate=1e-2))
    costs = loop(method).ledger.costs(0)
    assert costs.offline.seconds == 0
    assert min(costs.score.flops, costs.observe.flops, costs.answer.flops) > 0
    assert 1.7 < costs.observe.flops / costs.score.flops < 2.3, "the scoring forward serves the step's backward pass"
    quiet = loop(Tuner(lm), scoring=False).ledger.costs(0)
    assert quiet.score.seconds == 0
    assert quiet.observe.flops / costs.score.flops == pytest.approx(
        1 + costs.observe.flops / costs.score.flops, rel=0.1
    )


def test_learning_from_the_scoring_forward_changes_nothing(lm: BaseModel) -> None:
    class Separate(Tuner):
        learns_from_scoring = False  # type: ignore[assignment]

    config = Tuner.Config(optimizer="sgd", learning_rate=1e-2, steps_per_document=2)
    reused, separate = loop(Tuner(lm, config)), loop(Separate(lm, config))
    assert [e.nll for e in reused.document_events] == [e.nll for e in separate.document_events]
    assert lm.scored is None


def test_a_method_may_change_the_weights_while_it_answers_if_it_undoes_it(lm: BaseModel) -> None:
    class Blanks(Recorder):
        @contextlib.contextmanager
        def answering(self) -> Iterator[None]:
            head = self.lm.model.lm_head.weight
            before = head.detach().clone()
            head.data.zero_()
            yield
            head.data.copy_(before)

    blank, plain = loop(Blanks(lm), probes=(0.5, 1.0)), loop(Recorder(lm), probes=(0.5, 1.0))
    assert [e.nll for e in blank.document_events] == [e.nll for e in plain.document_events]
    vocabulary = lm.model.lm_head.weight.shape[0]
    assert {round(e.nll, 4) for e in blank.answer_events} == {round(math.log(vocabulary), 4)}


def test_a_method_may_ask_for_shorter_segments(lm: BaseModel) -> None:
    class Pieces(Recorder):
        segment_tokens = 5  # type: ignore[assignment]

    done = loop(Pieces(lm), segment_tokens=7)
    assert max(event.tokens for event in done.document_events) == 5
