"""Memory methods whose rows come from an amortiser: a T5 encoder-decoder with a few learned decoder inputs.

(Tack et al. 2024, Online adaptation of language models with a memory of amortized contexts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model

from bench import models
from bench.aggregation import Aggregator, PrefixHead
from bench.amortizer import Amortizer, checkpoint, hand_on, start_as_tokens, unit_embeddings
from bench.bank import MemoryMethod, Recalled, answer_nll, padded, questions_of
from bench.base_model import BaseModel
from bench.meta import Training
from bench.seeds import seed_for
from bench.settings import MethodConfig
from bench.stream import Document, Episode

WINDOW = 1022
"""Tokens of a T5 checkpoint's own that it reads at a time."""


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
        description="share of a step's documents that get gradients and are asked about; the rest are distractors",
    )
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


class AmortizedMemory(MemoryMethod):
    """Documents and questions are amortised; the question's vectors attend to the rows of all documents, block after
    block, and become the key/value prefix that the frozen base answers behind."""

    class Config(MemoryMethod.Config):
        """Hyper-parameters that all such methods share."""

        training: AmortizedTraining = pydantic.Field(
            default=AmortizedTraining(), description="the networks, and how they are trained"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.config.training.seed, "learner"))
            self.networks = self.build().float().to(lm.device).eval()
            if self.config.training.prefix_start == "base":
                start_as_tokens(self.prefix, lm)
        self.prepare_bank()

    def build(self) -> nn.Module:
        """All that is trained."""
        plan, base = self.config.training, self.lm.model.config
        self.documents = self._amortizer(plan.amortizer)
        self.questions = self.documents if plan.shared else self._amortizer(plan.question_encoder)
        self.aggregator = Aggregator(plan.blocks, base.hidden_size, plan.heads, plan.head_width, plan.hidden)
        self.prefix = PrefixHead(base, plan.tokens, base.hidden_size, plan.prefix_hidden, plan.prefix_positions)
        parts = {"documents": self.documents, "aggregator": self.aggregator, "prefix": self.prefix}
        return nn.ModuleDict(parts if plan.shared else {**parts, "questions": self.questions})

    def _amortizer(self, name: str | None) -> Amortizer:
        plan, width = self.config.training, self.lm.model.config.hidden_size
        if name is not None:
            return Amortizer(*checkpoint(models.locate(name)), plan.tokens, width)
        config = T5Config(
            vocab_size=1,  # its own embeddings are not used
            d_model=width,
            d_kv=max(1, width // plan.encoder_heads),
            d_ff=plan.encoder_hidden,
            num_layers=plan.encoder_layers,
            num_decoder_layers=plan.decoder_layers,
            num_heads=plan.encoder_heads,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=0,
        )
        body: Any = T5Model(config)
        for block in body.decoder.block:
            hand_on(block.layer[1].EncDecAttention)
        return Amortizer(body, None, plan.tokens, width)

    @property
    def learner(self) -> nn.Module:
        """The amortisers, the aggregator and the prefix head."""
        return self.networks

    @property
    def row_shape(self) -> tuple[int, int]:
        """(T, hidden size of the base)."""
        return self.config.training.tokens, self.lm.model.config.hidden_size

    def windows(self, document: Document) -> list[Tensor]:
        """Token ids of the base, or of the amortiser's own tokenizer, a window at a time."""
        tokenizer = self.documents.tokenizer
        if tokenizer is None:
            return super().windows(document)
        pieces = self._own(tokenizer, document.text).split(WINDOW - 1)
        end = torch.tensor([tokenizer.eos_token_id], device=self.lm.device)
        return [torch.cat([piece, end]) for piece in pieces if len(piece)]

    def _own(self, tokenizer: Any, text: str) -> Tensor:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.lm.device)

    def question_ids(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Padded token ids of the base, or of the question encoder's own tokenizer, and their mask."""
        tokenizer = self.questions.tokenizer
        if tokenizer is None:
            return super().question_ids(questions)
        end = torch.tensor([tokenizer.eos_token_id], device=self.lm.device)
        return padded([torch.cat([self._own(tokenizer, text)[: WINDOW - 1], end]) for text in questions])

    def embeddings(self, ids: Tensor) -> Tensor:
        """The base's unit embeddings."""
        return unit_embeddings(self.lm, ids)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Rows (B, T, hidden size) of texts."""
        rows: Tensor = self.documents(ids, mask, self.embed)
        return rows

    def recall(self, questions: Sequence[str], rows: Tensor) -> Recalled:
        """The prefix of each question."""
        return Recalled(key_values=self.prefix(self.aggregate(self.queries(questions), rows)))

    def queries(self, questions: Sequence[str]) -> Tensor:
        """The questions as T vectors each."""
        made: Tensor = self.questions(*self.question_ids(questions), self.embed)
        return made

    def stored(self, rows: Tensor) -> Tensor:
        """What the bank makes of rows: differentiable, of the same shape."""
        return rows

    def bank_of(self, documents: Sequence[Document]) -> Tensor:
        """Rows of several documents as the bank has them."""
        return self.stored(super().bank_of(documents))

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries (B, T, width) after attending to rows (entries, T, width).

        ``bias``, (B or 1, rows of all entries), is added to the attention's logits.
        """
        read: Tensor = self.aggregator(queries, rows.flatten(0, 1)[None], None if bias is None else bias[:, None, None])
        return read

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over the bank of the step's documents.

        Only the first share of them get gradients and are asked about (backpropagation dropout); nothing is rescaled.
        """
        plan = self.config.training
        count = max(1, round(plan.backprop_ratio * len(episodes)))
        said = [(i, question.text) for i, episode in enumerate(episodes) for question in episode.questions]
        named = self.renaming([self.windows(e.document) for e in episodes], said) if plan.rename else nullcontext()
        with self.lm.frozen(), named:
            rows, owners = self.rows_of(episodes[:count])
            with torch.no_grad():
                more, their_owners = self.rows_of(episodes[count:])
            bank, owners = self.stored(torch.cat([rows, more])), torch.cat([owners, their_owners + count])
            asked = questions_of(episodes[:count])
            texts, golds = [question for question, _ in asked], [answer for _, answer in asked]
            own = torch.tensor([i for i, e in enumerate(episodes[:count]) for _ in e.questions], device=owners.device)
            queries = self.queries(texts)
            read = self.aggregate(queries, bank, self.hidden(own, owners, len(episodes)))
            answers = answer_nll(self.lm, texts, golds, Recalled(key_values=self.prefix(read))).mean()
            loss = answers + self.penalty(rows)
            if plan.focus:
                sought = self.queries([f" {answer}" for answer in golds])
                loss = loss + plan.focus * self.distraction(queries, sought, bank, owners == own[:, None])
            loss.backward()
        return {"loss": loss.item(), "answer_nll": answers.item()}

    def distraction(self, queries: Tensor, sought: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """Mean -log of the chance that a question and its answer, read as a question, look at one row of its document.

        Each looks at a row as the first block's attention is spread; ``own``, (questions, entries), are the document's.
        """
        asked, answer = (self.aggregator.spread(q, bank.flatten(0, 1)).mean((1, 2)) for q in (queries, sought))
        chance = (asked * answer).unflatten(-1, bank.shape[:2]).sum(-1)
        mean: Tensor = -(chance * own).sum(1).log().mean()
        return mean

    def penalty(self, rows: Tensor) -> Tensor:
        """What is added to the loss of a training step, for the rows that get gradients."""
        return rows.new_zeros(())

    def rows_of(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
        """Rows of the episodes' documents (entries, T, width), and which episode each entry is of."""
        pieces = [self.windows(episode.document) for episode in episodes]
        owners = [i for i, windows in enumerate(pieces) for _ in windows]
        rows = self.encode_texts([window for windows in pieces for window in windows])
        return rows, torch.tensor(owners, dtype=torch.long, device=self.lm.device)

    def hidden(self, own: Tensor, owners: Tensor, count: int) -> Tensor | None:
        """What hides entries from a step's questions in the attention, (questions, rows of all entries); None: nothing.

        ``own`` and ``owners`` are the documents, of ``count``, of each question and each entry. At first a question
        sees its own alone, then in geometric progression more and more of them, from its own on.
        """
        plan = self.config.training
        if self.progress >= plan.all_from:
            return None
        grown = (self.progress - plan.own_until) / max(1e-9, plan.all_from - plan.own_until)
        far = (owners - own[:, None]) % count >= round(count ** max(0.0, grown))
        bias = torch.zeros(far.shape, device=far.device).masked_fill(far, -torch.inf)
        return bias.repeat_interleave(plan.tokens, 1)
