"""The window's worth of the stream before each question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import Conditioning, Document, Question
from bench.answering.prompts import prompts
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


def test_a_short_stream_stands_there_whole_and_in_order(lm: BaseModel) -> None:
    texts = ("The mill burned.", "The otter left.")
    found = make(lm, texts).condition(QUESTIONS)
    assert list(found.text or ()) == ["\n".join(texts)] * 2
    assert [list(ids) for ids in found.documents or ()] == [["1", "0"]] * 2


def test_of_a_long_stream_the_prompt_is_as_of_all_of_it_but_the_text_is_no_longer_than_needed(lm: BaseModel) -> None:
    texts = [f"{TEXT[i % 3]} {i}" for i in range(40)]
    found = make(lm, texts).condition(QUESTIONS)
    kept = len(found.documents[0])  # type: ignore[index]
    assert list(found.text or ()) == ["\n".join(texts[-kept:])] * 2 and kept < 20
    everything = Conditioning(text=["\n".join(texts)] * 2)
    for short, long in zip(prompts(lm, QUESTIONS, found, 16), prompts(lm, QUESTIONS, everything, 16), strict=True):
        assert short.ids.tolist() == long.ids.tolist() and 0 < short.cut < long.cut


def test_every_document_but_the_oldest_that_is_named_fits_whole(lm: BaseModel) -> None:
    texts = [f"Ferry {i} left at noon." for i in range(60)]
    found = make(lm, texts).condition(QUESTIONS)
    named = list(found.documents[0])  # type: ignore[index]
    assert named == [str(59 - i) for i in range(len(named))]
    sizes = [len(lm.encode(texts[int(name)] + "\n")) for name in named]
    assert sum(sizes[:-1]) < lm.window - len(lm.encode(QUESTIONS[0].text)) <= sum(sizes)


def test_one_document_longer_than_the_window_is_given_all_the_same(lm: BaseModel) -> None:
    found = make(lm, ("Rain.", " ".join(TEXT) * 5)).condition(QUESTIONS)
    assert [list(ids) for ids in found.documents or ()] == [["1"]] * 2
