"""Documents, questions and streams: the things that flow through the benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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
    """A piece of a longer document, cut at token boundaries (segments of dynamic evaluation).

    ``token_ids`` are the piece's tokens as the whole document was tokenised (encoding ``text`` alone may differ), and
    ``offsets`` their characters in ``text``; ``context_ids`` are the document's tokens before it, oldest first. A
    character whose bytes fall on both sides of a cut belongs to the later piece.
    """

    token_ids: tuple[int, ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    context_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question as a method sees it: never with its answers."""

    id: str
    text: str


@dataclass(frozen=True)
class EvidencedQuestion(Question):
    """A question together with the document that answers it: given only to controls (``sees_evidence``)."""

    evidence: Document


@dataclass(frozen=True)
class GoldQuestion:
    """A question with its reference answers: stays inside the harness.

    ``revises`` is the id of an earlier question that this one supersedes: once this one's document has been seen,
    the earlier one is no longer asked.
    """

    question: Question
    answers: tuple[str, ...]
    revises: str | None = None


@dataclass(frozen=True)
class Entry:
    """One position of a stream: a document and the questions about it.

    ``facts`` are the character spans of the text that state an asked-about value (analysis only); ``group`` names
    what the document is about (an entity, an article), the unit by which streams are drawn.
    """

    document: Document
    questions: tuple[GoldQuestion, ...] = ()
    facts: tuple[tuple[int, int], ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Episode:
    """What a method may learn from offline (``Method.fit``): a train document, its questions and their answers."""

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


def stream_hash(entries: tuple[Entry, ...]) -> str:
    """SHA-256 (hexadecimal) of everything in the entries that can change a score, in order."""
    digest = hashlib.sha256()
    for entry in entries:
        document = entry.document
        digest.update(repr((document.text, document.title, document.timestamp)).encode())
        for gold in entry.questions:
            digest.update(repr((gold.question.id, gold.question.text, gold.answers, gold.revises)).encode())
    return digest.hexdigest()


def superseded(seen: Iterable[GoldQuestion]) -> set[str]:
    """Ids of the questions that another one among these revises: they are no longer asked."""
    return {gold.revises for gold in seen if gold.revises is not None}


def episodes(entries: Sequence[Entry]) -> list[Episode]:
    """Entries as methods see them offline."""
    return [
        Episode(e.document, tuple(g.question for g in e.questions), tuple(g.answers for g in e.questions))
        for e in entries
    ]
