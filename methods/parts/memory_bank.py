"""The base class of memory-bank methods: documents are kept as a few vectors each, and questions attend to all of them.

The base model is frozen. What a question reads in the bank reaches it as a prefix: a soft prompt, or keys and values.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from bench.answering.metrics import shortest
from bench.answering.prompts import Prompt, answer_ids, make_room_for_answer, question_ids
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, TrainingConfig
from bench.contract.method import Conditioning, packed, unpacked
from bench.contract.search import Range, SearchSpace
from bench.data.documents import Document, Episode, Question, document_id
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.lm.batch import forward
from methods.parts.cross_attention import KeyValues

QUESTION_BATCH = 128
"""Questions that read the bank at a time."""
ALIGNMENT_TEMPERATURE = 0.1
"""Divides the cosines of the alignment."""
_ENTRIES = "method.entries"


@dataclass(frozen=True)
class Prefix:
    """The prefixes of B questions: a soft prompt (B, length, hidden size), or key/value prefixes, or none.

    If entries of the bank were selected, ``entries[i]`` are the indices of those for question i, best first.
    """

    embeddings: Tensor | None = None
    key_values: KeyValues | None = None
    entries: Sequence[Sequence[int]] | None = None

    @property
    def length(self) -> int:
        """Positions that the prefix takes in the model's window."""
        if self.embeddings is not None:
            return self.embeddings.shape[1]
        return self.key_values[0][0].shape[-2] if self.key_values is not None else 0


def pad_texts(texts: Sequence[Tensor], side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
    """Token ids of several texts, padded with zeros, and their mask; both (B, longest), int64."""
    ids = pad_sequence(list(texts), batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True, padding_side=side)
    return ids, mask


def answer_nll(lm: BaseModel, questions: Sequence[str], answers: Sequence[str], prefix: Prefix) -> Tensor:
    """Mean -log p (nats) over the tokens of each question's answer, differentiable, (B,).

    Prompts and answers are those of ``bench.answering.prompts``: prefix, begin of text, question; then
    `` " " + answer`` and end of text. What does not fit into the window is cut as by :func:`answer_tokens`.

    Raises:
        BenchError: as :func:`answer_tokens`.
    """
    prompts, endings = answer_tokens(lm, questions, answers, prefix.length)
    return mean_nll(*answer_logits(lm, prompts, endings, prefix))


def mean_nll(logits: Tensor, targets: Tensor, answer_mask: Tensor) -> Tensor:
    """Mean -log p (nats) of each answer's tokens, (B,), from the values that :func:`answer_logits` returns."""
    nll = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, longest)
    means: Tensor = (nll * answer_mask).sum(1) / answer_mask.sum(1)
    return means


