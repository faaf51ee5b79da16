"""Retrieval methods: the text before a question, its order, and the saved state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from bench import Conditioning, Document, Question
from bench.data.documents import Entry, GoldQuestion
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from methods.parts.retrieval import RetrievalMethod, best

QUESTIONS = [Question("q", "Who?"), Question("r", "When?")]


class Ends(RetrievalMethod):
    """The last and the first document for the first question, the first alone for the others."""

    name = "ends"
    paper = "none"

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        return [[len(self.documents) - 1, 0], *[[0]] * (len(questions) - 1)]


@pytest.fixture(scope="module")
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def make(lm: BaseModel, texts: Sequence[str] = ()) -> Ends:
    method = Ends(lm)
    method.reset()
    for i, text in enumerate(texts):
        method.observe(Document(f"d{i}", text))
    return method


def test_the_best_document_is_next_to_the_question_and_named_first(lm: BaseModel) -> None:
    conditioning = make(lm, ("first", "second", "third")).condition(QUESTIONS)
    assert conditioning == Conditioning(text=["first\nthird", "first"], documents=[["d2", "d0"], ["d0"]])


def test_segments_of_one_document_are_named_once(lm: BaseModel) -> None:
    method = make(lm)
    for text in ("one segment", "another"):
        method.observe(Document("d", text))
    assert method.condition(QUESTIONS[:1]) == Conditioning(text=["one segment\nanother"], documents=[["d"]])


def test_without_documents_questions_are_answered_closed_book(lm: BaseModel) -> None:
    assert make(lm).condition(QUESTIONS) == Conditioning()


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters()), max_size=5))
def test_any_texts_are_saved_and_reset(lm: BaseModel, texts: list[str]) -> None:
    method = make(lm, [*texts, "\ud800 lone", "東京 🛳️"])
    state, resumed = method.state_dict(), make(lm, ["other"])
    resumed.load_state_dict(load(save(state)))
    assert resumed.documents == method.documents
    assert torch.equal(resumed.state_dict()["method.documents"], state["method.documents"])
    method.reset()
    assert method.documents == []


def test_the_harness_puts_documents_before_questions_and_counts_recall(lm: BaseModel) -> None:
    entries = [
        Entry(Document(f"d{i}", f"Ferry {i} left."), (GoldQuestion(Question(f"q{i}", f"Ferry {i}?"), ("left",)),))
        for i in range(3)
    ]
    loop = Loop(Ends(lm), entries, [entry.document for entry in entries])
    loop.run()
    found = [event.retrieved for event in loop.answer_events]
    assert found == [1, 0, 1], "d2 and d0 for the third question, which is asked first, d0 for the others"
    assert loop.summary().recall == pytest.approx(2 / 3)


def test_ties_go_to_the_later_document() -> None:
    assert best(torch.tensor([0.0, 2.0, 1.0, 2.0, 0.0]), 4) == [3, 1, 2, 4]
    assert best(torch.tensor([1.0]), 3) == [0]
