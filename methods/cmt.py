import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Episode, MethodConfig
from bench.answering.metrics import shortest
from bench.contract.search import SearchSpace
from bench.data.documents import document_id
from bench.lm.probe import Ability
from bench.seeds import seed_for
from methods.parts.compression import (
    CmtNetwork,
    CompressionTraining,
    infonce_loss,
    matching_scores,
    mean_directions,
    self_matching_loss,
)
from methods.parts.memory_bank import MemoryMethod, Prefix, answer_logits, answer_tokens, mean_nll


class Cmt(MemoryMethod):
    """Compresses each document into a few vectors; a question reads its best matches as a soft prompt (CMT-style).

    A compressor turns a document into m vectors. The same compressor encodes a question. The documents whose mean
    vectors are nearest to the question's (cosine) are selected, the question's vectors attend to theirs, and the result
    is put before the question as soft tokens. Compressor and aggregator are meta-trained on the likelihood of answers
    under a frozen base, with a memory-aware loss that rewards what the base could not answer without memory. After CMT
    (Li et al. 2025): ``preset: paper`` has the parts that public sources show of it, the default those used here. Sizes
    and training are choices made here, so its numbers reproduce none of the paper's. Costs a forward pass of the
    compressor, and m vectors of state per document.
    """

    name = "cmt"
    paper = "li2025cmt"

    class Config(MemoryMethod.Config):
        """Hyper-parameters of CMT."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "paper": {
                "training": {
                    "body": "decoder",
                    "injection": "kv",
                    "prefix_positions": None,
                    "match_use": "filter",
                    "k": None,
                    "force_gold": 0.0,
                    "queue": 0,
                    "memory_aware_use": "replace",
                    "memory_aware_weight": 1.0,
                    "matching": "self_matching",
                    "matching_weight": 1.0,
                }
            }
        }
        preset: Literal["sound", "paper"] = pydantic.Field(
            default="sound", description="the parts used here, or those that public sources show of the paper"
        )
        k: int | None = pydantic.Field(
            default=16, ge=1, description="documents aggregated for a question, the best matches; null: all"
        )
        training: CompressionTraining = pydantic.Field(
            default=CompressionTraining(), description="compressor, aggregator and their training"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        training = self.config.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "learner"))
            self.network = CmtNetwork(lm, training).float().to(lm.device)
        self.prepare_bank()

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """The number of documents aggregated for a question, and the contrast."""
        return {"k": (1, 2, 4, 8, 16, 32, 64), **super().search_space(config)}

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        by_layers = isinstance(config, cls.Config) and config.training.injection == "kv"
        return "padding", "key_value_prefixes" if by_layers else "soft_prompts"

    @property
    def learner(self) -> CmtNetwork:
        """Compressor and aggregator."""
        return self.network

    @property
    def row_shape(self) -> tuple[int, int]:
        """(m, hidden size)."""
        rows, width = self.network.compressor.soft_tokens.shape
        return rows, width

    @property
    def max_tokens(self) -> int:
        """The model's window without the soft tokens, which the body decoder reads after a text."""
        soft_tokens: int = self.config.training.memory_tokens
        return super().max_tokens - soft_tokens

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compress texts: ids and mask (B, tokens) -> (B, m, hidden size)."""
        memories: Tensor = self.network.compressor(ids, mask, self.embed)
        return memories

    def recall(self, questions: Sequence[str], rows: Tensor) -> Prefix:
        """The prefix of each question from its best matches among the memories (N, m, hidden size); N may be 0."""
        question_rows = self.encode(*self.question_ids(questions))
        scores = matching_scores(question_rows, rows)
        vectors, best = self.aggregate(question_rows, rows, scores, scores, self.config.k)
        return replace(self.network.prefix(vectors), entries=best.tolist())

    def aggregate(
        self, question_rows: Tensor, rows: Tensor, scores: Tensor, order: Tensor, k: int | None
    ) -> tuple[Tensor, Tensor]:
        """Aggregate, for each question (B, m, width), the ``k`` memories (N, m, width) that are highest in ``order``.

        Returns what the questions read, (B, m, width), and the indices of the memories, best first, (B, k). ``scores``
        and ``order`` are (B, N). The maps to keys and values cost most. If the bank is large, they are applied to the
        selected rows only; otherwise once to the whole bank, and the other rows are hidden.
        """
        training = self.config.training
        best = order.topk(min(k or len(rows), len(rows)), dim=1).indices  # (B, k)
        bias = scores / training.temperature if training.match_use == "weight" else torch.zeros_like(scores)  # (B, N)
        if best.numel() < len(rows):
            inputs, bias = rows[best].flatten(1, 2), bias.gather(1, best)  # (B, k * m, width), (B, k)
        else:
            hidden = torch.full_like(bias, -math.inf).scatter(1, best, 0.0)  # (B, N)
            inputs, bias = rows.flatten(0, 1)[None], bias + hidden  # (1, N * m, width), (B, N)
        bias = bias.repeat_interleave(rows.shape[1], 1)[:, None, None]  # (B, 1, 1, k * m or N * m)
        return self.network.aggregate(question_rows, inputs, bias), best

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add the gradient of L_qa + lambda_ma L_ma + lambda_m L_match, or with ``replace`` of that without L_qa.

        The bank consists of the episodes' documents and of those in the queue that are not among them. Equal texts are
        one document.
        """
        training = self.config.training
        windows = [self.windows(episode.document) for episode in episodes]
        documents = torch.tensor([document_number(episode.document.text) for episode in episodes])
        owners = documents.repeat_interleave(torch.tensor([len(pieces) for pieces in windows])).to(self.lm.device)
        questions = [
            (i, episode.questions[j].text, shortest(episode.answers[j]))
            for i, episode in enumerate(episodes)
            for j in torch.randperm(len(episode.questions))[: training.questions_per_document].tolist()
        ]
        own_document = documents[[i for i, _, _ in questions]].to(self.lm.device)  # (B,)
        texts, answers = [text for _, text, _ in questions], [answer for _, _, answer in questions]
        renaming = self.renaming(windows, [(i, text) for i, text, _ in questions]) if training.rename else nullcontext()
        with self.lm.frozen(), renaming:
            fresh = self.encode_texts([piece for pieces in windows for piece in pieces])  # (entries, m, width)
            earlier, earlier_owners = self.network.distractors(owners)
            bank = torch.cat([fresh, earlier])  # (N, m, width)
            question_rows = self.encode(*self.question_ids(texts))  # (B, m, width)
            scores = matching_scores(question_rows, bank)  # (B, N)
            own = own_document[:, None] == torch.cat([owners, earlier_owners])  # (B, N)
            forced = torch.rand(len(questions), 1, device=own.device) < training.force_gold * (1 - self.progress)
            order = scores.detach().masked_fill(own & forced, math.inf)
            vectors, _ = self.aggregate(question_rows, bank, scores, order, training.k)
            loss, parts = self.answer_loss(texts, answers, vectors)
            if training.align:
                parts["alignment"] = self.alignment(vectors, texts, answers, windows)
                loss = loss + training.align * parts["alignment"]
            if training.matching_weight:
                parts["matching"] = self.matching_loss(scores, bank, own)
                loss = loss + training.matching_weight * parts["matching"]
            loss.backward()
        self.network.enqueue(fresh, owners)
        return {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}

    def answer_loss(
        self, questions: Sequence[str], answers: Sequence[str], vectors: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_qa and L_ma (nats) from what the questions read, (B, m, width): their weighted sum, and the two.

        While the alignment is trained alone, the base is not read and there are none.
        """
        training, parts = self.config.training, {}
        if self.progress < training.aligned_first:
            return vectors.new_zeros(()), {}
        prefix = self.network.prefix(vectors)
        prompts, endings = answer_tokens(self.lm, questions, answers, prefix.length)
        logits, targets, answer_mask = answer_logits(self.lm, prompts, endings, prefix)
        loss = parts["answer_nll"] = mean_nll(logits, targets, answer_mask).mean()
        if training.memory_aware_weight:
            with torch.no_grad():
                logits_without = answer_logits(self.lm, prompts, endings, Prefix())[0]
            parts["memory_aware"] = self.memory_aware_loss(logits, logits_without, targets, answer_mask)
            weighted = training.memory_aware_weight * parts["memory_aware"]
            loss = weighted if training.memory_aware_use == "replace" else loss + weighted
        return loss, parts

    def matching_loss(self, scores: Tensor, bank: Tensor, own: Tensor) -> Tensor:
        """L_match from scores (B, N) and bank (N, m, width); ``own`` (B, N) is True for a question's own document."""
        training = self.config.training
        if training.matching == "infonce":
            return infonce_loss(scores / training.temperature, own)
        return self_matching_loss(scores, mean_directions(bank), own, training.repulsion)

    def memory_aware_loss(self, logits: Tensor, logits_without: Tensor, targets: Tensor, answer_mask: Tensor) -> Tensor:
        """L_ma (nats) from the logits (B, answer tokens, vocabulary) with and without memory."""
        a = self.config.training.contrast
        return mean_nll((1 + a) * logits - a * logits_without, targets, answer_mask).mean()


def document_number(text: str) -> int:
    """A number for a text, the same for equal texts: the first 60 bits of its :func:`document_id`, as int64 holds."""
    return int(document_id(text)[:15], 16)
