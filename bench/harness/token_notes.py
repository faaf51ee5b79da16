"""Notes of the weights with which a method learns from each token, and of their gradients, for the first documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from bench.contract.gradient import GradientMethod
from bench.contract.method import Method
from bench.data.documents import Document, Entry
from bench.data.tagger import load_tagger
from bench.lm.base_model import TokenBatch
from bench.lm.precision import in_float64
from bench.records.schema import NOTED_DOCUMENTS, TokenClass, TokenEvent

CLASSES: tuple[TokenClass, ...] = ("filler", "name", "fact")
"""In ascending rank: a token has the highest class among its characters."""

Offsets = tuple[int, int]
TagSpans = Sequence[tuple[int, int, str]]


class TokenNotes:
    """The weights of one document's tokens, segment by segment, and with ``gradients`` the norms of their gradients.

    These are the weights that the method used (:attr:`GradientMethod.last_weights`). They are not computed again: that
    could cost as much as the step, and a method that counts or samples would give other weights.
    """

    def __init__(self, position: int, document: Document, entries: Sequence[Entry], gradients: bool = False) -> None:
        self.position, self.gradients = position, gradients
        noted = position < min(NOTED_DOCUMENTS, len(entries)) and entries[position].document.id == document.id
        self.entry = entries[position] if noted else None  # a placebo document has no facts to mark
        self._spans: list[Offsets] = []
        self._weights: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._characters = 0

    def before(self, method: Method, batch: TokenBatch) -> None:
        """Note the gradients of the segment that ``method`` is about to observe."""
        if self.gradients and self.entry is not None and isinstance(method, GradientMethod):
            self._norms.append(gradient_norms(method, batch))

    def after(self, method: Method, batch: TokenBatch, log_probs: Sequence[Tensor]) -> None:
        """Note the segment that ``method`` has just observed; ``log_probs`` are those of its scoring, [] without it."""
        if self.entry is None or not isinstance(method, GradientMethod):
            return
        self._spans += [(self._characters + start, self._characters + end) for start, end in batch.offsets]
        self._characters += len(batch.document.text)
        self._log_probs += log_probs
        last = method.last_weights
        if last is not None and last.document is batch.document:
            self._weights.append(last.weights)

    def events(self) -> list[TokenEvent]:
        """The document's event; none if all tokens weigh the same or the method did not learn from every segment."""
        if self.entry is None or not self._spans or sum(map(len, self._weights)) != len(self._spans):
            return []
        text = self.entry.document.text
        tags = load_tagger("auto").parts_of_speech(text)
        return [
            TokenEvent(
                position=self.position,
                document_id=self.entry.document.id,
                pieces=pieces(text, self._spans),
                weights=_rounded(torch.cat(self._weights)),
                nll=_rounded(-torch.cat(self._log_probs)) if self._log_probs else None,
                classes=classes(self.entry, self._spans),
                pos=None if tags is None else parts_of_speech(tags, text, self._spans),
                gradient_norms=_rounded(torch.cat(self._norms)) if self._norms else None,
            )
        ]


def gradient_norms(method: GradientMethod, batch: TokenBatch) -> Tensor:
    """Norm of the gradient of each token's -log p in the parameters that learn, shape (tokens,), in float64.

    Takes a backward pass for each token.
    """
    parameters = [parameter for _, parameter in method.learning]
    norms = []
    with torch.enable_grad():
        for log_probs in method.reading.log_probs(method.lm, batch):
            for log_prob in log_probs:
                gradient = torch.autograd.grad(log_prob, parameters, retain_graph=True, allow_unused=True)
                parts = [vector_norm(in_float64(part)) for part in gradient if part is not None]
                norms.append(vector_norm(torch.stack([part.to(parts[0].device) for part in parts])))
    return torch.stack(norms) if norms else torch.zeros(0)


def notes_tagger(kind: type[Method]) -> str:
    """Name of the tagger whose parts of speech are noted for a method's tokens; "" if none are."""
    if not issubclass(kind, GradientMethod) or kind.token_weights is GradientMethod.token_weights:
        return ""
    tagger = load_tagger("auto")
    return tagger.name if tagger.parts_of_speech("") is not None else ""


def pieces(text: str, spans: Sequence[Offsets]) -> tuple[str, ...]:
    """The text of each token with any uncovered text before it. A character of several tokens goes to the first."""
    texts, done = [], 0
    for _, end in spans:
        texts.append(text[done:end])
        done = max(done, end)
    return tuple(texts)


def classes(entry: Entry, spans: Sequence[Offsets]) -> tuple[TokenClass, ...]:
    """The class of each token of the entry's document."""
    text = entry.document.text
    ranks = [0] * len(text)
    names = re.finditer(rf"(?<!\w){re.escape(entry.group)}(?!\w)", text) if entry.group else ()
    for rank, class_spans in ((1, [name.span() for name in names]), (2, entry.facts)):
        for start, end in class_spans:
            ranks[start:end] = [rank] * (end - start)
    return tuple(CLASSES[max(ranks[start:end], default=0)] for start, end in spans)


def parts_of_speech(tag_spans: TagSpans, text: str, spans: Sequence[Offsets]) -> tuple[str, ...]:
    """The most frequent tag among each token's characters, the first of equals; X (other) if none is tagged."""
    tags = [""] * len(text)
    for start, end, tag in tag_spans:
        tags[start:end] = [tag] * (end - start)
    counts = (Counter(filter(None, tags[start:end])) for start, end in spans)
    return tuple(count.most_common(1)[0][0] if count else "X" for count in counts)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())
