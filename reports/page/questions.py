"""Questions with the answers of every method at every probe, and documents with what their tokens weighed and cost."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bench.records.schema import AnswerEvent, RunRecord, TokenEvent, mean
from bench.records.store import read_answers, read_tokens
from reports.board import Board
from reports.page.texts import Texts, texts
from reports.rows import Row, read_segments, token_nll

Key = tuple[str, str]
"""A stream, and a question or document of it."""


def blocks(board: Board) -> dict[str, Any]:
    """The blocks of data of a board, by name; only those that have content.

    ``questions``, and ``answers``: by row, the columns of each run and probe; ``documents``, and ``tokens``: by the
    place of the row and by document, what the tokens weighed.

    Raises:
        BenchError: the events of a run are missing or damaged.
    """
    found = texts(board.dataset, board.streams[0].rsplit("-", 2)[0])
    answers = {
        record.id: [event for event in read_answers(row.runs, record.id) if event.set == "stream"]
        for row in board.rows
        for record in row.records
    }
    questions: dict[Key, AnswerEvent] = {}
    for row in board.rows:
        for record in row.records:
            for event in answers[record.id]:  # the last one: what was true earlier is complete in it
                questions[record.spec.stream, event.question_id] = event
    places = {key: place for place, key in enumerate(sorted(questions))}
    content: dict[str, Any] = {}
    if questions:
        shares = _shares(board.rows, answers)
        content["questions"] = [
            _question(board, key, questions[key], found, shares.get(key)) for key in sorted(questions)
        ]
        content["answers"] = [
            [_answers(board, record, answers[record.id], places) for record in row.records] for row in board.rows
        ]
    return content | _documents(board, found)


def _shares(rows: Sequence[Row], answers: Mapping[str, Sequence[AnswerEvent]]) -> dict[Key, float]:
    """Mean F1 of each question at the last probe over the rows that compete, each as the mean of its runs."""
    means: dict[Key, list[float]] = defaultdict(list)
    for row in (row for row in rows if row.standing is not None):
        scores: dict[Key, list[float]] = defaultdict(list)
        for record in row.records:
            last = max((event.probe for event in answers[record.id]), default=None)
            for event in answers[record.id]:
                if event.probe == last:
                    scores[record.spec.stream, event.question_id].append(event.f1)
        for key, of in scores.items():
            means[key].append(fmean(of))
    return {key: fmean(of) for key, of in means.items()}


def _question(board: Board, key: Key, event: AnswerEvent, found: Texts, share: float | None) -> dict[str, Any]:
    return {
        "stream": board.streams.index(key[0]),
        "id": event.question_id,
        "text": found.questions.get((event.document_id, event.question_id)),
        "document": event.document_id,
        "date": event.timestamp,
        "gold": list(event.answers),
        "earlier": list(event.earlier),
        "share": None if share is None else round(share, 3),
    }


def _answers(
    board: Board, record: RunRecord, events: Sequence[AnswerEvent], places: Mapping[Key, int]
) -> dict[str, Any]:
    """The answers of a run as columns: the places of the questions, and by name what was answered."""
    stream = record.spec.stream
    return {
        "stream": board.streams.index(stream),
        "seed": record.spec.seed,
        "order": record.spec.order,
        "probes": [
            {"probe": probe, **_columns([(places[stream, event.question_id], event) for event in of])}
            for probe, of in ((p, list(g)) for p, g in itertools.groupby(events, lambda event: event.probe))
        ],
    }


def _columns(events: Sequence[tuple[int, AnswerEvent]]) -> dict[str, list[Any]]:
    """Columns by name; those without any content are left out."""
    columns: dict[str, list[Any]] = {
        "question": [place for place, _ in events],
        "prediction": [event.prediction for _, event in events],
        "f1": [round(event.f1, 3) for _, event in events],
        "nll": [None if event.nll is None else round(event.nll, 2) for _, event in events],
        "retrieved": [event.retrieved for _, event in events],
        "cut": [event.cut_tokens or None for _, event in events],
        "unanswered": [event.unanswered for _, event in events],
        "stale": [event.stale or None for _, event in events],
    }
    return {name: of for name, of in columns.items() if any(value is not None for value in of)}


def _documents(board: Board, found: Texts) -> dict[str, Any]:
    """The documents of the streams: text, NLL on arrival by row, and the weights of the tokens by row."""
    rows = [(place, row) for place, row in enumerate(board.rows) if row.arm == "stream"]
    documents: dict[Key, dict[str, Any]] = {}
    weights: dict[str, dict[str, Any]] = {}
    for place, row in rows:
        losses: dict[Key, list[float]] = defaultdict(list)
        for record in row.records:
            stream = record.spec.stream
            for segments in read_segments(row.runs, record):
                key = (stream, segments[0].document_id)
                document = found.documents.get(key[1])
                documents.setdefault(
                    key,
                    {
                        "stream": board.streams.index(stream),
                        "id": key[1],
                        "date": segments[0].timestamp,
                        "text": document and document.text,
                        "nll": {},
                    },
                )
                if (nll := token_nll(segments)) is not None:
                    losses[key].append(nll)
            for event in read_tokens(row.runs, record.id):
                name = f"{board.streams.index(stream)} {event.document_id}"
                weights.setdefault(str(place), {}).setdefault(name, _tokens(event))  # of the first seed and order
        for key, of in losses.items():
            documents[key]["nll"][place] = round(mean(of) or 0.0, 4)
    content: dict[str, Any] = {"documents": list(documents.values())} if documents else {}
    return content | ({"tokens": weights} if weights else {})


def _tokens(event: TokenEvent) -> dict[str, Any]:
    tokens = {"pieces": list(event.pieces), "weights": list(event.weights), "nll": event.nll and list(event.nll)}
    return {**tokens, "classes": list(event.classes), "pos": event.pos and list(event.pos)}
