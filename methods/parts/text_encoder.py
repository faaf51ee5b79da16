"""Text encoder of the amortised memories: a T5 encoder-decoder with learned decoder inputs; and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, T5Model

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.cross_attention import AlignmentHead, PerPositionNets, PrefixHead
from methods.parts.memory_bank import BankTraining

FIT_TOKENS = 4096
"""Most tokens of the vocabulary that a prefix head is fitted on."""


REFERENCE: Mapping[str, Any] = {
    "dropout": True,
    "bank_documents": 16,
    "questions_per_document": 1,
    "episodes_per_step": 64,
    "clip_norm": 100.0,
    "steps": 31_200,
    "warmup": 312,
    "validate_every": 624,
    "validation_episodes": 5_588,
}
"""Training settings of the authors' code for distilgpt2 that differ from the defaults: the steps of 50 epochs over the
39,893 rows of SQuAD's train split, 1 % of them as warm-up, and a validation on the whole validation split per epoch."""


class AmortizedTraining(BankTraining):
    """Architecture of the networks around the frozen base, and settings of their training."""

    amortizer: str | None = pydantic.Field(
        default=None,
        description="T5 checkpoint that reads documents; null: a T5 from scratch, over the base's embeddings",
    )
    question_encoder: str | None = pydantic.Field(default=None, description="the same for questions")
    shared: bool = pydantic.Field(default=False, description="one network reads both documents and questions")
    width: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="width of the networks and of the vectors, to which a learned projection maps the base's "
        "embeddings; null: the width of the embeddings, without a projection",
    )
    encoder_layers: int = pydantic.Field(default=6, ge=0, description="encoder layers of a T5 from scratch")
    decoder_layers: int = pydantic.Field(default=6, ge=1, description="decoder layers of a T5 from scratch")
    encoder_heads: int = pydantic.Field(default=8, ge=1, description="attention heads of a T5 from scratch")
    encoder_hidden: int = pydantic.Field(default=2048, ge=1, description="feed-forward width of a T5 from scratch")
    tokens: int = pydantic.Field(default=12, ge=1, description="T, vectors per document or question")
    blocks: int = pydantic.Field(default=4, ge=1, description="cross-attention blocks of the aggregator")
    heads: int = pydantic.Field(default=8, ge=1, description="attention heads of the aggregator")
    head_width: int = pydantic.Field(default=96, ge=1, description="width of each of these heads")
    hidden: int = pydantic.Field(default=768, ge=1, description="feed-forward width of the aggregator")
    prefix_positions: int | None = pydantic.Field(
        default=2,
        ge=1,
        description="key/value prefix positions per layer, each filled from one vector by a net of its own; null: "
        "every vector makes one position of every layer",
    )
    prefix_hidden: int = pydantic.Field(default=768, ge=1, description="hidden width of each of these nets")
    prefix_start: Literal["identity", "base", "base_affine"] = pydantic.Field(
        default="identity",
        description="initial prefix head: each slot is the vector itself (identity), or the base's keys and values of "
        "a token whose embedding is the vector (fitted by least squares; base: as the only token, base_affine: after "
        "the begin token and with an intercept: a pretrained base keeps much the same of the first token of any text)",
    )
    backprop_ratio: float = pydantic.Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of a bank's documents that get gradients and whose questions count; the rest are "
        "distractors",
    )
    bank_documents: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="documents per bank; gradients are averaged over the banks of a step; null: one bank per step",
    )
    questions_per_document: int | None = pydantic.Field(
        default=None, ge=1, description="most questions per document and step, drawn at random; null: all"
    )
    dropout: bool = pydantic.Field(default=False, description="dropout in the frozen base while training")
    focus: float = pydantic.Field(
        default=0.0,
        ge=0,
        description="weight of -log of the probability that a question and its answer attend, in the first block, to "
        "the same row of the question's document",
    )
    rename: bool = pydantic.Field(
        default=False,
        description="in each step, give tokens that a question shares with its own document alone a new random "
        "embedding, so that names can be matched but not memorised (T5 from scratch only)",
    )
    own_until: float = pydantic.Field(
        default=0.0, ge=0, le=1, description="share of the steps in which a question sees only its own document"
    )
    all_from: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps after which a question sees all documents; in between their number grows",
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
    """A text as T vectors: a T5 whose decoder has T learned inputs, and a residual net for each of its T outputs.

    A checkpoint embeds the tokens of its own tokenizer. A T5 from scratch reads the base's embeddings, each divided by
    its root mean square: names that the base was not trained on differ in scale from other words.
    """

    def __init__(self, body: Any, tokenizer: Any, tokens: int, width: int) -> None:
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        size = body.config.d_model
        self.inputs = nn.Parameter(0.02 * torch.randn(tokens, size))
        self.nets = PerPositionNets(tokens, size, width, width, torch.tanh)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and mask (B, tokens) -> (B, T, width); ``embed`` gives the base's embeddings of tokens."""
        decoder_inputs = self.inputs.expand(len(ids), -1, -1)  # (B, T, T5 width)
        inputs = {"input_ids": ids} if self.tokenizer is not None else {"inputs_embeds": embed(ids)}
        outputs = self.body(**inputs, attention_mask=mask, decoder_inputs_embeds=decoder_inputs, use_cache=False)
        vectors: Tensor = self.nets(outputs.last_hidden_state)  # (B, T, width)
        return vectors


