import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import functional

from bench import BaseModel, Conditioning, Episode, MethodConfig, Question
from bench.seeds import seed_for
from methods.parts.compression import CompressionTraining, Memory, matching, matching_loss
from methods.parts.memory_bank import MemoryMethod, Recalled, answer_logits, mean_nll


class Cmt(MemoryMethod):
    """Keeps each document as a few vectors, picks by self-matching, and puts what they tell as soft prompt (CMT-style).

    A compressor turns a document into m vectors. The same compressor reads a question; documents whose mean vector is
    nearest to the question's (cosine) are kept, the question's vectors attend to theirs, and the outcome stands before
    the question as soft tokens. Compressor and aggregator are meta-trained by the answers' likelihood behind a frozen
    base, with a memory-aware loss that credits what the base would not have answered by itself. Pipeline,
    self-matching, top-k aggregation and the idea of that loss are those of CMT (Li et al. 2025), as its abstract and
    reviews tell them; sizes, formulas and training are choices made here, so no number of it is a reproduction.
    Costs a forward pass of the compressor, and m vectors of state per document.
    """

    name = "cmt"
    paper = "li2025cmt"

    class Config(MemoryMethod.Config):
        """Hyper-parameters of CMT."""

        k: int | None = pydantic.Field(
            default=16, ge=1, description="documents aggregated for a question, the best matches; null: all"
        )
        decode: Literal["plain", "contrastive"] = pydantic.Field(
            default="plain", description="answer from the logits with memory, or from their contrast with those without"
        )
        contrast: float = pydantic.Field(default=0.5, ge=0, description="a of decode=contrastive")
        training: CompressionTraining = pydantic.Field(
            default=CompressionTraining(), description="how compressor and aggregator are trained"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        plan = self.config.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(plan.seed, "learner"))
            self.memory = Memory(lm, plan).float().to(lm.device)
        self.prepare_bank()

    @property
    def learner(self) -> Memory:
        """Compressor and aggregator."""
        return self.memory

    @property
    def row_shape(self) -> tuple[int, int]:
        """(m, hidden size)."""
        rows, width = self.memory.compressor.soft_tokens.shape
        return rows, width

    @property
    def room(self) -> int:
        """The window without the soft tokens, which the body decoder reads behind a text."""
        behind: int = self.config.training.memory_tokens
        return super().room - behind

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the compressor makes of texts: ids and mask (B, tokens) -> (B, m, hidden size)."""
        memories: Tensor = self.memory.compressor(ids, mask, self.embed)
        return memories

    def recall(self, questions: Sequence[str], rows: Tensor) -> Recalled:
        """What the questions' best matches among the memories (N, m, hidden size) tell; N may be 0."""
        asked = self.encode(*self.question_ids(questions))
        scores = matching(asked, rows)
        return self.aggregate(asked, rows, scores, scores, self.config.k)

    def aggregate(self, asked: Tensor, rows: Tensor, scores: Tensor, order: Tensor, k: int | None) -> Recalled:
        """Aggregation over the ``k`` documents of the highest ``order`` for each question; both scores are (B, N).

        The maps to keys and values cost most: of the picked rows alone where the bank is large, else of the whole bank,
        once for all questions, with the other rows hidden.
        """
        plan = self.config.training
        picked = order.topk(min(k or len(rows), len(rows)), dim=1).indices
        bias = scores / plan.temperature if plan.match_use == "weight" else torch.zeros_like(scores)
        if picked.numel() < len(rows):
            read, bias = rows[picked].flatten(1, 2), bias.gather(1, picked)
        else:
            hidden = torch.full_like(bias, -math.inf).scatter(1, picked, 0.0)
            read, bias = rows.flatten(0, 1)[None], bias + hidden
        recalled = self.memory.aggregate(asked, read, bias.repeat_interleave(rows.shape[1], 1)[:, None, None])
        return Recalled(recalled.embeddings, recalled.key_values, picked.tolist())

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """What each question recalls, as its prefix, to be contrasted with nothing at all if so set."""
        given = super().condition(questions)
        return replace(given, contrast=self.config.contrast) if self.config.decode == "contrastive" else given

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """L_qa + lambda_ma L_ma + lambda_m L_match over a bank of the episodes' documents and the queue."""
        plan = self.config.training
        windows = [self.windows(episode.document) for episode in episodes]
        owner = torch.tensor([i for i, pieces in enumerate(windows) for _ in pieces], device=self.lm.device)
        asked = [
            (i, episode.questions[j].text, min(episode.answers[j], key=len))
            for i, episode in enumerate(episodes)
            if windows[i]
            for j in torch.randperm(len(episode.questions))[: plan.questions_per_document].tolist()
        ]
        whose = torch.tensor([i for i, _, _ in asked], device=self.lm.device)
        texts, answers = [text for _, text, _ in asked], [answer for _, _, answer in asked]
        named = self.renaming(windows, [(i, text) for i, text, _ in asked]) if plan.rename else nullcontext()
        with self.lm.frozen(), named:
            fresh = self.encode_texts([piece for pieces in windows for piece in pieces])
            bank = torch.cat([fresh, self.memory.distractors])
            question_rows = self.encode(*self.question_ids(texts))
            scores = matching(question_rows, bank)
            own = functional.pad(whose[:, None] == owner, (0, len(bank) - len(fresh)))
            forced = torch.rand(len(asked), 1, device=own.device) < plan.force_gold * (1 - self.progress)
            order = scores.detach().masked_fill(own & forced, math.inf)
            recalled = self.aggregate(question_rows, bank, scores, order, plan.k)
            logits, targets, counted = answer_logits(self.lm, texts, answers, recalled)
            answer = mean_nll(logits, targets, counted).mean()
            loss, parts = answer, {"answer_nll": answer}
            if plan.memory_aware_weight:
                with torch.no_grad():
                    bare = answer_logits(self.lm, texts, answers, Recalled())[0]
                parts["memory_aware"] = self.memory_aware(logits, bare, targets, counted)
                loss = loss + plan.memory_aware_weight * parts["memory_aware"]
            if plan.matching_weight:
                parts["matching"] = matching_loss(scores / plan.temperature, own)
                loss = loss + plan.matching_weight * parts["matching"]
            loss.backward()
        self.memory.enqueue(fresh)
        return {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}}

    def memory_aware(self, memory: Tensor, bare: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """L_ma (nats) from the logits (B, answer tokens, vocabulary) with memory and without."""
        plan = self.config.training
        if plan.memory_aware == "contrast":
            return mean_nll((1 + plan.contrast) * memory - plan.contrast * bare, targets, counted).mean()
        behind = mean_nll(memory, targets, counted) - mean_nll(bare, targets, counted)
        return functional.softplus(plan.margin_slope * behind).mean()
