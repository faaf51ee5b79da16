"""Token weights by method and their relation to the facts that questions are about, as numbers and a table."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files import write_bytes
from bench.records.schema import TokenClass, TokenEvent, mean
from bench.records.store import read_tokens
from reports.board import Board
from reports.markup import markdown, pipes, spreadsheet
from reports.rows import Row, run_of
from reports.spread import Run
from reports.statistics import Estimate, mean_over_streams, roc_auc, run_items

FILES = ("token_weights.md", "token_weights.csv")
CLASSES: tuple[TokenClass, ...] = ("fact", "name", "filler")


@dataclass(frozen=True)
class RunWeights:
    """Token weights of one run, in order, with the class of each token."""

    weights: Sequence[float]
    classes: Sequence[TokenClass]
    pos: Sequence[str]
    """Parts of speech; () unless all documents have them."""

    def of(self, kind: str) -> list[float]:
        """The weights of the tokens of a class or, in capitals, a part of speech."""
        kinds = self.classes if kind in CLASSES else self.pos
        return [weight for weight, other in zip(self.weights, kinds, strict=bool(kinds)) if other == kind]

    def auc(self) -> float | None:
        """Area under the ROC curve of the weights as a detector of fact tokens."""
        return roc_auc(self.weights, [kind == "fact" for kind in self.classes])

    def relative(self, kind: str) -> float | None:
        """Mean weight of the tokens of a kind over the mean weight of all."""
        of_kind, overall = mean(self.of(kind)), mean(self.weights)
        return of_kind / overall if of_kind is not None and overall else None

    def share(self, kind: str) -> float | None:
        """Share of the total weight on tokens of a kind; None if there are none."""
        weights, total = self.of(kind), sum(self.weights)
        return sum(weights) / total if weights and total else None


@dataclass(frozen=True)
class RowWeights:
    """Token weights of one row, by run. Estimates are means over the streams that have the quantity, with SE_stream."""

    row: Row
    events: Mapping[Run, Sequence[TokenEvent]]
    runs: Mapping[Run, RunWeights]

    def auc(self) -> Estimate | None:
        """Probability that a fact token has a larger weight than another token."""
        return self._estimate(RunWeights.auc)

    def mean(self) -> Estimate | None:
        """Mean weight of a token."""
        return self._estimate(lambda run: mean(run.weights))

    def relative(self, kind: str) -> Estimate | None:
        """Mean weight of the tokens of a class or part of speech over the mean weight of all."""
        return self._estimate(lambda run: run.relative(kind))

    def share(self, kind: str) -> Estimate | None:
        """Share of the total weight on tokens of a class or part of speech."""
        return self._estimate(lambda run: run.share(kind))

    def frequency(self, kind: str) -> float:
        """Fraction of the tokens that are of a class or part of speech."""
        every = self.runs.values()
        return sum(len(run.of(kind)) for run in every) / sum(len(run.weights) for run in every)

    @property
    def streams(self) -> int:
        """Number of streams."""
        return len({run.stream for run in self.runs})

    @property
    def tokens(self) -> int:
        """Number of tokens on all streams; those that several seeds weigh count once."""
        documents = {
            (run.stream, event.document_id): len(event.weights) for run, of in self.events.items() for event in of
        }
        return sum(documents.values())

    def _estimate(self, value: Callable[[RunWeights], float | None]) -> Estimate | None:
        values = {run: number for run, weights in self.runs.items() if (number := value(weights)) is not None}
        return mean_over_streams(run_items(values)) if values else None


def row_weights(board: Board) -> list[RowWeights]:
    """The token weights of the board's rows on the stream itself, for methods that weight tokens.

    Raises:
        BenchError: the token events of a run are missing or damaged.
    """
    all_weights = []
    for row in board.rows:
        if row.arm != "stream":
            continue  # it has other documents, or weights each as the first of a stream
        found = ((run_of(record), read_tokens(row.runs, record.id)) for record in row.records)
        if events := {run: of for run, of in sorted(found) if of}:
            all_weights.append(RowWeights(row, events, {run: _run_weights(of) for run, of in events.items()}))
    return all_weights


def on_first_stream(all_weights: Sequence[RowWeights]) -> Iterator[tuple[RowWeights, Sequence[TokenEvent]]]:
    """The rows that have the first stream of all, each with its events there: of several seeds those of the first."""
    first = min((run.stream for weights in all_weights for run in weights.events), default="")
    for weights in all_weights:
        if events := [of for run, of in weights.events.items() if run.stream == first]:
            yield weights, events[0]


def write(board: Board, out: Path) -> list[Path]:
    """Write the table of token weights, if there are any; returns the files written."""
    all_weights = row_weights(board)
    if not all_weights:
        return []
    paths = [out / name for name in FILES]
    for path, text in zip(paths, (_markdown(board, all_weights), _csv(all_weights)), strict=True):
        write_bytes(path, text.encode())
    return paths


def _run_weights(events: Sequence[TokenEvent]) -> RunWeights:
    return RunWeights(
        weights=[weight for event in events for weight in event.weights],
        classes=[kind for event in events for kind in event.classes],
        pos=[tag for event in events for tag in event.pos or ()] if all(event.pos for event in events) else (),
    )


COLUMNS: Mapping[str, Callable[[RowWeights], Estimate | None]] = {
    "AUC": RowWeights.auc,
    **{kind: functools.partial(RowWeights.relative, kind=kind) for kind in CLASSES},
    "share on facts": functools.partial(RowWeights.share, kind="fact"),
    "mean weight": RowWeights.mean,
}
"""Columns of the table, by heading."""


def _markdown(board: Board, all_weights: Sequence[RowWeights]) -> str:
    headings = [heading for heading, value in COLUMNS.items() if any(map(value, all_weights))]
    lines = [["method", *headings], ["---", *["---:"] * len(headings)]]
    for weights in all_weights:
        cells = [str(COLUMNS[heading](weights) or "") for heading in headings]
        lines.append([weights.row.label, *cells])
    text = markdown(_caption(board, all_weights, headings))
    return "\n".join(["# Token weights", "", *map(pipes, lines), "", text]) + "\n"


def _caption(board: Board, all_weights: Sequence[RowWeights], headings: Sequence[str]) -> str:
    streams, kinds = len(board.streams), ", ".join(kind for kind in CLASSES if kind in headings)
    documents = max(len(of) for weights in all_weights for of in weights.events.values())
    seeds = any(weights.row.seeds > 1 for weights in all_weights)
    facts = f"{all_weights[0].frequency('fact'):.1%}"
    sentences = [
        f"{board.dataset}, {board.model}.",
        f"± is the half-width of the 95 % t interval over {streams} streams." if streams > 1 else "One stream: no ±.",
        *(["Errors include the seeds, for rows that have several."] if seeds and streams > 1 else []),
        f"Tokens are from the first {documents} documents of each {board.streams[0].rpartition('-')[0]} stream.",
        "AUC: probability that a token of a fact asked about has a larger weight than another token (0.5 is chance).",
        f"{kinds}: mean weight of these tokens, relative to the mean weight of all tokens.",
        f"share on facts: share of the total weight; {facts} of the tokens belong to facts.",
    ]
    return " ".join(text for text in sentences if text.partition(":")[0] not in COLUMNS.keys() - set(headings))


def _csv(all_weights: Sequence[RowWeights]) -> str:
    lines: list[dict[str, Any]] = []
    for weights in all_weights:
        flat = {"method": weights.row.method, "label": weights.row.label, "streams": weights.streams}
        flat |= {"config": json.dumps(weights.row.config, sort_keys=True), "tokens": weights.tokens}
        for heading, value in COLUMNS.items():
            key, estimate = heading.lower().replace(" ", "_"), value(weights)
            flat |= {key: estimate and estimate.mean, f"{key}_ci95": estimate and estimate.half_width()}
            flat |= {f"{key}_se_stream": estimate and estimate.se}
        lines.append(flat)
    return spreadsheet(lines)
