"""Documents, questions and streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Document:
    """A document as a method sees it.

    ``id`` is :func:`document_id` of the text, so equal texts are one document. ``timestamp`` is an ISO date or "".
    """

    id: str
    text: str
    title: str = ""
    timestamp: str = ""


@dataclass(frozen=True)
class Segment(Document):
    """A segment of a longer document, cut at token boundaries.

    ``token_ids`` are its tokens in the tokenisation of the whole document, which may differ from that of ``text``.
    ``offsets`` are their (start, end) characters in ``text``. ``context_ids`` are the document's tokens before the
    segment, oldest first. ``last`` is True for the last segment of its document. A character whose bytes lie on both
    sides of a cut belongs to the later segment.
    """

    token_ids: tuple[int, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    context_ids: tuple[int, ...] = ()
    last: bool = True


@dataclass(frozen=True)
class Question:
    """A question as a method sees it, without its answers.

    ``timestamp`` is the ISO date on which it is asked, or "": a fact of the dataset, not that of its document.
    """

    id: str
    text: str
    timestamp: str = ""


@dataclass(frozen=True)
class EvidencedQuestion(Question):
    """A question with the document that answers it. Only controls (``sees_evidence``) receive it."""

    evidence: Document = field(kw_only=True)


@dataclass(frozen=True)
class GoldQuestion:
    """A question with its reference answers. It stays inside the harness.

    ``revises`` is the id of an earlier question that this one supersedes: once the document of this one has been
    observed, the earlier one is no longer asked. ``before`` are the ids of those that the earlier one superseded in
    turn, the latest first; the reader fills it in, so that a stream may lack a document in between.
    """

    question: Question
    answers: tuple[str, ...]
    revises: str | None = None
    before: tuple[str, ...] = ()

    @property
    def supersedes(self) -> tuple[str, ...]:
        """Ids of all earlier questions on the same fact, the latest first."""
        return () if self.revises is None else (self.revises, *self.before)


@dataclass(frozen=True)
class Entry:
    """One position of a stream: a document and the questions about it.

    ``facts`` are the (start, end) characters of the answers in the text, for analysis only. ``group`` names the
    subject of the document (an entity, an article); streams are drawn by group.
    """

    document: Document
    questions: tuple[GoldQuestion, ...] = ()
    facts: tuple[tuple[int, int], ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Episode:
    """A training example for offline learning (``Method.fit``): a document, its questions and their answers."""

    document: Document
    questions: tuple[Question, ...]
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Stream:
    """A frozen, ordered sample of a split. ``name`` is ``<split>-<n>-<k>``; ``hash`` is :func:`stream_hash`."""

    dataset: str
    name: str
    entries: tuple[Entry, ...]

    @property
    def hash(self) -> str:
        """Hash of the ordered documents, questions and answers."""
        return stream_hash(self.entries)


def document_id(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the text (UTF-8)."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def text_key(text: str) -> str:
    """The same for the text without differences in case and white space, by which copies are found."""
    return document_id(" ".join(text.split()).casefold())


def stream_hash(entries: tuple[Entry, ...]) -> str:
    """SHA-256 (hexadecimal) of everything in the entries that affects a score, in order.

    It is that of their ASCII representation, which does not depend on the Unicode tables of a Python version.
    """
    digest = hashlib.sha256()
    for entry in entries:
        document = entry.document
        digest.update(ascii((document.text, document.title, document.timestamp)).encode())
        for gold in entry.questions:
            digest.update(ascii((gold.question.id, gold.question.text, gold.answers, gold.revises)).encode())
            if gold.question.timestamp:
                digest.update(ascii(gold.question.timestamp).encode())
    return digest.hexdigest()


def superseded(questions: Iterable[GoldQuestion]) -> set[str]:
    """Ids of the questions that another of these questions supersedes. They are no longer asked."""
    return {old for gold in questions for old in gold.supersedes}


def episodes(entries: Sequence[Entry]) -> list[Episode]:
    """The entries as episodes for offline learning."""
    return [
        Episode(e.document, tuple(g.question for g in e.questions), tuple(g.answers for g in e.questions))
        for e in entries
    ]
