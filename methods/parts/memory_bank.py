"""What memory-bank methods share: documents kept as a few vectors each, and questions that attend to all of them.

The base model is frozen: what a question recalls reaches it as a prefix (a soft prompt, or keys and values per layer).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from bench.answering.prompt_batch import forward
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.contract.method import Conditioning, packed, unpacked
from bench.data.documents import Document, Episode, Question, document_id
from bench.lm.base_model import BaseModel
from methods.parts.cross_attention import KeyValues

QUESTIONS = 128
"""Questions that recall at a time."""
_KEPT = "method.entries"


@dataclass(frozen=True)
class Recalled:
    """What B questions are given: a soft prompt (B, length, hidden size), or key/value prefixes.

    ``entries[i]`` are the places in the bank that question i's memory is from, best first, where some were picked.
    """

    embeddings: Tensor | None = None
    key_values: KeyValues | None = None
    entries: Sequence[Sequence[int]] | None = None


def padded(rows: Sequence[Tensor], left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids of several texts, with zeros where a text is shorter, and their mask; both (B, longest), int64."""
    width, side = max(len(row) for row in rows), 0 if left else 1
    gaps = [[(width - len(row), 0), (0, width - len(row))][side] for row in rows]
    ids = torch.stack([functional.pad(row, gap) for row, gap in zip(rows, gaps, strict=True)])
    mask = torch.stack([functional.pad(torch.ones_like(row), gap) for row, gap in zip(rows, gaps, strict=True)])
    return ids, mask


def answer_nll(lm: BaseModel, questions: Sequence[str], answers: Sequence[str], recalled: Recalled) -> Tensor:
    """Mean -log p (nats) over the tokens of " " + answer and end of text, for each question; differentiable, (B,).

    The prompt is that of ``bench.answering.prompts``: the prefix, begin of text, the question.
    """
    return mean_nll(*answer_logits(lm, questions, answers, recalled))


