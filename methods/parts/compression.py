"""Compressed memories: soft tokens that compress a text, and questions that attend to the memories of several texts.

(After CMT, Li et al. 2025. Where public sources leave a part open, or this project differs, a setting selects.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.lm.base_model import BaseModel
from methods.parts.adapters import target_modules
from methods.parts.cross_attention import Aggregator, AlignmentHead, CrossBlock, PrefixHead
from methods.parts.hooked_lora import HookedLora, Target
from methods.parts.memory_bank import BankTraining, Prefix


class CompressionTraining(BankTraining):
    """Architecture and training of compressor and aggregator; every default is a choice made here, not the paper's."""

    body: Literal["xattn", "decoder"] = pydantic.Field(
        default="xattn",
        description="compressor: cross-attention from the soft tokens to the text's embeddings, or the frozen base "
        "with low-rank adapters, which reads the soft tokens after the text",
    )
    memory_tokens: int = pydantic.Field(default=12, ge=1, description="m, soft tokens, hence rows per memory")
    compressor_blocks: int = pydantic.Field(default=4, ge=1, description="blocks of the body xattn")
    rank: int = pydantic.Field(default=16, ge=1, description="rank of the adapters of the body decoder")
    alpha: float = pydantic.Field(default=32, gt=0, description="the adapters' output is scaled by alpha / rank")
    aggregator_blocks: int = pydantic.Field(default=4, ge=1, description="cross-attention blocks over the memories")
    heads: int = pydantic.Field(default=8, ge=1, description="attention heads of each block")
    head_width: int = pydantic.Field(default=96, ge=1, description="width of each attention head")
    hidden: int = pydantic.Field(default=768, ge=1, description="inner width of the feed-forward nets")
    injection: Literal["embed", "kv"] = pydantic.Field(
        default="embed", description="input to the base: m soft tokens, or key/value prefixes of each layer"
    )
    prefix_positions: int | None = pydantic.Field(
        default=2,
        ge=1,
        description="positions of the prefixes of injection=kv, each filled from one vector by a net of its own; null: "
        "every vector makes one position of every layer (an alignment network)",
    )
    match_use: Literal["weight", "filter"] = pydantic.Field(
        default="weight",
        description="self-matching weights a document's rows (score / temperature is added to the attention logits), "
        "or only selects the documents",
    )
    temperature: float = pydantic.Field(default=0.05, gt=0, description="tau, temperature of the matching scores")
    k: int | None = pydantic.Field(
        default=16, ge=1, description="documents aggregated for a question while training; null: all"
    )
    force_gold: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="initial probability that a question's own document is put among them; falls linearly to 0",
    )
    queue: int = pydantic.Field(
        default=64,
        ge=0,
        description="memories of earlier steps that stay in the bank as distractors, without gradient; those of "
        "documents of the present step do not count",
    )
    questions_per_document: int = pydantic.Field(
        default=1, ge=1, description="most questions per document and step, drawn at random"
    )
    rename: bool = pydantic.Field(
        default=False,
        description="in each step, give tokens that a question shares with its own document alone a new random "
        "embedding, so that names can be matched but not memorised (body xattn)",
    )
    memory_aware_use: Literal["add", "replace"] = pydantic.Field(
        default="add",
        description="the memory-aware loss, the NLL of the contrast (1 + a) with memory - a without, in logits, is "
        "added to the answer NLL, or takes its place",
    )
    memory_aware_weight: float = pydantic.Field(
        default=0.5, ge=0, description="lambda_ma, weight of the memory-aware loss; 0: off, the answer NLL alone"
    )
    contrast: float = pydantic.Field(default=0.5, ge=0, description="a of the contrast")
    matching: Literal["infonce", "self_matching"] = pydantic.Field(
        default="infonce",
        description="the loss on questions and their documents: InfoNCE of the scores, or attraction of the two and "
        "repulsion of the documents",
    )
    matching_weight: float = pydantic.Field(
        default=0.0, ge=0, description="lambda_m, weight of the matching loss; 0: off"
    )
    repulsion: float = pydantic.Field(default=1.0, ge=0, description="lambda of self_matching, weight of the repulsion")
    steps: int = pydantic.Field(default=5000, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=64, ge=1, description="B, documents per step")
    warmup: int = pydantic.Field(default=50, ge=0, description="outer steps in which the rate rises to learning_rate")
    clip_norm: float | None = pydantic.Field(default=100, gt=0, description="largest outer gradient norm; null: any")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rename and self.body != "xattn":
            raise ValueError("rename needs body xattn")
        return self


