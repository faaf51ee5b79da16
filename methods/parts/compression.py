"""Compressed memories: soft tokens that take up a text, and questions that read the memories of several texts.

(After Li et al. 2025, CMT, whose description leaves most of it open; what is decided here is a setting where several
ways are sensible.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.contract.meta_training import Training
from bench.lm.base_model import BaseModel
from methods.parts.adapters import target_modules
from methods.parts.cross_attention import Aggregator, CrossBlock, PrefixHead
from methods.parts.hooked_lora import HookedLora, Place
from methods.parts.memory_bank import Recalled


class CompressionTraining(Training):
    """How compressor and aggregator are built and trained; every default is a choice, none the paper's value."""

    body: Literal["xattn", "decoder"] = pydantic.Field(
        default="xattn",
        description="what compresses: cross-attention from the soft tokens to the text's embeddings, or the frozen "
        "base with low-rank adapters, which reads the soft tokens behind the text",
    )
    memory_tokens: int = pydantic.Field(default=12, ge=1, description="m, soft tokens: rows of each memory")
    compressor_blocks: int = pydantic.Field(default=4, ge=1, description="blocks of the body xattn")
    rank: int = pydantic.Field(default=16, ge=1, description="of the adapters of the body decoder")
    alpha: float = pydantic.Field(default=32, gt=0, description="the adapters' output is scaled by alpha / rank")
    aggregator_blocks: int = pydantic.Field(default=4, ge=1, description="cross-attention blocks over the memories")
    heads: int = pydantic.Field(default=8, ge=1, description="attention heads of each block")
    head_width: int = pydantic.Field(default=96, ge=1, description="width of each attention head")
    hidden: int = pydantic.Field(default=768, ge=1, description="inner width of the feed-forward nets")
    injection: Literal["embed", "kv"] = pydantic.Field(
        default="embed", description="what was recalled enters as m soft tokens, or as key/value prefixes of each layer"
    )
    prefix_positions: int = pydantic.Field(default=2, ge=1, description="positions of the prefixes of injection=kv")
    match_use: Literal["weight", "filter"] = pydantic.Field(
        default="weight",
        description="self-matching weighs a document's rows, by score / temperature added to the attention's logits, "
        "or only picks the documents",
    )
    temperature: float = pydantic.Field(default=0.05, gt=0, description="tau, of the matching scores")
    k: int = pydantic.Field(default=16, ge=1, description="documents aggregated for a question while training")
    force_gold: float = pydantic.Field(
        default=0.5,
        ge=0,
        le=1,
        description="probability, at first, that its own document is put among them; falls to 0",
    )
    queue: int = pydantic.Field(
        default=64, ge=0, description="memories of earlier steps that stay in the bank as distractors, without gradient"
    )
    questions_per_document: int = pydantic.Field(default=1, ge=1, description="most questions on each, drawn anew")
    rename: bool = pydantic.Field(
        default=False,
        description="in each step, tokens that a question shares with its own document alone are read as new random "
        "vectors, so that names can be matched but not memorised (body xattn)",
    )
    memory_aware: Literal["contrast", "margin"] = pydantic.Field(
        default="contrast",
        description="the memory-aware loss: the NLL of the contrast (1 + a) with memory - a without, in logits, or "
        "softplus(b (NLL with memory - NLL without))",
    )
    memory_aware_weight: float = pydantic.Field(default=0.5, ge=0, description="lambda_ma, of that loss; 0: off")
    contrast: float = pydantic.Field(default=0.5, ge=0, description="a of the contrast")
    margin_slope: float = pydantic.Field(default=1.0, gt=0, description="b of the margin")
    matching_weight: float = pydantic.Field(
        default=0.0, ge=0, description="lambda_m, of the InfoNCE loss that a question matches its document; 0: off"
    )
    steps: int = pydantic.Field(default=5000, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=64, ge=1, description="B, documents in each")
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

    def __init__(self, lm: BaseModel, plan: CompressionTraining) -> None:
        super().__init__()
        width = lm.model.get_input_embeddings().embedding_dim
        self.soft_tokens = nn.Parameter(torch.randn(plan.memory_tokens, width))
        reads, mixes = (
            [CrossBlock(width, plan.heads, plan.head_width, plan.hidden) for _ in range(plan.compressor_blocks)]
            for _ in range(2)
        )
        for mix in mixes:
            nn.init.zeros_(mix.out.weight)  # else all soft tokens would be alike at the start
        self.reads, self.mixes = nn.ModuleList(reads), nn.ModuleList(mixes)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and mask (B, tokens) -> memories (B, m, width); ``embed`` gives the tokens' embeddings."""
        states = embed(ids).float()
        bias = torch.zeros_like(mask, dtype=states.dtype).masked_fill(mask == 0, -math.inf)[:, None, None]
        memory = self.soft_tokens.expand(len(ids), -1, -1)
        for read, mix in zip(self.reads, self.mixes, strict=True):
            memory = read(memory, states, bias)
            memory = mix(memory, memory)
        return memory


