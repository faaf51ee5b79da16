"""Lengths in tokens: of texts, and of the contexts that an experiment states as arms ``tokens_N``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Annotated, Any, get_args

import pydantic

from bench.data.arms import Arm
from bench.data.documents import Document

TOKENS = "tokens_"
_OF_DOCUMENTS = get_args(Arm)[1].pattern

PlannedArm = Annotated[str, pydantic.StringConstraints(pattern=rf"{_OF_DOCUMENTS}|^{TOKENS}[1-9]\d*$")]
"""An arm, or ``tokens_N``: the one on which a method holds about N tokens when it is asked (:func:`in_documents`)."""


def in_documents(arm: PlannedArm, model: str, streams: Sequence[Sequence[Document]]) -> Arm:
    """The arm itself, or for ``tokens_N`` that of as many documents as make contexts of about N tokens.

    As by Chen et al. 2024, the documents are divided into groups of equal numbers, of which only the last may have
    fewer: round(T / N) groups, at least one, for streams of T tokens on average. Their code takes the ceiling of T / N;
    with few groups the nearest number is nearer to contexts of N tokens. With one document in each the arm is
    ``gold_only``, and with all in one it is ``stream``.
    """
    if not arm.startswith(TOKENS):
        return arm
    tokens = sum(count(model, document) for documents in streams for document in documents) / len(streams)
    documents = max(map(len, streams))
    each = ceil(documents / max(1, round(tokens / int(arm.removeprefix(TOKENS)))))
    return "gold_only" if each <= 1 else "stream" if each >= documents else f"every_{each}"


_counts: dict[tuple[str, str], int] = {}


def count(model: str, document: Document) -> int:
    """Number of tokens of a document for a base, by its name or path; each document is counted once."""
    key = model, document.id
    if key not in _counts:
        encoded = _tokenizer(model)(document.text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        _counts[key] = len(encoded["input_ids"])
    return _counts[key]


@cache
def _tokenizer(model: str) -> Any:
    from bench.lm import checkpoint  # imports torch, which a look at an experiment need not wait for

    return checkpoint.load_tokenizer(checkpoint.locate(model))