class CrossCompressor(nn.Module):
    """Soft tokens that attend to the text's embeddings and then to each other, block by block.

    The embeddings have no positions, so this body reads a text as a bag of tokens.
    """

    def __init__(self, lm: BaseModel, training: CompressionTraining) -> None:
        super().__init__()
        width = lm.model.get_input_embeddings().embedding_dim
        self.soft_tokens = nn.Parameter(torch.randn(training.memory_tokens, width))
        reads, mixes = (
            [
                CrossBlock(width, training.heads, training.head_width, training.hidden)
                for _ in range(training.compressor_blocks)
            ]
            for _ in range(2)
        )
        for mix in mixes:
            nn.init.zeros_(mix.out.weight)  # otherwise all soft tokens would be alike at the start
        self.reads, self.mixes = nn.ModuleList(reads), nn.ModuleList(mixes)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and mask (B, tokens) -> memories (B, m, width); ``embed`` gives the tokens' embeddings."""
        states = embed(ids).float()  # (B, tokens, width)
        bias = torch.zeros_like(mask, dtype=states.dtype).masked_fill(mask == 0, -math.inf)[:, None, None]
        memory = self.soft_tokens.expand(len(ids), -1, -1)  # (B, m, width)
        for read, mix in zip(self.reads, self.mixes, strict=True):
            memory = read(memory, states, bias)  # bias (B, 1, 1, tokens)
            memory = mix(memory, memory)
        return memory


