"""What each token weighs in a method's learning: noted as it learns from the first documents of a stream."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from bench.contract.gradient import GradientMethod
from bench.contract.method import Method
from bench.data.documents import Document, Entry
from bench.data.tagger import load_tagger
from bench.lm.base_model import TokenBatch
from bench.records.schema import TokenClass, TokenEvent

DOCUMENTS = 50
"""Documents of a stream whose tokens are noted, from its first on."""
CLASSES: tuple[TokenClass, ...] = ("filler", "name", "fact")
"""By rank: a token is of the highest class that any of its characters has."""

Span = tuple[int, int]
Tagged = Sequence[tuple[int, int, str]]


class TokenNotes:
    """The weights of one document's tokens, segment by segment.

    What is noted is what :meth:`GradientMethod.token_weights` says while the method observes. It is not asked a second
    time: that could cost as much as learning does, and one that counts or draws would answer differently.
    """

    def __init__(self, position: int, document: Document, entries: Sequence[Entry]) -> None:
        self.position = position
        own = position < min(DOCUMENTS, len(entries)) and entries[position].document.id == document.id
        self.entry = entries[position] if own else None  # a placebo document is nobody's: there is nothing to mark
        self._spans: list[Span] = []
        self._weights: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._read = 0

    @contextmanager
    def observing(self, method: Method, batch: TokenBatch, log_probs: Sequence[Tensor]) -> Iterator[None]:
        """Entered while ``method`` observes the next segment, whose scoring gave ``log_probs`` ([] without scoring)."""
        if self.entry is None or not isinstance(method, GradientMethod):
            yield
            return
        with _overheard(method) as weights:
            yield
        self._spans += [(self._read + start, self._read + end) for start, end in batch.offsets]
        self._weights += weights[:1]  # of the first step
        self._log_probs += log_probs
        self._read += len(batch.document.text)

    def events(self) -> list[TokenEvent]:
        """The document's event, or none: where every token weighs the same, or a segment was not learned from."""
        if self.entry is None or not self._spans or sum(map(len, self._weights)) != len(self._spans):
            return []
        text = self.entry.document.text
        tagged = load_tagger("auto").parts_of_speech(text)
        return [
            TokenEvent(
                position=self.position,
                document_id=self.entry.document.id,
                pieces=pieces(text, self._spans),
                weights=_rounded(torch.cat(self._weights)),
                nll=_rounded(-torch.cat(self._log_probs)) if self._log_probs else None,
                classes=classes(self.entry, self._spans),
                pos=None if tagged is None else parts_of_speech(tagged, text, self._spans),
            )
        ]


def pieces(text: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """The text of each token together with what no token covers before it; a shared character is the first one's."""
    found, done = [], 0
    for _, end in spans:
        found.append(text[done:end])
        done = max(done, end)
    return tuple(found)


def classes(entry: Entry, spans: Sequence[Span]) -> tuple[TokenClass, ...]:
    """The class of each token of the entry's document."""
    text = entry.document.text
    ranks = [0] * len(text)
    names = re.finditer(rf"(?<!\w){re.escape(entry.group)}(?!\w)", text) if entry.group else ()
    for rank, marked in ((1, [name.span() for name in names]), (2, entry.facts)):
        for start, end in marked:
            ranks[start:end] = [rank] * (end - start)
    return tuple(CLASSES[max(ranks[start:end], default=0)] for start, end in spans)


def parts_of_speech(tagged: Tagged, text: str, spans: Sequence[Span]) -> tuple[str, ...]:
    """The tag that most of each token's characters have, the first of several; X (other) where none is tagged."""
    tags = [""] * len(text)
    for start, end, tag in tagged:
        tags[start:end] = [tag] * (end - start)
    counts = (Counter(filter(None, tags[start:end])) for start, end in spans)
    return tuple(count.most_common(1)[0][0] if count else "X" for count in counts)


@contextmanager
def _overheard(method: GradientMethod) -> Iterator[list[Tensor]]:
    """The weights that the method gives tokens while inside, in the order in which it asks itself for them."""
    heard: list[Tensor] = []
    asked = method.token_weights

    def answer(batch: TokenBatch) -> Tensor | None:
        weights = asked(batch)
        if weights is not None:
            heard.append(weights.detach())
        return weights

    own = {name: hook for name, hook in vars(method).items() if name == "token_weights"}
    vars(method)["token_weights"] = answer
    try:
        yield heard
    finally:
        del vars(method)["token_weights"]
        vars(method).update(own)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())
