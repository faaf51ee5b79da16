"""Embeddings: one by one and in batches, of the base and of an encoder, and their ranking."""

from __future__ import annotations

import shutil
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


def test_a_separate_encoder_embeds_with_its_last_layer(lm: BaseModel, encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    method = make(lm, encoder=str(encoder))
    inputs = AutoTokenizer.from_pretrained(encoder)(TEXT[1], return_tensors="pt")
    with torch.no_grad():
        mean = AutoModel.from_pretrained(encoder)(**inputs).last_hidden_state[0].mean(0)
    torch.testing.assert_close(method.embed([TEXT[1]])[0], functional.normalize(mean, dim=0))
    assert method.notes()["layer"] == 3 and len(method.notes()["encoder"]) == 64
    half = tmp_path / "half"
    AutoModel.from_pretrained(encoder).half().save_pretrained(half)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(half)
    assert make(lm, encoder=str(half)).encoder.dtype == torch.float32, "it embeds in the precision of the board"


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


@pytest.mark.parametrize("positions", [34, 66, 514])
def test_an_encoder_whose_positions_begin_after_padding_reads_what_fits(
    llama: Path, encoder: Path, tmp_path: Path, positions: int
) -> None:
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    folder = tmp_path / "roberta"
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    RobertaModel(RobertaConfig(vocab_size=200, max_position_embeddings=positions, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder, model_max_length=10**9).save_pretrained(folder)
    method = make(BaseModel.load(str(llama)), encoder=str(folder))
    long = " ".join(TEXT * 20)
    inputs, mask = method._tokenize([long])
    assert inputs["input_ids"].shape == mask.shape == (1, positions - 2)
    assert torch.isfinite(method.embed([long, TEXT[0], ""])).all()


@pytest.mark.parametrize("kind", ["t5", "bart", "torn", "remote"])
def test_an_encoder_that_cannot_embed_is_refused_with_a_sentence(
    llama: Path, encoder: Path, tmp_path: Path, kind: str
) -> None:
    import json

    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel

    folder = shutil.copytree(encoder, tmp_path / "encoder")
    if kind in ("t5", "bart"):
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_layers": 1}
        AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=200, **sizes)).save_pretrained(folder)
    elif kind == "torn":
        weights = load_file(folder / "model.safetensors")
        del weights["encoder.layer.0.output.dense.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        code = {"model_type": "invented", "auto_map": {"AutoConfig": "own.Config"}}
        (folder / "config.json").write_text(json.dumps(code))
        (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    reason = {"t5": "T5Model is an encoder with a decoder", "bart": "BartModel is an encoder with a decoder"}
    reason |= {"torn": "lacks the weights encoder.layer.0.output.dense.weight", "remote": "No encoder could be read"}
    with pytest.raises(BenchError, match=reason[kind]):
        make(BaseModel.load(str(llama)), encoder=str(folder))


def test_special_tokens_written_in_a_text_are_text_to_an_encoder(lm: BaseModel, encoder: Path) -> None:
    method = make(lm, encoder=str(encoder))
    [ids] = method._tokenize(["a [SEP] b [CLS]"])[0]["input_ids"].tolist()
    names = method.tokenizer.convert_ids_to_tokens(ids)
    assert names[0] == "[CLS]" and names[-1] == "[SEP]" and len(names) > 5
    assert not {"[CLS]", "[SEP]"} & set(names[1:-1])
