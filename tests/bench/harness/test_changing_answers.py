"""Answers that change along the stream: what is asked at each probe, and scores computed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import Document, Method, Question
from bench.data.documents import Entry, GoldQuestion
from bench.harness.loop import Loop, due_questions
from bench.lm.base_model import BaseModel
from bench.records.schema import AnswerEvent


class Scripted(Method):
    """Answers each question as its script says, by forcing the tokens of the answer."""

    name = "scripted"
    paper = "none"
    script: Mapping[str, str]
    """Text of a question -> answer; unknown questions are answered with "unknown"."""

    def observe(self, document: Document) -> None:
        pass

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        first = len(ids) - len(log_probs)
        forced = torch.tensor([self._next(ids[: first + t + 1].tolist()) for t in range(len(log_probs))])
        return (30.0 * torch.nn.functional.one_hot(forced, log_probs.shape[1])).log_softmax(-1)

    def _next(self, ids: Sequence[int]) -> int:
        end = self.lm.tokenizer.eos_token_id
        text = self.lm.tokenizer.decode(ids[1:])
        question = text[: text.find("?") + 1]
        answer = [*self.lm.encode(f" {self.script.get(question, 'unknown')}"), end]
        written = len(ids) - 1 - len(self.lm.encode(question))
        return int(answer[written]) if 0 <= written < len(answer) else end


def asking(number: int, *golds: tuple[str, str, str, str]) -> Entry:
    """A document with questions, each (id, text, answers separated by commas, id of the one that it revises)."""
    questions = (
        GoldQuestion(Question(name, text), tuple(answers.split(",")), revises or None)
        for name, text, answers, revises in golds
    )
    return Entry(Document(f"d{number}", f"Note {number}."), tuple(questions))


NOTICES = (
    asking(0, ("office", "Where is the office?", "Pier 1", ""), ("fare", "What is the fare?", "two crowns", "")),
    asking(1, ("bell", "What is the bell made of?", "bronze", "")),
    asking(2, ("moved", "Where has the office gone?", "Pier 4", "office")),
)


def values(*answers: str) -> tuple[Entry, ...]:
    """A stream of documents that each give the same fact another answer."""
    return tuple(
        asking(i, (f"q{i}", f"Which colour, {i}?", text, f"q{i - 1}" * bool(i))) for i, text in enumerate(answers)
    )


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def run(lm: BaseModel, entries: Sequence[Entry], script: Mapping[str, str], **options: object) -> Loop:
    method = Scripted(lm)
    method.script = script
    loop = Loop(method, entries, [entry.document for entry in entries], scoring=False, **options)  # type: ignore[arg-type]
    loop.run()
    return loop


def of(loop: Loop, question: str, probe: float = 1.0) -> AnswerEvent:
    """The answer to this question at this probe."""
    (event,) = (e for e in loop.answer_events if (e.question_id, e.probe) == (question, probe))
    return event


@pytest.mark.parametrize(
    ("answer", "f1_current", "stale"),
    [
        ("Pier 4", 1.0, 0.0),
        ("the pier 1.", 0.5, 1.0),  # one word of two is right, and it is the earlier truth after normalisation
        ("Pier 2", 0.5, 0.0),
        ("bronze", 0.0, 0.0),
    ],
)
def test_scores_of_three_documents_by_hand(lm: BaseModel, answer: str, f1_current: float, stale: float) -> None:
    script = {
        "Where is the office?": "Pier 1",
        "What is the fare?": "two shillings",
        "What is the bell made of?": "bronze",
        "Where has the office gone?": answer,
    }
    loop = run(lm, NOTICES, script, probes=(0.6, 1.0))
    assert [(e.question_id, e.prediction, e.f1, e.earlier, e.stale) for e in loop.answer_events] == [
        ("office", "Pier 1", 1.0, (), None),
        ("fare", "two shillings", 0.5, (), None),
        ("bell", "bronze", 1.0, (), None),
        ("fare", "two shillings", 0.5, (), None),
        ("bell", "bronze", 1.0, (), None),
        ("moved", answer, f1_current, ("Pier 1",), stale),
    ]
    summary = loop.summary()
    assert (summary.questions, summary.changed) == (3, 1)
    assert (summary.f1_current, summary.stale, summary.f1_unchanged) == (f1_current, stale, 0.75)
    assert summary.f1 == pytest.approx((1.5 + f1_current) / 3)


def test_before_anything_has_changed_there_is_only_an_unchanged_score(lm: BaseModel) -> None:
    summary = run(lm, NOTICES[:2], {}).summary()
    assert (summary.changed, summary.f1_current, summary.stale, summary.f1_unchanged) == (0, None, None, 0.0)


def test_a_fact_that_changes_twice_has_two_earlier_truths(lm: BaseModel) -> None:
    for answer, stale in (("red", 1.0), ("green", 1.0), ("blue", 0.0), ("grey", 0.0)):
        loop = run(
            lm,
            values("red", "green", "blue"),
            {f"Which colour, {i}?": answer for i in range(3)},
            probes=(0.3, 0.6, 1.0),
        )
        assert [e.question_id for e in loop.answer_events] == ["q0", "q1", "q2"]
        assert [e.earlier for e in loop.answer_events] == [(), ("red",), ("red", "green")]
        assert loop.answer_events[1].stale == float(answer == "red")
        assert loop.answer_events[2].stale == loop.summary().stale == stale


def test_an_answer_that_is_true_again_is_not_an_earlier_truth(lm: BaseModel) -> None:
    for answer, f1, stale in (("red", 1.0, 0.0), ("green", 0.0, 1.0)):
        loop = run(lm, values("red", "green", "the Red"), {"Which colour, 2?": answer})
        event = of(loop, "q2")
        assert (event.earlier, event.f1, event.stale) == (("green",), f1, stale)
        assert (loop.summary().f1_current, loop.summary().f1_unchanged) == (f1, None)


@pytest.mark.parametrize(
    ("answers", "earlier"),
    [
        (("red", "The red!"), ()),  # the same after normalisation
        (("red,scarlet", "scarlet"), ()),  # one of two spellings
        (("red,scarlet", "blue,azure"), ("red", "scarlet")),
        (("red", "green", "red", "blue"), ("red", "green")),  # each once
    ],
)
def test_a_fact_has_changed_if_none_of_its_answers_is_true_now(
    lm: BaseModel, answers: Sequence[str], earlier: tuple[str, ...]
) -> None:
    event = of(run(lm, values(*answers), {}), f"q{len(answers) - 1}")
    assert event.earlier == earlier
    assert (event.f1_current, event.f1_unchanged) == ((0.0, None) if earlier else (None, 0.0))


def test_a_method_that_is_reset_is_asked_the_same_of_the_whole_stream(lm: BaseModel) -> None:
    whole, parts = (run(lm, NOTICES, {}, documents_per_reset=every) for every in (None, 1))
    assert whole.answer_events == parts.answer_events
    assert of(parts, "moved").earlier == ("Pier 1",)


def test_questions_of_the_anchor_set_are_asked_with_their_last_answer_and_count_in_no_score(lm: BaseModel) -> None:
    loop = run(lm, NOTICES[:1], {}, anchor=values("red", "green"))
    anchors = [event for event in loop.answer_events if event.set == "anchor"]
    assert [(event.question_id, event.answers) for event in anchors] == 2 * [("q1", ("green",))]
    assert loop.summary().changed == 0


def test_a_chain_is_followed_across_a_document_that_the_stream_lacks() -> None:
    first, _, last = values("red", "green", "blue")
    (gold,) = last.questions
    linked = Entry(last.document, (GoldQuestion(gold.question, gold.answers, "q1", before=("q0",)),))
    (due,) = due_questions([first, linked])
    assert (due.gold.question.id, [old.answers for old in due.earlier]) == ("q2", [("red",)])


def test_an_old_document_that_arrives_late_makes_no_answer_true_again() -> None:
    first, second = values("red", "green")
    (due,) = due_questions([second, first])
    assert (due.gold.question.id, [old.answers for old in due.earlier]) == ("q1", [("red",)])
