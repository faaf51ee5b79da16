"""Full context: the end of the stream that fits into the window, before each question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import Conditioning, Document, Question
from bench.answering.prompts import build_prompts
from bench.lm.base_model import BaseModel
from methods.full_context import FullContext
from tests.conftest import TEXT

QUESTIONS = [Question("q", "Who repaired the bridge?"), Question("r", "In what year?")]


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


def make(lm: BaseModel, texts: Sequence[str]) -> FullContext:
    method = FullContext(lm)
    method.reset()
    for i, text in enumerate(texts):
        method.observe(Document(str(i), text))
    return method


def test_a_short_stream_is_given_whole_and_in_order(lm: BaseModel) -> None:
    texts = ("The mill burned.", "The otter left.")
    conditioning = make(lm, texts).condition(QUESTIONS)
    assert list(conditioning.text or ()) == ["\n".join(texts)] * 2
    assert [list(ids) for ids in conditioning.documents or ()] == [["1", "0"]] * 2


def test_the_prompt_of_a_long_stream_equals_that_of_its_whole_text(lm: BaseModel) -> None:
    texts = [f"{TEXT[i % 3]} {i}" for i in range(40)]
    conditioning = make(lm, texts).condition(QUESTIONS)
    count = len(conditioning.documents[0])  # type: ignore[index]
    assert list(conditioning.text or ()) == ["\n".join(texts[-count:])] * 2 and count < 20
    everything = Conditioning(text=["\n".join(texts)] * 2)
    cut, longer = (build_prompts(lm, QUESTIONS, each, 16) for each in (conditioning, everything))
    for short, long in zip(cut, longer, strict=True):
        assert short.ids.tolist() == long.ids.tolist() and 0 < short.cut < long.cut


def test_every_selected_document_but_the_oldest_fits_as_a_whole(lm: BaseModel) -> None:
    texts = [f"Ferry {i} left at noon." for i in range(60)]
    conditioning = make(lm, texts).condition(QUESTIONS)
    selected = list(conditioning.documents[0])  # type: ignore[index]
    assert selected == [str(59 - i) for i in range(len(selected))]
    sizes = [len(lm.encode(texts[int(name)] + "\n")) for name in selected]
    assert sum(sizes[:-1]) < lm.window - len(lm.encode(QUESTIONS[0].text)) <= sum(sizes)


def test_a_document_longer_than_the_window_is_still_given(lm: BaseModel) -> None:
    conditioning = make(lm, ("Rain.", " ".join(TEXT) * 5)).condition(QUESTIONS)
    assert [list(ids) for ids in conditioning.documents or ()] == [["1"]] * 2
