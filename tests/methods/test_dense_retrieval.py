"""Embeddings: one by one and in batches, of the base and of an encoder, and their ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from bench import Document, Question
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.dense_retrieval import BATCH, DenseRetrieval
from tests.conftest import TEXT

LONG = " ".join(TEXT) * 4
TEXTS = [" ".join(TEXT[i % 3].split()[: 1 + i]) for i in range(BATCH + 5)]


@pytest.fixture
def lm(checkpoint: Path) -> BaseModel:
    return BaseModel.load(str(checkpoint))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT written by save_pretrained."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXT * 4, vocab_size=200, show_progress=False)
    BertTokenizerFast(tokenizer_object=pieces._tokenizer, model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


def make(lm: BaseModel, **config: Any) -> DenseRetrieval:
    method = DenseRetrieval(lm, DenseRetrieval.Config(**config))
    method.reset()
    return method


@pytest.mark.parametrize("layer", [None, 0, 2])
def test_an_embedding_is_the_mean_of_a_layers_hidden_states(lm: BaseModel, layer: int | None) -> None:
    ids = torch.cat([torch.tensor([lm.bos_id]), lm.encode(TEXT[0])])
    with torch.no_grad():
        states = lm.model(input_ids=ids[None], output_hidden_states=True).hidden_states
    mean = states[1 if layer is None else layer][0, 1:].mean(0)  # the middle one of two; without begin-of-text
    torch.testing.assert_close(make(lm, layer=layer).embed([TEXT[0]])[0], mean / mean.norm())


def test_batched_embeddings_equal_single_ones(lm: BaseModel, encoder: Path) -> None:
    for method in (make(lm), make(lm, encoder=str(encoder))):
        together = method.embed([*TEXTS, "", LONG])
        single = torch.cat([method.embed([text]) for text in [*TEXTS, "", LONG]])
        torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_truncated_and_a_text_without_tokens_embeds_as_zero(lm: BaseModel) -> None:
    method = make(lm)
    torch.testing.assert_close(method.embed([LONG]), method.embed([LONG + TEXT[0]]))
    assert not method.embed([""]).any()


def test_a_separate_encoder_embeds_with_its_last_layer(lm: BaseModel, encoder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    method = make(lm, encoder=str(encoder))
    inputs = AutoTokenizer.from_pretrained(encoder)(TEXT[1], return_tensors="pt")
    with torch.no_grad():
        mean = AutoModel.from_pretrained(encoder)(**inputs).last_hidden_state[0].mean(0)
    torch.testing.assert_close(method.embed([TEXT[1]])[0], functional.normalize(mean, dim=0))
    assert method.notes()["layer"] == 3 and len(method.notes()["encoder"]) == 64


def test_documents_are_found_by_their_own_words(lm: BaseModel, encoder: Path) -> None:
    for method in (make(lm, k=2), make(lm, k=2, encoder=str(encoder))):
        for i, text in enumerate((*TEXT, TEXT[1])):
            method.observe(Document(str(i), text))
        one, two = method.rank([Question("q", TEXT[0]), Question("r", TEXT[1])])
        assert one[0] == 0 and len(one) == 2
        assert sorted(two) == [1, 3]


def test_embeddings_are_saved_and_reset(lm: BaseModel) -> None:
    method, resumed = make(lm), make(lm)
    method.observe(Document("a", TEXT[0]))
    resumed.load_state_dict(method.state_dict())
    for one in (method, resumed):
        one.observe(Document("b", TEXT[2]))
    assert torch.equal(method.embeddings, resumed.embeddings) and method.embeddings.shape == (2, 32)
    method.reset()
    assert method.embeddings.shape == (0, 32)


def test_an_unusable_encoder_or_layer_is_rejected(lm: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"No encoder could be read .* or leave it out to embed with the base"):
        make(lm, encoder=str(tmp_path))
    with pytest.raises(BenchError, match=r"Set dense_retrieval\.layer to at most 2\."):
        make(lm, layer=3)
