from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from bench import BaseModel, Document, MethodConfig, Question
from bench.contract.search import SearchSpace
from bench.errors import BenchError
from bench.lm.checkpoint import identity, positions
from methods.parts.retrieval import RetrievalMethod, best

BATCH = 32
"""Texts embedded in one batch."""


class DenseRetrieval(RetrievalMethod):
    """Retrieval by embeddings: the documents with the highest cosine similarity to a question are put before it.

    Nothing is learned. An embedding is the mean of a text's hidden states (Reimers and Gurevych 2019) in the base or in
    a separate encoder. Where an experiment retunes the base before answers, the retuned one embeds questions, and the
    base as it comes documents. A text longer than the window is truncated. Costs a forward pass per document and per
    question, and a longer prompt per question. The state is the text of all documents and their embeddings.
    """

    name = "dense_retrieval"
    paper = "reimers2019sentencebert"

    class Config(MethodConfig):
        """The encoder, and the number of documents."""

        k: int = pydantic.Field(default=1, ge=1, description="documents before each question")
        encoder: Path | None = pydantic.Field(
            default=None,
            description="folder of an encoder saved by sentence-transformers or save_pretrained; null: the base",
        )
        layer: int | None = pydantic.Field(
            default=None,
            ge=0,
            description="layer of the hidden states, 0 for the input embeddings; null: the base's middle layer or the "
            "encoder's last",
        )

    @classmethod
    def search_space(cls, config: Any) -> SearchSpace:
        """The number of documents."""
        return {"k": (1, 2, 3, 5)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.encoder, self.tokenizer = lm.model.base_model, None
        if self.config.encoder is not None:
            self.encoder, self.tokenizer = _load(self.config.encoder, lm)
        layers: int = self.encoder.config.num_hidden_layers
        default_layer = layers // 2 if self.tokenizer is None else layers
        self.layer = default_layer if self.config.layer is None else self.config.layer
        if self.layer > layers:
            raise BenchError(f"The encoder has no layer {self.layer}. Set dense_retrieval.layer to at most {layers}.")
        self.embeddings: Tensor
        self.register("embeddings", torch.zeros(0, self.encoder.config.hidden_size, device=lm.device))

    def observe(self, document: Document) -> None:
        """Store the document and its embedding."""
        super().observe(document)
        self.embeddings = torch.cat([self.embeddings, self.embed([document.text])])

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The documents with the highest cosine similarity."""
        cosines = self.embed([question.text for question in questions]) @ self.embeddings.T
        return [best(row, self.config.k) for row in cosines]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, of norm 1 (0 for a text without tokens): shape (texts, hidden size)."""
        embeddings = []
        for first in range(0, len(texts), BATCH):
            inputs, mask = self._tokenize(texts[first : first + BATCH])
            with self.lm.autocast() if self.tokenizer is None else nullcontext():  # an encoder of its own in float32
                output = self.encoder(**inputs, output_hidden_states=True)
            hidden = output.hidden_states[self.layer].float()  # (B, T, H)
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, H)
            embeddings.append(functional.normalize(mean, dim=-1))
        return torch.cat(embeddings)

    def _tokenize(self, texts: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """The encoder's inputs for a padded batch, and a mask of the tokens to average, both (texts, length).

        The base reads a text after the begin-of-text token, which is not averaged: it is the same for all texts.
        """
        if self.tokenizer is not None:
            options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
            inputs = self.tokenizer(list(texts), split_special_tokens=True, **options).to(self.lm.device)
            return dict(inputs), inputs["attention_mask"]
        lm = self.lm
        begin = torch.tensor([lm.bos_id], device=lm.device)
        rows = [torch.cat([begin, lm.encode(text)])[: lm.window] for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=lm.eos_id)
        lengths = torch.tensor([len(row) for row in rows], device=lm.device)
        mask = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
        averaged = mask.clone()
        averaged[:, 0] = 0
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}, averaged

    def notes(self) -> dict[str, Any]:
        """The layer, and the identity of the encoder."""
        encoder = self.config.encoder
        return {"layer": self.layer, "encoder": None if encoder is None else identity(encoder)}


def _load(folder: Path, lm: BaseModel) -> tuple[Any, Any]:
    try:
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model_and_info: Any = AutoModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        encoder, info = model_and_info
        if encoder.config.is_encoder_decoder:
            raise ValueError(f"{type(encoder).__name__} is an encoder with a decoder")
        if missing := [name for name in info["missing_keys"] if "pooler" not in name]:
            raise ValueError(f"it lacks the weights {missing[0]}")
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No encoder could be read from {folder} ({str(error).splitlines()[0]}). Set dense_retrieval.encoder to a "
            f"folder with config.json, a tokenizer and .safetensors weights, or leave it out to embed with the base."
        ) from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions(encoder) or tokenizer.model_max_length)
    return encoder.to(lm.device).eval(), tokenizer