def mean_nll(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean -log p (nats) of the tokens that count, (B,), from what :func:`answer_logits` returns."""
    nll = functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    means: Tensor = (nll * counted).sum(1) / counted.sum(1)
    return means


def answer_logits(
    lm: BaseModel, questions: Sequence[str], answers: Sequence[str], recalled: Recalled
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, longest answer, vocabulary) at the answers' tokens, the tokens and which of them count, (B, longest).

    Answers are padded on the left; see :func:`answer_nll`.
    """
    begin, end = (torch.tensor([token], device=lm.device) for token in (lm.bos_id, lm.eos_id))
    endings = [torch.cat([lm.encode(" " + answer), end]) for answer in answers]
    ids, mask = padded(
        [torch.cat([begin, lm.encode(q), a]) for q, a in zip(questions, endings, strict=True)], left=True
    )
    inputs: dict[str, Tensor] = {"input_ids": ids}
    cache: Any = DynamicCache(config=lm.model.config)
    before = 0
    if recalled.key_values is not None:
        before = recalled.key_values[0][0].shape[-2]
        for layer, (keys, values) in enumerate(recalled.key_values):
            cache.update(keys.to(lm.model.dtype), values.to(lm.model.dtype), layer)
        mask = functional.pad(mask, (before, 0), value=1)
    elif recalled.embeddings is not None:
        inputs, mask = _behind(recalled.embeddings, lm.embeddings(ids), mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
    targets, counted = padded(endings, left=True)
    logits = forward(lm, inputs, mask, positions, cache, targets.shape[1] + 1)[:, :-1]
    return logits, targets, counted


def _behind(prefix: Tensor, embedded: Tensor, mask: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Left-padded embeddings with the soft prompt right before each row's first token."""
    length, width = prefix.shape[1], embedded.shape[1]
    mask = functional.pad(mask, (length, 0))
    first = width + length - mask.sum(1)  # of each row's tokens, among the padded columns
    place = torch.arange(length + width, device=mask.device) - (first - length)[:, None]
    soft = (place >= 0) & (place < length)
    wide = functional.pad(embedded, (0, 0, length, 0))
    chosen = prefix.to(wide).gather(1, place.clamp(0, length - 1)[..., None].expand_as(wide))
    return {"inputs_embeds": torch.where(soft[..., None], chosen, wide)}, mask + soft.long()


class MemoryMethod(MetaTrained):
    """A bank of documents, each encoded once as a few rows, that every question recalls from; the base is frozen.

    A document longer than the model's window is several entries, and so are the segments of one that is cut; what was
    seen before (the same text) adds none.
    """

    renamed: tuple[Tensor, Tensor] | None = None
    """Tokens (n,) and the vectors (n, width) that they are read as: inside :meth:`renaming`."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.entries: list[tuple[str, str]] = []
        """(document id, content hash) of every entry, in order of arrival."""
        self._known: set[str] = set()
        self._room = torch.zeros(0)  # what the rows stand in, with room for more

    @abstractmethod
    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts as rows: token ids and mask (B, tokens) -> (B, rows of each, width), differentiable."""

    @abstractmethod
    def recall(self, questions: Sequence[str], rows: Tensor) -> Recalled:
        """What the questions recall from rows (entries, rows of each, width), differentiable; there may be none."""

    @property
    @abstractmethod
    def row_shape(self) -> tuple[int, int]:
        """(rows of each entry, width)."""

    def prepare_bank(self) -> None:
        """Make the bank part of the state; to be called at the end of a subclass's constructor."""
        self.rows: Tensor
        self.register("rows", torch.zeros(0, *self.row_shape, device=self.lm.device))

    @property
    def room(self) -> int:
        """Most tokens of a text that :meth:`encode` reads at a time, the begin-of-text token included."""
        return self.lm.window

    def windows(self, document: Document) -> list[Tensor]:
        """The document's token ids, a window of the model at a time, each behind begin of text; [] for no tokens."""
        batch = self.lm.tokens(document)
        begin = batch.context_ids[:1]
        return [torch.cat([begin, piece]) for piece in batch.token_ids.split(self.room - 1) if len(piece)]

    def encode_texts(self, texts: Sequence[Tensor]) -> Tensor:
        """Rows of token sequences of any lengths, shape (sequences, rows of each, width)."""
        if not texts:
            return torch.zeros(0, *self.row_shape, device=self.lm.device)
        return self.encode(*padded(texts))

    def bank_of(self, documents: Sequence[Document]) -> Tensor:
        """Rows of all windows of several documents, as training needs them: (entries, rows of each, width)."""
        return self.encode_texts([window for document in documents for window in self.windows(document)])

    @contextmanager
    def renaming(self, documents: Sequence[Sequence[Tensor]], asked: Iterable[tuple[int, str]]) -> Iterator[None]:
        """Inside, names are read as new random vectors: tokens that a question shares with its own document alone.

        So they can be matched, but not memorised. ``documents`` are the windows of each, ``asked`` the questions: the
        place of the document and the text.
        """
        held = [{token for window in windows for token in window.tolist()} for windows in documents]
        count = Counter(token for tokens in held for token in tokens)
        said = ((held[i], token) for i, text in asked for token in self.lm.encode(text).tolist())
        names = sorted({token for tokens, token in said if token in tokens and count[token] == 1})
        vectors = torch.randn(len(names), self.row_shape[1], device=self.lm.device)
        self.renamed = torch.tensor(names, dtype=torch.long, device=self.lm.device), vectors
        try:
            yield
        finally:
            self.renamed = None

    def embed(self, ids: Tensor) -> Tensor:
        """What the networks read of tokens, with the names renamed: token ids (B, tokens) -> (B, tokens, width)."""
        embedded = self.embeddings(ids)
        if self.renamed is None:
            return embedded
        tokens, vectors = self.renamed
        same = ids[..., None] == tokens
        return torch.where(same.any(-1, keepdim=True), same.float() @ vectors, embedded)

    def embeddings(self, ids: Tensor) -> Tensor:
        """The same of tokens as they are: the base's input embeddings."""
        return self.lm.embeddings(ids)

    def reset(self) -> None:
        """Empty the bank."""
        super().reset()
        self.entries, self._known = [], set()

    @torch.no_grad()
    def observe(self, document: Document) -> None:
        """Encode the document and add it to the bank, unless the same text is there."""
        content = document_id(document.text)
        if content not in self._known:
            self._known.add(content)
            for window in self.windows(document):
                self.remember(self.encode_texts([window]))
                self.entries.append((document.id, content))

    def remember(self, rows: Tensor) -> None:
        """Add the rows of one entry, shape (1, rows of each, width), to what is kept."""
        count = len(self.rows) + len(rows)
        if self.rows.data_ptr() != self._room.data_ptr() or count > len(self._room):
            self._room = rows.new_empty(2 * count, *rows.shape[1:])  # doubled, so that adding costs the same for all
            self._room[: len(self.rows)] = self.rows
        self._room[len(self.rows) : count] = rows
        self.rows = self._room[:count]

    def kept(self) -> Tensor:
        """The bank that :meth:`recall` reads."""
        return self.rows

    @torch.no_grad()
    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """What each question recalls, as its prefix."""
        bank = self.kept()
        parts = [
            self.recall([question.text for question in questions[first : first + QUESTIONS]], bank)
            for first in range(0, len(questions), QUESTIONS)
        ]
        picked = [entries for part in parts for entries in part.entries or ()]
        return Conditioning(
            prefix_embeddings=[row for p in parts if p.embeddings is not None for row in p.embeddings] or None,
            prefix_key_values=[
                [(keys[i], values[i]) for keys, values in p.key_values]
                for p in parts
                if p.key_values is not None
                for i in range(len(p.key_values[0][0]))
            ]
            or None,
            documents=[list(dict.fromkeys(self.entries[i][0] for i in row)) for row in picked] or None,
        )

    @torch.no_grad()
    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over one bank of all validation documents."""
        bank = torch.cat(
            [self.bank_of([episode.document for episode in episodes[i : i + 16]]) for i in range(0, len(episodes), 16)]
        )
        asked = questions_of(episodes)
        losses = [self.nll(asked[first : first + QUESTIONS], bank) for first in range(0, len(asked), QUESTIONS)]
        return {"loss": torch.cat(losses).mean().item()}

    def nll(self, asked: Sequence[tuple[str, str]], bank: Tensor) -> Tensor:
        """Answer NLL (nats) of (question, answer) pairs over a bank, shape (pairs,), differentiable in the bank."""
        texts, answers = [question for question, _ in asked], [answer for _, answer in asked]
        return answer_nll(self.lm, texts, answers, self.recall(texts, bank))

    def question_ids(self, questions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids of the questions behind the begin-of-text token, cut to the window, and their mask."""
        begin = torch.tensor([self.lm.bos_id], device=self.lm.device)
        return padded([torch.cat([begin, self.lm.encode(text)])[: self.room] for text in questions])

    def state_dict(self) -> dict[str, Tensor]:
        """The entries' documents too."""
        return {**super().state_dict(), _KEPT: packed(self.entries)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the entries over too."""
        super().load_state_dict(state)
        self.entries = [(document, content) for document, content in unpacked(state[_KEPT])]
        self._known = {content for _, content in self.entries}


def questions_of(episodes: Sequence[Episode]) -> list[tuple[str, str]]:
    """All questions of the episodes, each with its shortest answer."""
    return [
        (question.text, min(answers, key=len))
        for episode in episodes
        for question, answers in zip(episode.questions, episode.answers, strict=True)
    ]
