"""The form of answers: whether the model ends them, and retuning before they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench import Document, Episode, Method, Question
from bench.answering.decoding import Decoding
from bench.answering.retune import Retune
from bench.answering.retuning import retuned
from bench.data.documents import Entry, GoldQuestion
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from bench.records.schema import Tally

DATES = ("2024-07-01", "", "2024-08-20")
ENTRIES = [
    Entry(
        Document(f"d{i}", f"Otter {i} swims.", timestamp=date),
        (GoldQuestion(Question(f"q{i}", f"Who swims {i}?"), ("x",)),),
    )
    for i, date in enumerate(DATES)
]
DOCUMENTS = [entry.document for entry in ENTRIES]
EPISODES = [
    Episode(Document(f"q{i}", f"Mill {i}."), (Question(str(i), f"When did mill {i} open?"),), ((str(1900 + i),),))
    for i in range(6)
]
RETUNE = Retune(steps=4, rate=1e-3)


class Still(Method):
    """Learns nothing."""

    name = "still"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass


class Writes(Still):
    """Writes x: once and then the end of text to question 0, once and then a newline to question 1, else for ever."""

    name = "writes"

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        tokens = [self.next_token(ids[:stop]) for stop in range(len(ids) - len(log_probs) + 1, len(ids) + 1)]
        return functional.one_hot(torch.tensor(tokens), log_probs.shape[-1]).float().log().clamp(min=-80)

    def next_token(self, ids: Tensor) -> int:
        [x], text = self.lm.encode("x").tolist(), self.lm.tokenizer.decode(ids)
        stop = self.lm.eos_id if "Who swims 0" in text else min(self.lm.newline_ids)
        return stop if int(ids[-1]) == x and "Who swims 2" not in text else x


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def run(method: Method, **options: object) -> Loop:
    loop = Loop(method, ENTRIES, DOCUMENTS, **options)  # type: ignore[arg-type]
    loop.run()
    return loop


def test_an_answer_ends_by_an_end_of_text_or_a_newline_within_its_tokens(lm: BaseModel) -> None:
    loop = run(Writes(lm), decoding=Decoding(max_new_tokens=3))
    assert [event.prediction for event in loop.answer_events] == ["x", "x", "xxx"]
    assert [event.ended for event in loop.answer_events] == [True, True, False]
    summary = loop.summary()
    assert (summary.ended, summary.f1, summary.em_prefix) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1.0)
    short = run(Writes(lm), decoding=Decoding(max_new_tokens=1))
    assert [event.ended for event in short.answer_events] == [False] * 3, "no token was left for the end"


def test_a_question_that_does_not_fit_has_no_end(lm: BaseModel) -> None:
    long = Question("long", "Who swims 0? " * lm.window)
    entries = [Entry(DOCUMENTS[0], (GoldQuestion(long, ("x",)),)), ENTRIES[2]]
    loop = Loop(Writes(lm), entries, DOCUMENTS[:2], decoding=Decoding(max_new_tokens=3))
    loop.run()
    assert [event.ended for event in loop.answer_events] == [None, False]
    assert loop.summary().ended == 0.0


def test_events_have_the_dates_of_their_documents(lm: BaseModel) -> None:
    loop = run(Still(lm), anchor=ENTRIES[2:])
    assert tuple(event.timestamp for event in loop.document_events) == DATES
    assert {(event.set, event.document_id, event.timestamp) for event in loop.answer_events} == {
        *(("stream", document.id, document.timestamp) for document in DOCUMENTS),
        ("anchor", "d2", DATES[2]),
    }


def test_retuning_changes_answers_and_nothing_else(lm: BaseModel) -> None:
    plain = run(Still(lm), probes=(0.4, 1.0))
    loop = run(Still(lm), probes=(0.4, 1.0), retune=RETUNE, qa_train=EPISODES)
    assert [event.nll for event in loop.document_events] == [event.nll for event in plain.document_events]
    assert lm.changed_bytes() == 0 and loop.state_bytes == 0
    with retuned(lm, EPISODES, RETUNE, seed=0):
        expected = run_on_tuned_weights(lm)
    assert [event.nll for event in loop.answer_events] == [*expected[:2], *expected]
    assert [event.nll for event in plain.answer_events] != [event.nll for event in loop.answer_events]


def run_on_tuned_weights(lm: BaseModel) -> list[float | None]:
    """NLL of the answers of the model as it is now."""
    loop = Loop(Still(lm), ENTRIES, DOCUMENTS)
    with loop._answering("now"):
        loop.ask(1.0, loop._due(3))
    return [event.nll for event in loop.answer_events]


def test_retuning_is_part_of_the_cost_of_answering(lm: BaseModel) -> None:
    nothing = Tally(seconds=0, flops=0, peak_bytes=0)
    plain = run(Still(lm)).ledger.costs(0, nothing)
    costly = [run(Still(lm), retune=Retune(steps=n), qa_train=EPISODES).ledger.costs(0, nothing) for n in (2, 4, 6)]
    flops = [plain.answer.flops, *(costs.answer.flops for costs in costly)]
    assert flops[0] < flops[1] and flops[2] - flops[1] == flops[3] - flops[2] > 0, "each step costs the same"
    assert {costs.score.flops for costs in costly} == {plain.score.flops}
