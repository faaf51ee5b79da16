"""BM25: the formula by hand and by a slow reference, ties, and documents without words."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import Document, Question
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.bm25 import Bm25

CORPUS = ("The cat saw the dog", "The otter slept", "A dog, a dog!")


@pytest.fixture(scope="module")
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def make(lm: BaseModel, texts: Sequence[str] = CORPUS, **config: Any) -> Bm25:
    method = Bm25(lm, Bm25.Config(**config))
    method.reset()
    for i, text in enumerate(texts):
        method.observe(Document(str(i), text))
    return method


def words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"\b\w\w+\b", text)]


def slow_scores(corpus: Sequence[str], query: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """BM25 (the Lucene variant) of every document, straight from the definition."""
    n, average = len(corpus), sum(len(words(text)) for text in corpus) / len(corpus)
    scores = []
    for text in corpus:
        score = 0.0
        for word in words(query):
            holding, tf = sum(word in words(other) for other in corpus), words(text).count(word)
            if tf:
                idf = math.log(1 + (n - holding + 0.5) / (holding + 0.5))
                score += idf * tf / (tf + k1 * (1 - b + b * len(words(text)) / average))
        scores.append(score)
    return scores


def ranked(method: Bm25, text: str) -> list[int]:
    (ranking,) = method.rank([Question("q", text)])
    return list(ranking)


def test_scores_by_hand(lm: BaseModel) -> None:
    # "dog" is in 2 of 3 documents: idf ln(1 + 1.5 / 2.5) = 0.470004; lengths 5, 3, 2, on average 10/3
    (scores,) = make(lm).scores(["Which dog?"])
    first, last = 1 / (1 + 1.5 * (0.25 + 0.75 * 1.5)), 2 / (2 + 1.5 * (0.25 + 0.75 * 0.6))  # 0.326531, 0.655738
    assert scores.tolist() == pytest.approx([0.4700036 * first, 0, 0.4700036 * last], abs=1e-6)
    assert ranked(make(lm, k=3), "Which dog?") == [2, 0, 1]


word = st.sampled_from(["the", "Cat", "dog", "dög", "東京", "x", "1983", "--", "", "otter", "THE"])
text = st.lists(word, max_size=8).map(" ".join)


@settings(max_examples=80, deadline=None)
@given(
    corpus=st.lists(text, min_size=1, max_size=6),
    query=text,
    k1=st.sampled_from([0.0, 1.2, 1.5]),
    b=st.sampled_from([0.0, 0.75, 1.0]),
)
def test_scores_equal_a_slow_reference(lm: BaseModel, corpus: list[str], query: str, k1: float, b: float) -> None:
    (scores,) = make(lm, corpus, k1=k1, b=b).scores([query])
    assert scores.tolist() == pytest.approx(slow_scores(corpus, query, k1, b), abs=1e-5)


@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25l", "bm25+"])
def test_every_variant_finds_the_document_with_the_rare_word(lm: BaseModel, variant: str) -> None:
    method = make(lm, method=variant)
    assert ranked(method, "Did the otter sleep?") == [1]
    (scores,) = method.scores(["zebra"])
    assert scores.tolist() == [0, 0, 0]


def test_ties_go_to_the_newest_document(lm: BaseModel) -> None:
    corpus = ("Mill 3 is in Corvale.", "Mill 3 is in Brunsk.", "Rain fell on and on.")
    assert ranked(make(lm, corpus, k=2), "Where is mill 3?") == [1, 0]
    assert ranked(make(lm, corpus), "Lemurs!") == [2], "no words in common with any document"


@pytest.mark.parametrize("corpus", [[""], ["", "x 7 --"]])
def test_documents_without_words_are_allowed(lm: BaseModel, corpus: list[str]) -> None:
    assert ranked(make(lm, corpus, k=5), "Where is the mill?") == list(range(len(corpus)))[::-1]


def test_documents_observed_after_a_probe_are_found_at_the_next(lm: BaseModel) -> None:
    method = make(lm)
    ranked(method, "the mill")
    method.observe(Document("3", "The mill burned down."))
    assert ranked(method, "the mill") == [3]


def test_a_missing_package_is_reported_before_the_stream_begins(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(BenchError, match="Run `pip install bm25s`"):
        Bm25(lm)
