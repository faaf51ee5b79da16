from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from bench import BaseModel, Document, MethodConfig, Question
from bench.errors import BenchError
from bench.lm.checkpoint import identity
from methods.parts.retrieval import RetrievalMethod, best

BATCH = 32
"""Texts that are embedded at a time."""


class DenseRetrieval(RetrievalMethod):
    """The documents whose embeddings point in a question's direction stand before it; nothing is learned.

    An embedding is the mean of a text's hidden states (Reimers and Gurevych 2019), of the base or of an encoder of its
    own, and the cosine ranks the documents. The end of a text that does not fit into the window is left out. Costs a
    forward pass per document and per question, and a longer prompt. The state is the text of all documents with their
    embeddings.
    """

    name = "dense_retrieval"
    paper = "reimers2019sentencebert"
    grid = {"k": (1, 2, 3)}

    class Config(MethodConfig):
        """What embeds, and how many documents are given."""

        k: int = pydantic.Field(default=1, ge=1, description="documents before each question")
        encoder: str | None = pydantic.Field(
            default=None,
            description="folder of an encoder (as sentence-transformers or save_pretrained write it); null is the base",
        )
        layer: int | None = pydantic.Field(
            default=None,
            ge=0,
            description="layer whose hidden states are averaged, 0 for the input embeddings; null is the base's middle "
            "one, an encoder's last",
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.encoder, self.tokenizer = lm.model.base_model, None
        if self.config.encoder is not None:
            self.encoder, self.tokenizer = _load(Path(self.config.encoder), lm)
        sizes = self.encoder.config
        middle = sizes.num_hidden_layers // 2 if self.tokenizer is None else sizes.num_hidden_layers
        self.layer = middle if self.config.layer is None else self.config.layer
        if self.layer > sizes.num_hidden_layers:
            raise BenchError(
                f"There is no layer {self.layer} to embed with. Set dense_retrieval.layer to at most "
                f"{sizes.num_hidden_layers}."
            )
        self.embeddings: Tensor
        self.register("embeddings", torch.zeros(0, sizes.hidden_size, device=lm.device))

    def observe(self, document: Document) -> None:
        """Keep the document and its embedding."""
        super().observe(document)
        self.embeddings = torch.cat([self.embeddings, self.embed([document.text])])

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The documents of the highest cosines."""
        cosines = self.embed([question.text for question in questions]) @ self.embeddings.T
        return [best(row, self.config.k) for row in cosines]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The texts' embeddings, of length 1 (0 for a text without tokens): shape (texts, hidden size)."""
        embedded = []
        for first in range(0, len(texts), BATCH):
            inputs, counted = self._read(texts[first : first + BATCH])
            hidden = self.encoder(**inputs, output_hidden_states=True).hidden_states[self.layer].float()
            mean = (hidden * counted[..., None]).sum(1) / counted.sum(1, keepdim=True).clamp(min=1)
            embedded.append(functional.normalize(mean, dim=-1))
        return torch.cat(embedded)

    def _read(self, texts: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """A padded batch as the encoder takes it, and which of its tokens are averaged.

        The base reads a text behind its begin-of-text token, which is the same for all and does not count.
        """
        if self.tokenizer is not None:
            given = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.lm.device)
            return dict(given), given["attention_mask"]
        lm = self.lm
        begin = torch.tensor([lm.bos_id], device=lm.device)
        rows = [torch.cat([begin, lm.encode(text)])[: lm.window] for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=lm.eos_id)
        lengths = torch.tensor([len(row) for row in rows], device=lm.device)
        mask = (torch.arange(ids.shape[1], device=lm.device) < lengths[:, None]).long()
        counted = mask.clone()
        counted[:, 0] = 0
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}, counted

    def notes(self) -> dict[str, Any]:
        """The layer, and which encoder it was."""
        encoder = self.config.encoder
        return {"layer": self.layer, "encoder": None if encoder is None else identity(Path(encoder))}


def _load(folder: Path, lm: BaseModel) -> tuple[Any, Any]:
    try:
        encoder: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No encoder could be read from {folder} ({str(error).splitlines()[0]}). Set dense_retrieval.encoder to a "
            f"folder with config.json, a tokenizer and .safetensors weights, or leave it out to embed with the base."
        ) from None
    tokenizer.model_max_length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    return encoder.to(lm.device).eval(), tokenizer
