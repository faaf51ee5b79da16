"""Results as data frames: the rows of a board, and the answers, documents and token weights behind them.

``from bench import load_results`` is the way in; docs/analysis.md shows what to do with the frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import recipe
from bench.data.reader import NO_FILES, split_entries
from bench.records.schema import AnswerEvent, DocumentEvent, RunRecord, TokenEvent
from bench.records.store import read_answers, read_board, read_documents, read_tokens
from reports.rows import Row, final_answers

if TYPE_CHECKING:
    import pandas as pd

    from reports.board import Board

RUN = ("experiment", "dataset", "model", "method", "label", "config", "arm", "stream", "seed", "order", "run")
"""Columns of :attr:`Results.answers`, :attr:`Results.documents` and :attr:`Results.tokens` that name the run.

``label`` is the row of the board; ``config`` is JSON text with sorted keys, the same in :attr:`Results.rows`; ``run``
is the name of the record's folder.
"""
ANSWER = tuple({"answers": "gold", "nll": "answer_nll"}.get(name, name) for name in AnswerEvent.model_fields)
"""The further columns of :attr:`Results.answers`: the fields of an event, two of them under the names of the board."""
DOCUMENT = tuple(DocumentEvent.model_fields)
TOKEN = ("position", "document_id", "token", "piece", "weight", "nll", "class", "pos")
TEXT = ("document_id", "title", "text", "question_id", "question")

Events = Callable[[Path, RunRecord], Iterable[Mapping[str, Any]]]
"""The events of a run, whose record is in a folder."""


@dataclass(frozen=True)
class Results:
    """The results of one experiment, as pandas data frames, each made when it is first used.

    Only the runs behind the scores of the board are in them: those of the streams on which no run of the row failed.
    An experiment on several datasets or base models has the boards of all in them; ``dataset`` and ``model`` tell them
    apart.
    """

    runs: Path
    experiment: str

    @cached_property
    def board(self) -> Board:
        """The board of the experiment. Its rows have the runs' records, with costs and provenance.

        Raises:
            BenchError: a record is missing, unreadable or not comparable with the others.
        """
        from reports.board import build

        return build(self.runs, self.experiment)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row for each row of the board, in its order, with the columns of ``leaderboard.csv``.

        ``<score>_ci95`` is the half-width of the 95 % t interval, ``<score>_se_stream`` and ``<score>_se_doc`` are the
        standard errors. Seconds are per document or per question, or the total of a stream, as the name says.
        """
        import pandas as pd

        from reports.tables import fields

        rows = [{"experiment": board.experiment, **fields(row, board)} for board, row in self._rows()]
        return pd.DataFrame([{**row, "config": _text(row["config"])} for row in rows])

    @cached_property
    def answers(self) -> pd.DataFrame:
        """The answers that the scores of the board are means of: one row for each question of a stream and run.

        Columns: :data:`RUN` and :data:`ANSWER`. ``gold`` is a tuple of texts, empty in published records. ``retrieved``
        is the rank of the question's document among those that the method used, 0 if it is not among them, missing if
        the method names none. ``answer_nll`` is in nats per token. ``probe`` is the last probe of the run.
        """
        return self._frame(lambda runs, record: map(_answer, final_answers(runs, record)), ANSWER)

    @cached_property
    def all_answers(self) -> pd.DataFrame:
        """As :attr:`answers`, at every probe, with the questions on old knowledge (``set == "anchor"``).

        ``probe`` is the fraction of the stream observed so far. The means of the board are not over all of these.
        """
        return self._frame(lambda runs, record: map(_answer, read_answers(runs, record.id)), ANSWER)

    @cached_property
    def documents(self) -> pd.DataFrame:
        """One row for each document that was observed, or each of its segments, in stream order.

        Columns: :data:`RUN` and :data:`DOCUMENT`. ``nll`` is the sum over its tokens, in nats, before any update on
        them; divided by ``tokens`` it is the token NLL.
        """
        return self._frame(lambda runs, record: map(vars, read_documents(runs, record.id)), DOCUMENT)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row for each token, of the methods that weight them; otherwise no row.

        Columns: :data:`RUN` and :data:`TOKEN`. ``token`` counts from 0 within its document, ``class`` is ``fact``,
        ``name`` or ``filler``; ``piece`` (its text) and ``nll`` (nats) are missing in published records.
        """
        return self._frame(lambda runs, record: _tokens(read_tokens(runs, record.id)), TOKEN)

    def texts(self, data_files: Mapping[str, Sequence[str]] = NO_FILES) -> pd.DataFrame:
        """The questions and documents of the streams' split, from the dataset: records hold their ids only.

        Columns: :data:`TEXT`; ``question_id`` and ``question`` are "" for a document without questions. Merge them
        with the answers on ``document_id`` and ``question_id``. ``data_files`` are the files of each split, if the
        experiment was run on other files than those of the dataset.

        Raises:
            BenchError: the dataset cannot be found or read.
        """
        import pandas as pd

        splits: dict[tuple[str, str], None] = {}
        for _, _, record in self._records():
            splits[record.spec.dataset, record.spec.stream.rsplit("-", 2)[0]] = None
            anchor = recipe.find(record.spec.dataset).anchor if record.spec.anchor_hash else None
            if anchor is not None:
                splits[record.spec.dataset, anchor.split] = None
        rows = []
        for entry in (entry for dataset, split in splits for entry in split_entries(dataset, split, data_files)):
            document = (entry.document.id, entry.document.title, entry.document.text)
            questions = [(gold.question.id, gold.question.text) for gold in entry.questions] or [("", "")]
            rows += [(*document, *question) for question in questions]
        return pd.DataFrame(rows, columns=list(TEXT)).drop_duplicates(ignore_index=True)

    def _rows(self) -> Iterator[tuple[Board, Row]]:
        for board in (self.board, *self.board.others):
            yield from ((board, row) for row in board.rows)

    def _records(self) -> Iterator[tuple[Board, Row, RunRecord]]:
        for board, row in self._rows():
            yield from ((board, row, record) for record in row.records)

    def _frame(self, events: Events, columns: Sequence[str]) -> pd.DataFrame:
        import pandas as pd

        rows = []
        for board, row, record in self._records():
            spec = record.spec
            names = (board.experiment, spec.dataset, spec.model, spec.method, row.label, _text(spec.config), spec.arm)
            run = dict(zip(RUN, (*names, spec.stream, spec.seed, spec.order, record.id), strict=True))
            rows += [{**run, **event} for event in events(row.runs, record)]
        return pd.DataFrame(rows, columns=[*RUN, *columns])


def load_results(runs: str | Path = "runs", experiment: str | None = None) -> Results:
    """The results of an experiment under ``runs``, by default of the one run last.

    ``runs`` is the folder of the records of runs, or one with published records (``reports/results/<experiment>``).

    Raises:
        BenchError: there is no such experiment, or its board is damaged.
    """
    return Results(Path(runs), read_board(Path(runs), experiment).experiment)


def _answer(event: AnswerEvent) -> Mapping[str, Any]:
    return dict(zip(ANSWER, vars(event).values(), strict=True))


def _tokens(events: Iterable[TokenEvent]) -> Iterator[Mapping[str, Any]]:
    for event in events:
        for token, columns in enumerate(_columns(event)):
            yield dict(zip(TOKEN, (event.position, event.document_id, token, *columns), strict=True))


def _columns(event: TokenEvent) -> Iterator[tuple[Any, ...]]:
    """Piece, weight, NLL, class and part of speech of each token; None for what the event lacks."""
    missing = [None] * len(event.weights)
    columns = (event.pieces or missing, event.weights, event.nll or missing, event.classes, event.pos or missing)
    return zip(*columns, strict=True)


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), sort_keys=True)