def answer_tokens(
    lm: BaseModel, questions: Sequence[str], answers: Sequence[str], prefix_length: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Token ids of the questions' prompts and of their answers, which fit into the window after a prefix.

    An answer that is too long is cut at its end, and then a prompt where the harness cuts it to score an answer, after
    its head.

    Raises:
        BenchError: the prefix alone fills the window.
    """
    head, room = len(lm.prompt.head), lm.window - prefix_length
    if room <= head:
        raise BenchError(
            f"A prefix of {prefix_length} positions leaves no room for a question in a window of {lm.window} tokens: "
            "make it shorter, or use a base with a larger window."
        )
    endings = [ids[: room - head] for ids in answer_ids(lm, questions, answers)]
    prompts = [Prompt(question_ids(lm, question), head=head) for question in questions]
    fitting = [make_room_for_answer(p, len(ids), room).ids for p, ids in zip(prompts, endings, strict=True)]
    return fitting, endings


def answer_logits(
    lm: BaseModel, prompts: Sequence[Tensor], endings: Sequence[Tensor], prefix: Prefix
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, longest answer, vocabulary) of the answers' tokens; these tokens and their mask, (B, longest answer).

    ``prompts`` and ``endings`` are those of :func:`answer_tokens`. Answers are padded on the left; see
    :func:`answer_nll`.
    """
    if prefix.key_values is not None and len(prompts) > 1 and not lm.abilities.padding_after_prefixes:
        rows = [[(keys[i, None], values[i, None]) for keys, values in prefix.key_values] for i in range(len(prompts))]
        alone = [
            answer_logits(lm, [prompt], [ending], Prefix(key_values=row))
            for prompt, ending, row in zip(prompts, endings, rows, strict=True)
        ]
        logits, targets, answer_mask = (
            pad_sequence([tensor[0] for tensor in tensors], batch_first=True, padding_side="left")
            for tensors in zip(*alone, strict=True)
        )
        return logits, targets, answer_mask
    texts = [torch.cat(pair) for pair in zip(prompts, endings, strict=True)]
    ids, mask = pad_texts(texts, "left")  # (B, longest prompt and answer)
    inputs: dict[str, Tensor] = {"input_ids": ids}
    cache: Any = DynamicCache(config=lm.model.config)
    cached = 0
    if prefix.key_values is not None:
        cached = prefix.length
        for layer, (keys, values) in enumerate(prefix.key_values):
            cache.update(keys.to(lm.model.dtype), values.to(lm.model.dtype), layer)
        mask = functional.pad(mask, (cached, 0), value=1)
    elif prefix.embeddings is not None:
        embedded, mask = _prepend_soft_prompt(prefix.embeddings, lm.embeddings(ids), mask)
        inputs = {"inputs_embeds": embedded}
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, cached:]
    targets, answer_mask = pad_texts(endings, "left")
    logits = forward(lm, inputs, mask, positions, cache, targets.shape[1] + 1)[:, :-1]
    return logits, targets, answer_mask


