"""How methods weigh tokens: what the weights have to do with the facts that are asked about, as numbers and a table."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.data.arms import apart
from bench.files import write_bytes
from bench.records.schema import TokenClass, TokenEvent
from bench.records.store import read_tokens
from reports.board import Board
from reports.rows import Row
from reports.statistics import Estimate, roc_auc, stream_error
from reports.tables import pipes

FILES = ("token_weights.md", "token_weights.csv")
CLASSES: tuple[TokenClass, ...] = ("fact", "name", "filler")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one stream with their weights, in order."""

    weights: Sequence[float]
    classes: Sequence[TokenClass]
    pos: Sequence[str]
    """Parts of speech, () where not all documents have them."""

    @property
    def mean(self) -> float:
        """Mean weight."""
        return sum(self.weights) / len(self.weights)

    def of(self, kind: str) -> list[float]:
        """The weights of the tokens of a class or, in capitals, a part of speech."""
        kinds = self.classes if kind in CLASSES else self.pos
        return [weight for weight, other in zip(self.weights, kinds, strict=bool(kinds)) if other == kind]


@dataclass(frozen=True)
class Weighing:
    """How one row of a board weighs tokens, by stream."""

    row: Row
    events: Mapping[str, Sequence[TokenEvent]]
    streams: Sequence[Tokens]

    def auc(self) -> Estimate | None:
        """How well the weights tell tokens of facts from others."""
        return _over(self.streams, lambda s: roc_auc(s.weights, [kind == "fact" for kind in s.classes]))

    def mean(self) -> Estimate | None:
        """Mean weight of a token."""
        return _over(self.streams, lambda s: s.mean)

    def relative(self, kind: str) -> Estimate | None:
        """Mean weight of the tokens of a class, or a part of speech, over that of all."""
        return _over(self.streams, lambda s: _relative(s.of(kind), s.mean))

    def share(self, kind: str) -> Estimate | None:
        """Part of the whole weight that falls on such tokens, where there are any."""
        return _over(self.streams, lambda s: sum(s.of(kind)) / sum(s.weights) if s.of(kind) and s.mean else None)

    def frequency(self, kind: str) -> float:
        """Part of the tokens that are such."""
        return sum(len(stream.of(kind)) for stream in self.streams) / sum(
            len(stream.weights) for stream in self.streams
        )


def weighings(board: Board, runs: Path) -> list[Weighing]:
    """Those of the board's rows whose method weighs tokens.

    Raises:
        BenchError: the token events of a run are missing or torn.
    """
    found = []
    for row in board.rows:
        if apart(row.arm):
            continue  # each document as the stream's first one
        events: dict[str, list[TokenEvent]] = defaultdict(list)
        for record in sorted(row.records, key=lambda record: (record.spec.stream, record.spec.seed)):
            if some := read_tokens(runs, record.id):
                events[record.spec.stream] += some
        if events:
            found.append(Weighing(row, dict(events), [_tokens(some) for some in events.values()]))
    return found


def write(board: Board, runs: Path, out: Path) -> list[Path]:
    """Write the table of the board's weighings, or remove one that has none any more; returns the files written."""
    found = weighings(board, runs)
    if not found:
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        return []
    texts = {"token_weights.md": _markdown(board, found), "token_weights.csv": _csv(found)}
    for name, text in texts.items():
        write_bytes(out / name, text.encode())
    return [out / name for name in texts]


def _tokens(events: Sequence[TokenEvent]) -> Tokens:
    return Tokens(
        weights=[weight for event in events for weight in event.weights],
        classes=[kind for event in events for kind in event.classes],
        pos=[tag for event in events for tag in event.pos or ()] if all(event.pos for event in events) else (),
    )


def _over(streams: Sequence[Tokens], value: Callable[[Tokens], float | None]) -> Estimate | None:
    values = [found for found in map(value, streams) if found is not None]
    return stream_error(values) if values else None


def _relative(weights: Sequence[float], mean: float) -> float | None:
    return sum(weights) / len(weights) / mean if weights and mean else None


COLUMNS: Mapping[str, Callable[[Weighing], Estimate | None]] = {
    "AUC": Weighing.auc,
    **{kind: functools.partial(Weighing.relative, kind=kind) for kind in CLASSES},
    "share on facts": functools.partial(Weighing.share, kind="fact"),
    "mean weight": Weighing.mean,
}
"""What the table says of a weighing, by heading."""


def _markdown(board: Board, found: Sequence[Weighing]) -> str:
    shown = [name for name, value in COLUMNS.items() if any(map(value, found))]
    rows = [
        [weighing.row.label.replace("|", "\\|"), *(str(COLUMNS[name](weighing) or "") for name in shown)]
        for weighing in found
    ]
    head = [["method", *shown], ["---", *["---:"] * len(shown)]]
    return "\n".join(["# Token weights", "", *map(pipes, head + rows), "", _caption(board, found, shown)]) + "\n"


def _caption(board: Board, found: Sequence[Weighing], shown: Sequence[str]) -> str:
    streams, kinds = len(board.streams), ", ".join(kind for kind in CLASSES if kind in shown)
    documents = max(len(events) for weighing in found for events in weighing.events.values())
    sentences = [
        f"{board.dataset}, {board.model}.",
        f"Errors are SE_stream over {streams} streams." if streams > 1 else "One stream leaves no SE_stream.",
        f"Of each stream of {board.streams[0].rpartition('-')[0]} the first {documents} documents.",
        "AUC: how often a token of a fact that is asked about weighs more than another one (0.5 is chance).",
        f"{kinds}: mean weight of such tokens, that of all tokens being 1.",
        f"share on facts: of all weight, where {found[0].frequency('fact'):.1%} of the tokens are of facts.",
    ]
    return " ".join(text for text in sentences if text.partition(":")[0] not in COLUMNS.keys() - set(shown))


def _csv(found: Sequence[Weighing]) -> str:
    rows: list[dict[str, Any]] = []
    for weighing in found:
        tokens = sum(len(stream.weights) for stream in weighing.streams)
        flat = {"method": weighing.row.method, "label": weighing.row.label, "streams": len(weighing.streams)}
        flat |= {"config": json.dumps(weighing.row.config, sort_keys=True), "tokens": tokens}
        for name, value in COLUMNS.items():
            key, estimate = name.lower().replace(" ", "_"), value(weighing)
            flat |= {key: estimate and estimate.mean, f"{key}_se_stream": estimate and estimate.se}
        rows.append(flat)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
