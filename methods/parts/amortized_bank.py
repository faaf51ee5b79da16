"""Memory methods whose rows come from an amortiser: a T5 encoder-decoder with a few learned decoder inputs.

(Tack et al. 2024, Online adaptation of language models with a memory of amortized contexts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5Config, T5Model

from bench.contract.config import MethodConfig
from bench.contract.meta_training import mean_of
from bench.data.documents import Document, Episode
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.lm.probe import Ability
from bench.seeds import seed_for
from methods.parts.cross_attention import Aggregator, AlignmentHead, PrefixHead
from methods.parts.memory_bank import MemoryMethod, Prefix, answer_nll, pad_texts, question_answer_pairs
from methods.parts.text_encoder import (
    FIT_TOKENS,
    AmortizedTraining,
    Amortizer,
    fit_prefix_head,
    init_copying_attention,
    load_t5,
    unit_embeddings,
)

T5_WINDOW = 1022
"""Tokens that a T5 checkpoint reads at a time, including the end token."""


class AmortizedMemory(MemoryMethod):
    """Documents and questions are amortised. The question's vectors attend to the rows of all documents, block by
    block, and become the key/value prefix after which the frozen base answers."""

    class Config(MemoryMethod.Config):
        """Hyper-parameters shared by these methods."""

        preset: Literal["sound", "reference"] = pydantic.Field(
            default="sound", description="the values used here, or those of the authors' code for distilgpt2"
        )
        training: AmortizedTraining = pydantic.Field(
            default=AmortizedTraining(), description="the networks and their training"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "learner"))
            self.networks = self.build().float().to(lm.device).eval()
            self._fit_ids = torch.randperm(len(lm.tokenizer))[:FIT_TOKENS]  # here, where the seed is set
        self.prepare_bank()

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        return ("key_value_prefixes",)

    def build(self) -> nn.Module:
        """Build all networks that are trained."""
        training, width = self.config.training, self.row_shape[1]
        self.projection: nn.Module = nn.Identity()
        if training.width is not None:
            self.projection = nn.Linear(self.embedding_width, width, bias=False)
            nn.init.orthogonal_(self.projection.weight)  # it keeps the angles between embeddings, about
        self.documents = self._amortizer("amortizer")
        self.questions = self.documents if training.shared else self._amortizer("question_encoder")
        self.aggregator = Aggregator(training.blocks, width, training.heads, training.head_width, training.hidden)
        shape, hidden = self.lm.key_value_shape, training.prefix_hidden
        self.prefix: PrefixHead | AlignmentHead
        if training.prefix_positions is None:
            self.prefix = AlignmentHead(shape, width, hidden)
        else:
            self.prefix = PrefixHead(shape, training.tokens, width, hidden, training.prefix_positions)
        nets = self.prefix.nets
        if training.prefix_start != "identity" and nets.skip is None:  # the fit needs a map, the identity so far
            nets.skip = nn.Parameter(torch.eye(width).repeat(len(nets.scale), 1, 1))
        networks = {"documents": self.documents, "aggregator": self.aggregator, "prefix": self.prefix}
        networks |= {} if training.shared else {"questions": self.questions}
        networks |= {} if training.width is None else {"projection": self.projection}
        return nn.ModuleDict(networks)

    def _amortizer(self, setting: str) -> Amortizer:
        """Build the amortizer whose T5 checkpoint, if any, is named by ``training.<setting>``."""
        training, width = self.config.training, self.row_shape[1]
        if (name := training.models()[setting]) is not None:
            return Amortizer(*load_t5(checkpoint.locate(name, f"training.{setting}")), training.tokens, width)
        config = T5Config(
            vocab_size=1,  # a T5 from scratch does not use embeddings of its own
            d_model=width,
            d_kv=max(1, width // training.encoder_heads),
            d_ff=training.encoder_hidden,
            num_layers=training.encoder_layers,
            num_decoder_layers=training.decoder_layers,
            num_heads=training.encoder_heads,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=0,
        )
        body: Any = T5Model(config)
        for block in body.decoder.block:
            init_copying_attention(block.layer[1].EncDecAttention)
        return Amortizer(body, None, training.tokens, width)

    @property
    def learner(self) -> nn.Module:
        """The amortisers, the aggregator and the prefix head."""
        return self.networks

    def begin_training(self) -> None:
        """Fit the prefix head, which takes seconds with a pretrained base, if it starts from the base."""
        if (start := self.config.training.prefix_start) != "identity":
            ids = self._fit_ids.to(self.lm.device)
            fit_prefix_head(self.prefix, self.lm, self.projection, ids, affine=start == "base_affine")

    @property
    def row_shape(self) -> tuple[int, int]:
        """(T, width)."""
        training = self.config.training
        return training.tokens, training.width or self.embedding_width

    @property
    def embedding_width(self) -> int:
        """Width of the base's embeddings, which in some bases is less than that of its hidden states."""
        width: int = self.lm.model.get_input_embeddings().embedding_dim
        return width

    def windows(self, document: Document) -> list[Tensor]:
        """The document's token ids in windows, by the base's tokenizer or that of the amortiser's checkpoint."""
        tokenizer = self.documents.tokenizer
        if tokenizer is None:
            return super().windows(document)
        pieces = self._t5_ids(tokenizer, document.text).split(T5_WINDOW - 1)
        end = torch.tensor([tokenizer.eos_token_id], device=self.lm.device)
        return [torch.cat([piece, end]) for piece in pieces if len(piece)]

    def _t5_ids(self, tokenizer: Any, text: str) -> Tensor:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long, device=self.lm.device)

    def question_ids(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids of the questions, by the base's tokenizer or that of the question encoder, and their mask."""
        tokenizer = self.questions.tokenizer
        if tokenizer is None:
            return super().question_ids(questions)
        end = torch.tensor([tokenizer.eos_token_id], device=self.lm.device)
        return pad_texts([torch.cat([self._t5_ids(tokenizer, text)[: T5_WINDOW - 1], end]) for text in questions])

    def embeddings(self, ids: Tensor) -> Tensor:
        """The base's unit embeddings, projected to the width of the networks."""
        projected: Tensor = self.projection(unit_embeddings(self.lm, ids))
        return projected

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode texts as rows (B, T, width)."""
        rows: Tensor = self.documents(ids, mask, self.embed)
        return rows

    def recall(self, questions: Sequence[str], rows: Tensor) -> Prefix:
        """The key/value prefix of each question."""
        return self.prefixes(self.aggregate(self.queries(questions), rows))

    def prefixes(self, vectors: Tensor) -> Prefix:
        """The prefixes of questions from what they have read, (B, T, width).

        If these were trained to point to embeddings, they get the size of embeddings.
        """
        if self.config.training.align:
            vectors = functional.rms_norm(vectors, vectors.shape[-1:])
        return Prefix(key_values=self.prefix(vectors))

    def queries(self, questions: Sequence[str]) -> Tensor:
        """The questions as vectors (B, T, width)."""
        queries: Tensor = self.questions(*self.question_ids(questions), self.embed)
        return queries

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as questions read them, differentiable and of the same shape, and their codes. Default: the rows."""
        return rows, rows

    def encode_documents(self, documents: Sequence[Document]) -> Tensor:
        """Rows of several documents as questions read them, (entries, T, width)."""
        return self.quantize(super().encode_documents(documents))[0]

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries (B, T, width) after attending to rows (entries, T, width).

        ``bias``, (B or 1, entries * T), is added to the attention logits.
        """
        flat = rows.flatten(0, 1)[None]  # (1, entries * T, width)
        outputs: Tensor = self.aggregator(queries, flat, None if bias is None else bias[:, None, None])
        return outputs

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add the gradient of the answer NLL over the bank of the step's documents, or its mean over several banks."""
        training = self.config.training
        size = training.bank_documents or len(episodes)
        banks = [episodes[i : i + size] for i in range(0, len(episodes), size)]
        self.lm.model.train(training.dropout)
        parts = [self.bank_step(bank, len(banks)) for bank in banks]
        self.lm.model.eval()
        return mean_of(parts)

    def bank_step(self, episodes: Sequence[Episode], banks: int) -> dict[str, float]:
        """Add the gradient of the loss over the bank of these documents, divided by the number of ``banks``.

        It is the answer NLL, the alignment, which can come alone at first, and the terms of ``focus`` and
        :meth:`penalty`. Only the first ``backprop_ratio`` of the documents get gradients and count with their questions
        (backpropagation dropout); the gradients are not rescaled.
        """
        training = self.config.training
        count = max(1, round(training.backprop_ratio * len(episodes)))
        if training.questions_per_document is not None:
            episodes = [_with_some_questions(episode, training.questions_per_document) for episode in episodes]
        renaming: AbstractContextManager[None] = nullcontext()
        windows = [self.windows(episode.document) for episode in episodes]
        if training.rename:
            texts = [(i, question.text) for i, episode in enumerate(episodes) for question in episode.questions]
            renaming = self.renaming(windows, texts)
        with self.lm.frozen(), renaming:
            rows, owners = self.encode_episodes(episodes[:count])  # (entries, T, width), (entries,)
            with torch.no_grad():
                distractors, distractor_owners = self.encode_episodes(episodes[count:])
            bank, codes = self.quantize(torch.cat([rows, distractors]))  # (all entries, T, width), codes of each row
            owners = torch.cat([owners, distractor_owners + count])  # (all entries,)
            questions, answers = zip(*question_answer_pairs(episodes[:count]), strict=True)
            own = torch.tensor(  # (questions,), the document of each question
                [i for i, episode in enumerate(episodes[:count]) for _ in episode.questions], device=owners.device
            )
            queries = self.queries(questions)  # (questions, T, width)
            outputs = self.aggregate(queries, bank, self.curriculum_bias(own, owners, len(episodes)))
            parts = {}
            if self.progress >= training.aligned_first:
                parts["answer_nll"] = answer_nll(self.lm, questions, answers, self.prefixes(outputs)).mean()
            if training.align:
                parts["alignment"] = self.alignment(outputs, questions, answers, windows)
            loss = self.penalty(rows, codes[: len(rows)]) + parts.get("answer_nll", 0.0)
            loss = loss + training.align * parts.get("alignment", 0.0)
            if training.focus:
                answer_queries = self.queries([f" {answer}" for answer in answers])  # (questions, T, width)
                focus_loss = self.focus_loss(queries, answer_queries, bank, owners == own[:, None])
                loss = loss + training.focus * focus_loss
            (loss / banks).backward()
        return {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}

    def focus_loss(self, queries: Tensor, answer_queries: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """Mean -log of the probability that question and answer attend to the same row of the question's document.

        The answer is encoded as a question; each attends as in the first block, averaged over heads and queries.
        ``queries`` and ``answer_queries`` are (questions, T, width), ``bank`` is (entries, T, width); ``own``,
        (questions, entries), is True for the entries of the question's document.
        """
        rows = bank.flatten(0, 1)  # (entries * T, width)
        question, answer = (
            self.aggregator.attention_weights(q, rows).mean((1, 2)) for q in (queries, answer_queries)
        )  # (questions, entries * T)
        joint = (question * answer).unflatten(-1, bank.shape[:2]).sum(-1)  # (questions, entries)
        tiny = torch.finfo(joint.dtype).tiny  # products of small probabilities may underflow
        mean: Tensor = -(joint * own).sum(1).clamp(min=tiny).log().mean()
        return mean

    def penalty(self, rows: Tensor, codes: Tensor) -> Tensor:
        """A term of the training loss, from the rows that get gradients and their codes. Default: 0."""
        return rows.new_zeros(())

    def encode_episodes(self, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
        """Rows of the episodes' documents (entries, T, width), and the index of each entry's episode (entries,)."""
        pieces = [self.windows(episode.document) for episode in episodes]
        owners = [i for i, windows in enumerate(pieces) for _ in windows]
        rows = self.encode_texts([window for windows in pieces for window in windows])
        return rows, torch.tensor(owners, dtype=torch.long, device=self.lm.device)

    def curriculum_bias(self, own: Tensor, owners: Tensor, count: int) -> Tensor | None:
        """Attention bias (questions, entries * T) that hides entries from the questions of a step; None hides nothing.

        ``own`` (questions,) and ``owners`` (entries,) are indices of documents, of which there are ``count``. At first
        a question sees its own document alone, then a number that grows geometrically, counted from its own.
        """
        training = self.config.training
        if self.progress >= training.all_from:
            return None
        growth = (self.progress - training.own_until) / max(1e-9, training.all_from - training.own_until)
        hidden = (owners - own[:, None]) % count >= round(count ** max(0.0, growth))  # (questions, entries)
        bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)
        return bias.repeat_interleave(training.tokens, 1)


def _with_some_questions(episode: Episode, most: int) -> Episode:
    """The episode with at most so many of its questions, drawn at random."""
    chosen = torch.randperm(len(episode.questions))[:most].tolist()
    questions = tuple(episode.questions[i] for i in chosen)
    return replace(episode, questions=questions, answers=tuple(episode.answers[i] for i in chosen))