def _prepend_soft_prompt(prompt: Tensor, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Left-padded embeddings with the soft prompt directly before the first token of each row, and their mask.

    With P positions of the prompt: (B, P, width), (B, L, width), (B, L) -> (B, P + L, width), (B, P + L).
    """
    length, tokens = prompt.shape[1], embedded.shape[1]
    mask = functional.pad(mask, (length, 0))  # (B, P + L)
    first = tokens + length - mask.sum(1)  # (B,), the column of each row's first token
    index = torch.arange(length + tokens, device=mask.device) - (first - length)[:, None]  # (B, P + L), into the prompt
    in_prompt = (index >= 0) & (index < length)  # (B, P + L)
    embedded = functional.pad(embedded, (0, 0, length, 0))  # (B, P + L, width)
    source = index.clamp(0, length - 1)[..., None].expand_as(embedded)  # (B, P + L, width)
    shifted = prompt.to(embedded).gather(1, source)  # (B, P + L, width)
    return torch.where(in_prompt[..., None], shifted, embedded), mask + in_prompt.long()


class BankTraining(TrainingConfig):
    """Training settings shared by these methods."""

    align: float = pydantic.Field(
        default=0.0,
        ge=0,
        description="weight of the alignment, added to the answers' loss: what a question reads in the bank should be, "
        "vector by vector, the embeddings of the answer's tokens",
    )
    aligned_first: float = pydantic.Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the steps, at the start, that train the alignment alone, without the base",
    )

    @pydantic.model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.aligned_first and not self.align:
            raise ValueError("aligned_first needs align")
        return self


class MemoryMethod(MetaTrained):
    """A bank of documents, each encoded once as a few rows; every question attends to it. The base is frozen.

    A document longer than the model's window becomes several entries, and so do the segments of a document. A text that
    is in the bank already adds none.
    """

    class Config(MethodConfig):
        """Hyper-parameters shared by these methods."""

        contrast: float = pydantic.Field(
            default=0.0,
            ge=0,
            description="a: answer from 1 + a times the logits with memory, minus a times those without (context-aware "
            "decoding, Shi et al. 2024); 0: from the logits with memory",
        )

    substitutes: tuple[Tensor, Tensor] | None = None
    """Inside :meth:`renaming`: tokens (n,) and the vectors (n, width) that replace their embeddings."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.entries: list[tuple[str, str]] = []
        """(document id, content hash) of every entry, in order of arrival."""
        self._contents: set[str] = set()
        self._storage = torch.zeros(0)  # the rows are a view of it; it has room for more

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """The contrast."""
        return {"contrast": Range(low=0, high=1)}

    @abstractmethod
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode texts: token ids and mask (B, tokens) -> rows (B, rows per entry, width), differentiable."""

    @abstractmethod
    def recall(self, questions: Sequence[str], rows: Tensor) -> Prefix:
        """The questions' prefixes from rows (N, rows per entry, width), differentiable; N may be 0."""

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, int]:
        """(rows per entry, width)."""

    def prepare_bank(self) -> None:
        """Make the bank part of the state. A subclass calls it at the end of its constructor."""
        self.rows: Tensor
        self.register("rows", torch.zeros(0, *self.row_shape, device=self.lm.device))

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text that :meth:`encode` reads at a time, including the begin-of-text token."""
        return self.lm.window

    def windows(self, document: Document) -> list[Tensor]:
        """The document's token ids in windows, each after one begin-of-text token; [] for a document without tokens."""
        batch = self.lm.tokens(document)
        begin = batch.context_ids[:1]
        return [torch.cat([begin, piece]) for piece in batch.token_ids.split(self.max_tokens - 1) if len(piece)]

    def encode_texts(self, texts: Sequence[Tensor]) -> Tensor:
        """Rows of token sequences of any lengths, (sequences, rows per entry, width)."""
        if not texts:
            return torch.zeros(0, *self.row_shape, device=self.lm.device)
        return self.encode(*pad_texts(texts))

    def encode_documents(self, documents: Sequence[Document]) -> Tensor:
        """Rows of all windows of several documents, as training needs them: (entries, rows per entry, width)."""
        return self.encode_texts([window for document in documents for window in self.windows(document)])

    @contextmanager
    def renaming(self, documents: Sequence[Sequence[Tensor]], questions: Iterable[tuple[int, str]]) -> Iterator[None]:
        """Replace the embeddings of names by new random vectors, so that names can be matched but not memorised.

        Names are the tokens that a question shares with its own document and no other. ``documents`` are the windows
        of each document, ``questions`` pairs of the document's index and the question's text.
        """
        token_sets = [{token for window in windows for token in window.tolist()} for windows in documents]
        count = Counter(token for tokens in token_sets for token in tokens)
        pairs = ((token_sets[i], token) for i, text in questions for token in self.lm.encode(text).tolist())
        names = sorted({token for tokens, token in pairs if token in tokens and count[token] == 1})
        vectors = torch.randn(len(names), self.row_shape[1], device=self.lm.device)
        self.substitutes = torch.tensor(names, dtype=torch.long, device=self.lm.device), vectors
        try:
            yield
        finally:
            self.substitutes = None

    def embed(self, ids: Tensor) -> Tensor:
        """Input of the networks: token ids (B, tokens) -> (B, tokens, width), with names replaced while renaming."""
        embedded = self.embeddings(ids)
        if self.substitutes is None:
            return embedded
        tokens, vectors = self.substitutes  # (n,), (n, width)
        matches = ids[..., None] == tokens  # (B, tokens, n)
        return torch.where(matches.any(-1, keepdim=True), matches.float() @ vectors, embedded)

    def embeddings(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens that are not replaced: by default the base's input embeddings."""
        return self.lm.embeddings(ids)

    def alignment(
        self,
        vectors: Tensor,
        questions: Sequence[str],
        answers: Sequence[str],
        documents: Sequence[Sequence[Tensor]],
    ) -> Tensor:
        """Mean over questions of the -log p (nats) of the answer's tokens by the vectors (B, T, width) that they read.

        The answer's t-th token is predicted from vector t: a softmax of the cosines with the embeddings of all tokens
        of the ``documents``, given as their windows, and of the answers. An answer is cut after T tokens. The base is
        not read: it is left to say the answer that the vectors spell.
        """
        endings = [ids[: vectors.shape[1]] for ids in answer_ids(self.lm, questions, answers)]
        targets, mask = pad_texts(endings)  # (B, longest)
        candidates = torch.unique(torch.cat([*(window for windows in documents for window in windows), *endings]))
        embedded = functional.normalize(self.embed(candidates[None])[0].float(), dim=-1)  # (candidates, width)
        read = functional.normalize(vectors[:, : targets.shape[1]], dim=-1)  # (B, longest, width)
        logits = read @ embedded.T / ALIGNMENT_TEMPERATURE  # (B, longest, candidates)
        return mean_nll(logits, torch.searchsorted(candidates, targets), mask).mean()

    def reset(self) -> None:
        """Empty the bank."""
        super().reset()
        self.entries, self._contents = [], set()

    @torch.no_grad()
    def observe(self, document: Document) -> None:
        """Encode the document and add it to the bank, unless the same text is there."""
        content = document_id(document.text)
        if content not in self._contents:
            self._contents.add(content)
            for window in self.windows(document):
                self.remember(self.encode_texts([window]))
                self.entries.append((document.id, content))

    def remember(self, rows: Tensor) -> None:
        """Add the rows of one entry, (1, rows per entry, width), to the bank."""
        count = len(self.rows) + len(rows)
        if self.rows.data_ptr() != self._storage.data_ptr() or count > len(self._storage):
            self._storage = rows.new_empty(2 * count, *rows.shape[1:])  # doubled: adding takes constant amortised time
            self._storage[: len(self.rows)] = self.rows
        self._storage[len(self.rows) : count] = rows
        self.rows = self._storage[:count]

    @property
    def bank(self) -> Tensor:
        """The bank as :meth:`recall` reads it."""
        return self.rows

    @torch.no_grad()
    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The prefix that each question reads in the bank, and the contrast."""
        bank = self.bank
        prefixes = [
            self.recall([question.text for question in questions[first : first + QUESTION_BATCH]], bank)
            for first in range(0, len(questions), QUESTION_BATCH)
        ]
        selected = [entries for prefix in prefixes for entries in prefix.entries or ()]
        return Conditioning(
            prefix_embeddings=[row for p in prefixes if p.embeddings is not None for row in p.embeddings] or None,
            prefix_key_values=[
                [(keys[i], values[i]) for keys, values in p.key_values]
                for p in prefixes
                if p.key_values is not None
                for i in range(len(p.key_values[0][0]))
            ]
            or None,
            documents=[list(dict.fromkeys(self.entries[i][0] for i in entries)) for entries in selected] or None,
            contrast=self.config.contrast or None,
        )

    @torch.no_grad()
    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over one bank of all validation documents."""
        documents = [episode.document for episode in episodes]
        bank = torch.cat([self.encode_documents(documents[i : i + 16]) for i in range(0, len(documents), 16)])
        pairs = question_answer_pairs(episodes)
        losses = [self.nll(pairs[i : i + QUESTION_BATCH], bank) for i in range(0, len(pairs), QUESTION_BATCH)]
        return {"loss": torch.cat(losses).mean().item()}

    def nll(self, pairs: Sequence[tuple[str, str]], bank: Tensor) -> Tensor:
        """Answer NLL (nats) of (question, answer) pairs over a bank, (pairs,), differentiable in the bank."""
        questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
        return answer_nll(self.lm, questions, answers, self.recall(questions, bank))

    def question_ids(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids of the questions after a begin-of-text token, cut to the window, and their mask; (B, longest)."""
        begin = torch.tensor([self.lm.bos_id], device=self.lm.device)
        return pad_texts([torch.cat([begin, self.lm.encode(text)])[: self.max_tokens] for text in questions])

    def state_dict(self) -> dict[str, Tensor]:
        """State of the base class and the entries of the bank."""
        return {**super().state_dict(), _ENTRIES: packed(self.entries)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state with its entries."""
        super().load_state_dict(state)
        self.entries = [(document, content) for document, content in unpacked(state[_ENTRIES])]
        self._contents = {content for _, content in self.entries}


def question_answer_pairs(episodes: Sequence[Episode]) -> list[tuple[str, str]]:
    """All questions of the episodes, each with its shortest answer."""
    return [
        (question.text, shortest(answers))
        for episode in episodes
        for question, answers in zip(episode.questions, episode.answers, strict=True)
    ]
