"""The network that makes a few vectors of a text: a T5 encoder-decoder with learned decoder inputs; its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, T5Model

from bench.contract.meta_training import Training
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.cross_attention import Heads, PrefixHead

TOKENS = 4096
"""Most tokens of the vocabulary whose keys and values a prefix head may start from."""


REFERENCE: Mapping[str, Any] = {
    "dropout": True,
    "bank_documents": 16,
    "episodes_per_step": 64,
    "clip_norm": 100.0,
    "steps": 31_200,
    "warmup": 312,
    "validate_every": 624,
    "validation_episodes": 5_588,
}
"""How the authors' code trains for distilgpt2, where that is not the default: the steps of 50 epochs of the 39,893 rows
of SQuAD's train split, 1 % of them as warm-up, and after each epoch a validation on the whole validation split."""


class AmortizedTraining(Training):
    """The networks around the frozen base, and how they are trained."""

    amortizer: str | None = pydantic.Field(
        default=None,
        description="T5 checkpoint that reads documents; null: one from scratch, over the base's embeddings",
    )
    question_encoder: str | None = pydantic.Field(default=None, description="the same for questions")
    shared: bool = pydantic.Field(default=False, description="one network reads both documents and questions")
    encoder_layers: int = pydantic.Field(default=6, ge=0, description="encoder layers of a T5 from scratch")
    decoder_layers: int = pydantic.Field(default=6, ge=1, description="decoder layers of a T5 from scratch")
    encoder_heads: int = pydantic.Field(default=8, ge=1, description="attention heads of a T5 from scratch")
    encoder_hidden: int = pydantic.Field(default=2048, ge=1, description="feed-forward width of a T5 from scratch")
    tokens: int = pydantic.Field(default=12, ge=1, description="T, vectors that a document or a question becomes")
    blocks: int = pydantic.Field(default=4, ge=1, description="cross-attention blocks of the aggregator")
    heads: int = pydantic.Field(default=8, ge=1, description="attention heads of the aggregator")
    head_width: int = pydantic.Field(default=96, ge=1, description="width of each of them")
    hidden: int = pydantic.Field(default=768, ge=1, description="feed-forward width of the aggregator")
    prefix_positions: int = pydantic.Field(default=2, ge=1, description="key/value prefix positions per layer")
    prefix_hidden: int = pydantic.Field(default=768, ge=1, description="hidden width of each slot of the prefix head")
    prefix_start: Literal["identity", "base"] = pydantic.Field(
        default="identity",
        description="a slot's net starts as the vector itself, or as the keys and values that the base makes of a "
        "token whose embedding is the vector (fitted by least squares)",
    )
    backprop_ratio: float = pydantic.Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of a bank's documents that get gradients and are asked about; the rest are distractors",
    )
    bank_documents: int | None = pydantic.Field(
        default=None, ge=1, description="documents in each of a step's banks, whose gradients are averaged; null: all"
    )
    dropout: bool = pydantic.Field(default=False, description="dropout in the frozen base while training")
    focus: float = pydantic.Field(
        default=0.0,
        ge=0,
        description="weight of -log of the chance that a question and its answer look at the same row, one of the "
        "question's document, in the first block",
    )
    rename: bool = pydantic.Field(
        default=False,
        description="give tokens that a question shares with its own document alone a new random embedding in each "
        "step, so that names can be matched but not memorised (T5 from scratch only)",
    )
    own_until: float = pydantic.Field(
        default=0.0, ge=0, le=1, description="share of the steps in which a question sees its own document alone"
    )
    all_from: float = pydantic.Field(
        default=0.0, ge=0, le=1, description="share of the steps after which it sees all; in between ever more"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shared and self.amortizer != self.question_encoder:
            raise ValueError("shared needs the same amortizer and question_encoder")
        if self.rename and (self.amortizer or self.question_encoder):
            raise ValueError("rename needs networks from scratch, over the base's embeddings")
        if self.all_from < self.own_until:
            raise ValueError("all_from must not be less than own_until")
        return self

    def models(self) -> dict[str, str | None]:
        """The T5 checkpoints."""
        return {"amortizer": self.amortizer, "question_encoder": self.question_encoder}


class Amortizer(nn.Module):
    """A text as T vectors: a T5 reads it, its decoder has T learned inputs, and each output a residual net of its own.

    A checkpoint embeds its own tokens; a T5 from scratch is given the base's embeddings, each divided by its root mean
    square (names that training never met differ in scale from other words).
    """

    def __init__(self, body: Any, tokenizer: Any, tokens: int, width: int) -> None:
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        size = body.config.d_model
        self.inputs = nn.Parameter(0.02 * torch.randn(tokens, size))
        self.nets = Heads(tokens, size, width, width, torch.tanh)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and their mask (B, tokens) -> (B, T, width); ``embed`` is the base's embedding of tokens."""
        inputs = self.inputs.expand(len(ids), -1, -1)
        given = {"input_ids": ids} if self.tokenizer is not None else {"inputs_embeds": embed(ids)}
        read = self.body(**given, attention_mask=mask, decoder_inputs_embeds=inputs, use_cache=False)
        out: Tensor = self.nets(read.last_hidden_state)
        return out


@torch.no_grad()
def hand_on(attention: Any) -> None:
    """Let a T5's attention start, as the aggregator's, by finding what is alike and handing it on as it is."""
    nn.init.orthogonal_(attention.k.weight)
    nn.init.orthogonal_(attention.v.weight)
    attention.q.weight.copy_(attention.k.weight * attention.key_value_proj_dim**-0.5)
    attention.o.weight.copy_(attention.v.weight.T)


@torch.no_grad()
def unit_embeddings(lm: BaseModel, ids: Tensor) -> Tensor:
    """The base's input embeddings of tokens, each of root mean square 1, in float32."""
    embedded = lm.embeddings(ids).float()
    return functional.rms_norm(embedded, embedded.shape[-1:], eps=1e-8)


@torch.no_grad()
def start_as_tokens(prefix: PrefixHead, lm: BaseModel) -> None:
    """Let the prefix head start as a linear map from unit embeddings to the keys and values of their tokens."""
    layers, _, positions, heads, size = prefix.shape
    ids = torch.randperm(len(lm.tokenizer))[:TOKENS].to(lm.device)
    targets = torch.empty(layers, 2, positions, len(ids), heads * size, device=lm.device)
    for position in range(positions):
        place = torch.full((len(ids), 1), position, device=lm.device)
        cache = lm.model(input_ids=ids[:, None], position_ids=place, use_cache=True).past_key_values
        for layer, kept in enumerate(cache.layers):
            for side, made in enumerate((kept.keys, kept.values)):
                targets[layer, side, position] = made[:, :, 0].flatten(1).float()
    slots = targets.flatten(0, 2)
    embedded = unit_embeddings(lm, ids).expand(len(slots), -1, -1)
    prefix.nets.skip = nn.Parameter(torch.linalg.lstsq(embedded, slots).solution.contiguous())
    prefix.nets.second.zero_()


def checkpoint(folder: Path) -> tuple[Any, Any]:
    """A T5 and its tokenizer.

    Raises:
        BenchError: the folder holds none.
    """
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "t5":
            raise ValueError(f"it holds a model of type {kind}")
        body: Any = T5Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No T5 could be read from {folder} ({str(error).splitlines()[0]}). Give a folder that save_pretrained "
            f"wrote, with config.json, a tokenizer and .safetensors weights, or leave it out."
        ) from None
    return body, tokenizer
