"""TF-IDF weights: the definition by hand and by a slow reference, and the documents that count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import Document, Episode
from bench.contract.method import validate_config
from bench.errors import BenchError
from bench.lm.base_model import BaseModel, TokenBatch
from methods.parts.words import find_words, words
from methods.tfidf import Tfidf
from tests.conftest import make_checkpoint

CORPUS = ("The cat saw the dog", "The otter slept")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return BaseModel.load(str(make_checkpoint(folder, request.param)))


def make(lm: BaseModel, texts: Sequence[str] = CORPUS, **config: Any) -> Tfidf:
    method = Tfidf(lm, Tfidf.Config(**{"optimizer": "sgd", **config}))
    if method.learns_offline(method.config):
        method.fit([Episode(Document(str(i), text), (), ()) for i, text in enumerate(texts)])
        method.keep()
    method.reset()
    return method


def slow_entries(text: str, corpus: Sequence[str]) -> dict[str, float]:
    """TF-IDF of the words of a text, straight from the definition."""
    entries = {
        word: words(text).count(word)
        * (math.log((1 + len(corpus)) / (1 + sum(word in words(other) for other in corpus))) + 1)
        for word in words(text)
    }
    norm = math.sqrt(sum(value**2 for value in entries.values()))
    return {word: value / norm for word, value in entries.items()}


def slow_weights(batch: TokenBatch, entries: dict[str, float]) -> list[float]:
    """The largest entry of the words that share a character with each token."""
    text = batch.document.text
    words = [(start, end, entries[word]) for word, start, end in find_words(text)]
    return [
        max([value for a, b, value in words if max(a, start) < min(b, end)], default=0.0)
        for start, end in batch.offsets
    ]


def test_entries_of_a_two_document_corpus_by_hand(lm: BaseModel) -> None:
    # "the" is in both documents: idf ln(3/3) + 1 = 1, twice; the others in one: ln(3/2) + 1 = 1.405465
    norm = math.sqrt(2**2 + 3 * 1.4054651**2)  # 3.150555
    entries = make(lm).entries(CORPUS[0])
    assert entries == pytest.approx(
        {"the": 2 / norm, **dict.fromkeys(("cat", "saw", "dog"), 1.4054651 / norm)}, abs=1e-7
    )
    assert entries["the"] == pytest.approx(0.634809, abs=1e-6) and entries["cat"] == pytest.approx(0.446101, abs=1e-6)


def test_an_unseen_word_is_the_rarest(lm: BaseModel) -> None:
    entries = make(lm).entries("the cat and the lemur")
    assert entries["lemur"] / entries["cat"] == pytest.approx((math.log(3) + 1) / (math.log(1.5) + 1))


def test_case_and_single_characters_do_not_count(lm: BaseModel) -> None:
    assert make(lm).entries("A CAT, a Cat; 7 I") == {"cat": 1.0}


def test_a_token_weighs_its_word_and_nothing_outside_of_words(lm: BaseModel) -> None:
    method, document = make(lm), Document("d", "the  cat -- 7: dog")
    batch, entries = lm.tokens(document), method.entries("the  cat -- 7: dog")
    for (start, end), weight in zip(batch.offsets, method.token_weights(batch).tolist(), strict=True):
        piece = document.text[start:end].strip()
        assert weight == pytest.approx(next((v for word, v in entries.items() if piece and piece in word), 0.0))


pieces = st.sampled_from(
    ["the", "Cat", "dög", "naïve", "İstanbul", "東京", "東京都", "🛳️👩‍🔬", "e\u0301a", "x", "1983", "--", "\n", "_b"]
)
texts = st.lists(pieces | st.text(max_size=4), max_size=12).map(" ".join) | st.lists(pieces, max_size=8).map("".join)


@settings(max_examples=60, deadline=None)
@given(text=texts, corpus=st.lists(texts, max_size=4))
def test_weights_equal_a_slow_reference(lm: BaseModel, text: str, corpus: list[str]) -> None:
    method, batch = make(lm, corpus), lm.tokens(Document("d", text))
    expected = slow_weights(batch, slow_entries(text, corpus))
    torch.testing.assert_close(method.token_weights(batch), torch.tensor(expected, dtype=torch.float32))


def test_every_byte_token_of_a_word_has_the_weight_of_the_word(lm: BaseModel) -> None:
    method, batch = make(lm), lm.tokens(Document("d", "東京 ran"))
    assert len(batch) > 5, "each of these characters is several tokens"
    weights = method.token_weights(batch)
    of_city = [w for w, (start, _) in zip(weights.tolist(), batch.offsets, strict=True) if start < 2]
    assert len(of_city) > 2 and of_city == pytest.approx([1 / math.sqrt(2)] * len(of_city))


def test_segments_are_weighted_one_by_one(lm: BaseModel) -> None:
    method, document = make(lm), Document("d", "the cat, the dög 🛳️ and the other cat")
    for segment in lm.segments(document, 5):
        batch = lm.tokens(segment)
        expected = slow_weights(batch, slow_entries(segment.text, CORPUS))
        torch.testing.assert_close(method.token_weights(batch), torch.tensor(expected))


def test_entries_at_or_below_the_quantile_have_weight_zero(lm: BaseModel) -> None:
    entries = sorted(value for text in CORPUS for value in slow_entries(text, CORPUS).values())
    for quantile, expected in ((0.0, entries[0]), (0.5, entries[3])):
        method = make(lm, quantile=quantile)
        assert method.threshold.item() == pytest.approx(expected)
        # "the" of the second document is the lowest of all
        weights = method.token_weights(lm.tokens(Document("d", CORPUS[1])))
        slow = slow_weights(lm.tokens(Document("d", CORPUS[1])), slow_entries(CORPUS[1], CORPUS))
        slow = [value if value > expected + 1e-12 else 0.0 for value in slow]
        torch.testing.assert_close(weights, torch.tensor(slow))
        assert 0 in slow and max(slow) > 0


def test_with_fit_on_stream_the_present_document_is_counted_too(lm: BaseModel) -> None:
    method, stream = make(lm, fit_on="stream", learning_rate=0.0), ("the cat", "the dog", "a cat")
    assert not Tfidf.learns_offline(method.config) and method.documents == 0, "no train split needed"
    for i, text in enumerate(stream):
        method.observe(Document(str(i), text))
        assert method.entries("the cat lemur") == pytest.approx(slow_entries("the cat lemur", stream[: i + 1]))


def test_counts_of_the_stream_are_saved_and_reset(lm: BaseModel) -> None:
    method = make(lm, fit_on="stream", learning_rate=0.0)
    method.observe(Document("0", CORPUS[0]))
    saved = method.state_dict()
    method.observe(Document("1", CORPUS[1]))
    both = method.entries("the cat")
    method.reset()
    assert method.documents == 0 and len(method.words) == 1
    resumed = make(lm, fit_on="stream", learning_rate=0.0)
    resumed.load_state_dict(saved)
    resumed.observe(Document("1", CORPUS[1]))
    assert resumed.entries("the cat") == both


def test_counts_of_the_train_split_do_not_change(lm: BaseModel) -> None:
    method = make(lm)
    before = method.entries("the cat")
    method.observe(Document("0", CORPUS[0]))
    assert method.documents == 2 and method.entries("the cat") == before
    method.reset()
    assert method.documents == 2


@pytest.mark.parametrize("config", [{"fit_on": "train"}, {"fit_on": "stream"}, {"quantile": 0.5}])
def test_an_empty_train_split_is_allowed(lm: BaseModel, config: dict[str, Any]) -> None:
    method = make(lm, (), **config)
    for text in ("", "a", "the cat"):
        method.observe(Document(text, text))


def test_a_quantile_with_fit_on_stream_is_rejected() -> None:
    with pytest.raises(BenchError, match=r"tfidf\.quantile = 0\.1: .*set fit_on=train"):
        validate_config(Tfidf, {"fit_on": "stream", "quantile": 0.1})
