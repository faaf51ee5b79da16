"""Salient spans: only entities are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import Document
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.salient_spans import SalientSpans

TEXT = "Nobody saw Zoë 🛳️ Ærø at 490 workers in 1983; it rained."
SALIENT = ("Zoë", "Ærø", "1983")


@pytest.fixture
def lm(llama: Path) -> BaseModel:
    return BaseModel.load(str(llama))


def make(lm: BaseModel, **config: Any) -> SalientSpans:
    return SalientSpans(lm, SalientSpans.Config(**{"tagger": "rules", "optimizer": "sgd", **config}))


def marked(lm: BaseModel, words: tuple[str, ...]) -> Tensor:
    """1 for every token of TEXT that shares a character with one of the words; a slow reference."""
    characters = {i for word in words for i in range(TEXT.index(word), TEXT.index(word) + len(word))}
    offsets = lm.tokens(Document("d", TEXT)).offsets
    return torch.tensor([float(any(i in characters for i in range(start, end))) for start, end in offsets])


def test_tokens_of_names_and_dates_have_weight_1_and_all_others_0(lm: BaseModel) -> None:
    weights = make(lm).token_weights(lm.tokens(Document("d", TEXT)))
    torch.testing.assert_close(weights, marked(lm, SALIENT))
    assert 0 < weights.sum() < len(weights)


def test_keep_numbers_includes_numbers(lm: BaseModel) -> None:
    weights = make(lm, keep_numbers=True).token_weights(lm.tokens(Document("d", TEXT)))
    torch.testing.assert_close(weights, marked(lm, (*SALIENT, "490")))


def test_a_step_is_the_gradient_of_the_entities_loss_over_all_tokens(lm: BaseModel) -> None:
    document = Document("d", TEXT)
    lm.loss(document, marked(lm, SALIENT)).backward()
    expected = {name: (p - 0.1 * p.grad).detach().clone() for name, p in lm.model.named_parameters()}
    method = make(lm, learning_rate=0.1)
    method.reset()
    method.observe(document)
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("text", ["nobody saw the otter.", "490 workers", "", "🛳️"])
def test_a_document_without_an_entity_is_skipped_even_with_momentum(lm: BaseModel, text: str, optimizer: str) -> None:
    method = make(lm, optimizer=optimizer, learning_rate=1e-2)
    method.reset()
    method.observe(Document("d", TEXT))
    before = method.state_dict()
    method.observe(Document("e", text))
    after = method.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_segments_are_tagged_by_their_own_text(lm: BaseModel) -> None:
    method = make(lm)
    document = Document("d", "At noon the ferry left Corvale; nobody saw the otter at all.")
    batches = [lm.tokens(segment) for segment in lm.segments(document, 8)]
    salient = [
        batch.document.text[start:end]
        for batch in batches
        for (start, end), weight in zip(batch.offsets, method.token_weights(batch).tolist(), strict=True)
        if weight
    ]
    assert "".join(salient).replace(" ", "") == "Corvale"


def test_the_record_names_the_tagger(lm: BaseModel) -> None:
    assert make(lm).notes() == {"tagger": "rules 1"}


def test_a_missing_spacy_is_an_error(lm: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(choice: str) -> Any:
        raise BenchError(f"no {choice}")

    monkeypatch.setattr("methods.salient_spans.load_tagger", missing)
    with pytest.raises(BenchError, match="no spacy"):
        make(lm, tagger="spacy")