@torch.no_grad()
def init_copying_attention(attention: Any) -> None:
    """Initialise a T5's attention like the aggregator's: attend to what is most similar, pass it on unchanged."""
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
def fit_prefix_head(
    prefix: PrefixHead | AlignmentHead, lm: BaseModel, project: nn.Module, ids: Tensor, affine: bool
) -> None:
    """Initialise the prefix head as a linear map from unit embeddings to the base's keys and values of their tokens.

    It is fitted on the tokens ``ids`` (tokens,), each as the only token of a text, or with ``affine``, which adds an
    intercept, after the begin token. The embeddings pass through ``project`` first. The head must have a map as its
    residual path.

    The least squares are in float64: in float32 their last bits depend on where in memory the matrices happen to lie.
    """
    positions = prefix.shape[2] if isinstance(prefix, PrefixHead) else 1
    layers, _, *_, heads, size = prefix.shape
    texts = ids[:, None]  # (tokens, 1 or 2)
    if affine:
        texts = functional.pad(texts, (1, 0), value=lm.bos_id)
    targets = torch.empty(layers, 2, positions, len(ids), heads * size, device=lm.device)
    for position in range(positions):
        position_ids = torch.tensor([[0, position + 1] if affine else [position]], device=lm.device)
        cache = lm.model(
            input_ids=texts, position_ids=position_ids.expand(len(ids), -1), use_cache=True
        ).past_key_values
        for layer, layer_cache in enumerate(cache.layers):
            for side, states in enumerate((layer_cache.keys, layer_cache.values)):  # (tokens, heads, 1 or 2, head size)
                targets[layer, side, position] = states[:, :, -1].flatten(1).float()
    slots = targets.flatten(0, 2)  # (slots, tokens, heads * head size)
    embedded = project(unit_embeddings(lm, ids))  # (tokens, width)
    inputs = functional.pad(embedded, (0, 1), value=1) if affine else embedded  # (tokens, inputs)
    inputs = inputs.expand(len(slots), -1, -1)
    solution = torch.linalg.lstsq(inputs.double(), slots.double()).solution  # (slots, inputs, heads * head size)
    if affine:
        prefix.nets.second_bias.copy_(solution[:, -1])
        solution = solution[:, :-1]
    assert prefix.nets.skip is not None
    prefix.nets.skip.copy_(solution)
    prefix.nets.second.zero_()


def load_t5(folder: Path) -> tuple[Any, Any]:
    """Load a T5 and its tokenizer.

    Raises:
        BenchError: there is no T5 in the folder.
    """
    try:
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind != "t5":
            raise ValueError(f"it holds a model of type {kind}")
        loaded: Any = T5Model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        body, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"it lacks the weights {sorted(info['missing_keys'])[0]}")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No T5 could be read from {folder} ({str(error).splitlines()[0]}). Give a folder written by "
            f"save_pretrained, with config.json, a tokenizer and .safetensors weights, or leave the setting out."
        ) from None
    return body, tokenizer
