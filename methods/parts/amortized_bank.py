"""Memory methods whose rows come from an amortiser: a T5 encoder-decoder with a few learned decoder inputs.

(Tack et al. 2024, Online adaptation of language models with a memory of amortized contexts.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model

from bench.contract.config import MethodConfig
from bench.data.documents import Document, Episode
from bench.lm import checkpoint as models
from bench.lm.base_model import BaseModel
from bench.seeds import seed_for
from methods.parts.cross_attention import Aggregator, PrefixHead
from methods.parts.memory_bank import MemoryMethod, Recalled, answer_nll, padded, questions_of
from methods.parts.text_encoder import (
    AmortizedTraining,
    Amortizer,
    checkpoint,
    hand_on,
    start_as_tokens,
    unit_embeddings,
)

WINDOW = 1022
"""Tokens of a T5 checkpoint's own that it reads at a time."""


class AmortizedMemory(MemoryMethod):
    """Documents and questions are amortised; the question's vectors attend to the rows of all documents, block after
    block, and become the key/value prefix that the frozen base answers behind."""

    class Config(MemoryMethod.Config):
        """Hyper-parameters that all such methods share."""

        preset: Literal["sound", "reference"] = pydantic.Field(
            default="sound", description="the values used here, or those of the authors' code for distilgpt2"
        )
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
        self.documents = self._amortizer("amortizer")
        self.questions = self.documents if plan.shared else self._amortizer("question_encoder")
        self.aggregator = Aggregator(plan.blocks, base.hidden_size, plan.heads, plan.head_width, plan.hidden)
        self.prefix = PrefixHead(base, plan.tokens, base.hidden_size, plan.prefix_hidden, plan.prefix_positions)
        parts = {"documents": self.documents, "aggregator": self.aggregator, "prefix": self.prefix}
        return nn.ModuleDict(parts if plan.shared else {**parts, "questions": self.questions})

    def _amortizer(self, setting: str) -> Amortizer:
        plan, width = self.config.training, self.lm.model.config.hidden_size
        if (name := plan.models()[setting]) is not None:
            return Amortizer(*checkpoint(models.locate(name, f"training.{setting}")), plan.tokens, width)
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

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the bank makes of rows, differentiable and of the same shape; and what it keeps of each entry."""
        return rows, rows

    def bank_of(self, documents: Sequence[Document]) -> Tensor:
        """Rows of several documents as the bank has them."""
        return self.stored(super().bank_of(documents))[0]

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries (B, T, width) after attending to rows (entries, T, width).

        ``bias``, (B or 1, rows of all entries), is added to the attention's logits.
        """
        read: Tensor = self.aggregator(queries, rows.flatten(0, 1)[None], None if bias is None else bias[:, None, None])
        return read

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over the bank of the step's documents, or the mean over its banks."""
        plan = self.config.training
        size = plan.bank_documents or len(episodes)
        banks = [episodes[i : i + size] for i in range(0, len(episodes), size)]
        self.lm.model.train(plan.dropout)
        parts = [self.bank_step(bank, len(banks)) for bank in banks]
        self.lm.model.eval()
        return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}

    def bank_step(self, episodes: Sequence[Episode], banks: int) -> dict[str, float]:
        """Add the gradient of the answer NLL over the bank of these documents, divided by the number of ``banks``.

        Only the first share of them get gradients and are asked about (backpropagation dropout); that is not rescaled.
        """
        plan = self.config.training
        count = max(1, round(plan.backprop_ratio * len(episodes)))
        said = [(i, question.text) for i, episode in enumerate(episodes) for question in episode.questions]
        named = self.renaming([self.windows(e.document) for e in episodes], said) if plan.rename else nullcontext()
        with self.lm.frozen(), named:
            rows, owners = self.rows_of(episodes[:count])
            with torch.no_grad():
                more, their_owners = self.rows_of(episodes[count:])
            bank, kept = self.stored(torch.cat([rows, more]))
            owners = torch.cat([owners, their_owners + count])
            texts, golds = zip(*questions_of(episodes[:count]), strict=True)
            own = torch.tensor([i for i, e in enumerate(episodes[:count]) for _ in e.questions], device=owners.device)
            queries = self.queries(texts)
            read = self.aggregate(queries, bank, self.hidden(own, owners, len(episodes)))
            answers = answer_nll(self.lm, texts, golds, Recalled(key_values=self.prefix(read))).mean()
            loss = answers + self.penalty(rows, kept[: len(rows)])
            if plan.focus:
                sought = self.queries([f" {answer}" for answer in golds])
                loss = loss + plan.focus * self.distraction(queries, sought, bank, owners == own[:, None])
            (loss / banks).backward()
        return {"loss": loss.item(), "answer_nll": answers.item()}

    def distraction(self, queries: Tensor, sought: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """Mean -log of the chance that a question and its answer, read as a question, look at one row of its document.

        Each looks at a row as the first block's attention is spread; ``own``, (questions, entries), are the document's.
        """
        asked, answer = (self.aggregator.spread(q, bank.flatten(0, 1)).mean((1, 2)) for q in (queries, sought))
        chance = (asked * answer).unflatten(-1, bank.shape[:2]).sum(-1)
        tiny = torch.finfo(chance.dtype).tiny  # products of small chances may vanish
        mean: Tensor = -(chance * own).sum(1).clamp(min=tiny).log().mean()
        return mean

    def penalty(self, rows: Tensor, kept: Tensor) -> Tensor:
        """What is added to the loss of a training step, for the rows that get gradients and what is kept of them."""
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