class DecoderCompressor(nn.Module):
    """The frozen base with low-rank adapters on its attention: the last hidden states of soft tokens after the text.

    The adapters are attached only while this module reads.
    """

    def __init__(self, lm: BaseModel, training: CompressionTraining) -> None:
        super().__init__()
        self.lm = (lm,)  # in a tuple: the base is not part of the learner
        table = lm.model.get_input_embeddings().weight  # (vocabulary, width)
        self.soft_tokens = nn.Parameter(
            torch.randn(training.memory_tokens, table.shape[1]) * table.float().std().item()
        )
        targets = [Target(lm.model.get_submodule(name)) for name in target_modules(lm.model, "attention")]
        self.lora = HookedLora(targets, training.rank, training.alpha)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and mask (B, tokens) -> memories (B, m, width); ``embed`` gives the tokens' embeddings."""
        lm, length = self.lm[0], len(self.soft_tokens)
        embedded = embed(ids)  # (B, tokens, width)
        soft_tokens = self.soft_tokens.to(embedded.dtype).expand(len(ids), -1, -1)  # (B, m, width)
        mask = functional.pad(mask, (0, length), value=1)  # (B, tokens + m)
        with self.lora.attached(), lm.autocast():
            states: Tensor = lm.model.base_model(
                inputs_embeds=torch.cat([embedded, soft_tokens], 1),
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state  # (B, tokens + m, width)
        return states[:, -length:].float()


class CmtNetwork(nn.Module):
    """The learner: compressor, aggregator, the map into the base, and the queue of earlier memories."""

    queue: Tensor
    """(queue size, m, width), the newest memory first."""
    queue_owners: Tensor
    """(queue size,), the number of each memory's document, which is not negative; -1 for a place that is not filled."""

    def __init__(self, lm: BaseModel, training: CompressionTraining) -> None:
        super().__init__()
        table = lm.model.get_input_embeddings().weight  # (vocabulary, width)
        width, tokens = table.shape[1], training.memory_tokens
        self.compressor = (CrossCompressor if training.body == "xattn" else DecoderCompressor)(lm, training)
        self.aggregator = Aggregator(
            training.aggregator_blocks, width, training.heads, training.head_width, training.hidden
        )
        self.norm = nn.LayerNorm(width)
        self.inject: nn.Module
        if training.injection == "embed":
            projection = nn.Linear(width, width)
            nn.init.eye_(projection.weight)  # like the attention, it passes vectors on unchanged at the start
            nn.init.zeros_(projection.bias)
            self.inject = projection
            self.scale = nn.Parameter(table.detach().float().std().cpu())  # soft tokens as large as embeddings
        elif training.prefix_positions is None:
            self.inject = AlignmentHead(lm.key_value_shape, width, training.hidden)
        else:
            self.inject = PrefixHead(lm.key_value_shape, tokens, width, training.hidden, training.prefix_positions)
        self.register_buffer("queue", torch.zeros(training.queue, tokens, width), persistent=False)
        self.register_buffer("queue_owners", torch.full((training.queue,), -1), persistent=False)

    def distractors(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Queued memories of other documents than the ``owners``, (memories, m, width), and their owners, (memories,).

        The newest are first; they have no gradient.
        """
        others = (self.queue_owners >= 0) & ~torch.isin(self.queue_owners, owners)
        return self.queue[others], self.queue_owners[others]

    def enqueue(self, memories: Tensor, owners: Tensor) -> None:
        """Put memories (N, m, width) of documents (N,), int64, at the head of the queue; the oldest are dropped."""
        size = len(self.queue)
        self.queue = torch.cat([memories.detach(), self.queue])[:size]
        self.queue_owners = torch.cat([owners, self.queue_owners])[:size]

    def aggregate(self, questions: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """What questions (B, m, width) read in rows (B or 1, R, width): (B, m, width)."""
        vectors: Tensor = self.norm(self.aggregator(questions, rows, bias))
        return vectors

    def prefix(self, vectors: Tensor) -> Prefix:
        """The prefixes of questions from what they have read, (B, m, width)."""
        if isinstance(self.inject, nn.Linear):
            return Prefix(embeddings=self.inject(vectors) * self.scale)
        return Prefix(key_values=self.inject(vectors))


def mean_directions(memories: Tensor) -> Tensor:
    """The mean row of each memory at length 1: (N, m, width) -> (N, width)."""
    return functional.normalize(memories.mean(1), dim=-1)


def matching_scores(questions: Tensor, memories: Tensor) -> Tensor:
    """Self-matching: cosines of mean rows, questions (B, m, width) by memories (N, m, width), shape (B, N)."""
    return mean_directions(questions) @ mean_directions(memories).T


def infonce_loss(scores: Tensor, own: Tensor) -> Tensor:
    """InfoNCE (nats): -log of the softmax mass on a question's own memories; scores and ``own`` (B, N).

    Questions without a memory of their own do not count: the text of their document is empty.
    """
    counted = own.any(1)  # (B,)
    scores, own = scores[counted], own[counted]
    own_mass = scores.masked_fill(~own, -math.inf).logsumexp(1)  # (counted,), unnormalised log mass
    return (scores.logsumexp(1) - own_mass).sum() / max(1, len(scores))


def self_matching_loss(scores: Tensor, memories: Tensor, own: Tensor, repulsion: float) -> Tensor:
    """CMT's loss: the mean over questions of -cos(q_i, M^i) + ``repulsion`` log sum over j of exp(-|M^i - M^j|^2).

    ``scores`` (B, N) are the cosines, ``memories`` (N, width) the vectors M. ``own`` (B, N) is True for entries of a
    question's own document: the loss is averaged over these, and j runs over those of other documents. If there is no
    other document, the sum is left out. Questions without a memory of their own do not count.
    """
    counted = own.any(1)  # (B,)
    scores, weights = scores[counted], own[counted].to(scores.dtype)  # (counted, N)
    losses = -scores
    together = weights.T @ weights > 0  # (N, N), entries of one document
    if not together.all():
        norms = memories.square().sum(1)
        squared = (norms[:, None] + norms - 2 * memories @ memories.T).clamp(min=0)  # (N, N), distances
        losses = losses + repulsion * (-squared).masked_fill(together, -math.inf).logsumexp(1)
    return ((weights * losses).sum(1) / weights.sum(1)).sum() / max(1, len(losses))