class DecoderCompressor(nn.Module):
    """The frozen base with low-rank adapters beside its attention: the last states of soft tokens behind the text.

    The adapters are in the base only while this reads.
    """

    def __init__(self, lm: BaseModel, plan: CompressionTraining) -> None:
        super().__init__()
        self.lm = (lm,)  # in a tuple: the base is no part of the learner
        table = lm.model.get_input_embeddings().weight
        self.soft_tokens = nn.Parameter(torch.randn(plan.memory_tokens, table.shape[1]) * table.float().std().item())
        places = [Place(lm.model.get_submodule(name)) for name in target_modules(lm.model, "attention")]
        self.lora = HookedLora(places, plan.rank, plan.alpha)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and mask (B, tokens) -> memories (B, m, width); ``embed`` gives the tokens' embeddings."""
        lm, length = self.lm[0], len(self.soft_tokens)
        embedded = embed(ids)
        behind = self.soft_tokens.to(embedded.dtype).expand(len(ids), -1, -1)
        wide = functional.pad(mask, (0, length), value=1)
        with self.lora.attached():
            states: Tensor = lm.model.base_model(
                inputs_embeds=torch.cat([embedded, behind], 1),
                attention_mask=wide,
                position_ids=(wide.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state
        return states[:, -length:].float()


class Memory(nn.Module):
    """The learner: compressor, aggregator, the way into the base, and the queue of earlier memories."""

    queue: Tensor
    """(its size, m, width), the newest first; of them ``queued`` are filled."""
    queued: Tensor

    def __init__(self, lm: BaseModel, plan: CompressionTraining) -> None:
        super().__init__()
        table = lm.model.get_input_embeddings().weight
        width = table.shape[1]
        self.compressor = (CrossCompressor if plan.body == "xattn" else DecoderCompressor)(lm, plan)
        self.aggregator = Aggregator(plan.aggregator_blocks, width, plan.heads, plan.head_width, plan.hidden)
        self.norm = nn.LayerNorm(width)
        if plan.injection == "kv":
            self.inject: nn.Module = PrefixHead(
                lm.model.config, plan.memory_tokens, width, plan.hidden, plan.prefix_positions
            )
        else:
            onto = nn.Linear(width, width)  # W
            nn.init.eye_(onto.weight)  # as attention does, pass on what was read
            nn.init.zeros_(onto.bias)
            self.inject = onto
            self.scale = nn.Parameter(table.detach().float().std().cpu())  # soft tokens as large as embeddings
        self.register_buffer("queue", torch.zeros(plan.queue, plan.memory_tokens, width))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))

    @property
    def distractors(self) -> Tensor:
        """Memories in the queue, the newest first, shape (memories, m, width), without gradient."""
        return self.queue[: int(self.queued)]

    def enqueue(self, memories: Tensor) -> None:
        """Put memories at the head of the queue; the oldest fall out."""
        kept = torch.cat([memories.detach(), self.distractors])[: len(self.queue)]
        self.queue = functional.pad(kept, (0, 0, 0, 0, 0, len(self.queue) - len(kept)))
        self.queued = torch.tensor(len(kept), device=self.queued.device)

    def aggregate(self, asked: Tensor, rows: Tensor, bias: Tensor | None = None) -> Recalled:
        """What the base is given: questions (B, m, width) attend to rows (B or 1, R, width)."""
        found = self.norm(self.aggregator(asked, rows, bias))
        if isinstance(self.inject, PrefixHead):
            return Recalled(key_values=self.inject(found))
        return Recalled(embeddings=self.inject(found) * self.scale)


def matching(asked: Tensor, memories: Tensor) -> Tensor:
    """Self-matching: cosines of mean rows, questions (B, m, width) by memories (N, m, width), shape (B, N)."""
    return functional.normalize(asked.mean(1), dim=-1) @ functional.normalize(memories.mean(1), dim=-1).T


def matching_loss(scores: Tensor, own: Tensor) -> Tensor:
    """InfoNCE (nats): -log of the softmax mass on a question's own memories; scores and ``own`` (B, N), N >= 1."""
    mine = scores.masked_fill(~own, -math.inf).logsumexp(1)
    return (scores.logsumexp(1) - mine).mean()
