"""The columns of a board that readers see in every format, and the caption that explains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from reports.board import CEILING, Board
from reports.rows import Row
from reports.statistics import ErrorKind


class Column(NamedTuple):
    """A column: its heading, the text of its cell in a row, and its explanation in the caption."""

    heading: str
    cell: Callable[[Row], str]
    explanation: str = ""


def columns(board: Board) -> list[Column]:
    """The columns that have a value in at least one row."""
    reference, kind = board.reference, board.error
    nll = "nats per token, scored before any update on the token"
    if board.headline == "f1":
        scores = [
            _score("F1", "f1", kind),
            _score(f"F1 vs {reference}", "f1_vs_reference", kind, f"paired difference from {reference}"),
            _plain("EM", "em"),
            _plain("recall", "recall", "share of questions that were given their own document"),
            _plain("gain", "knowledge_gain", f"(F1 - placebo F1) / ({CEILING} F1 - placebo F1)", digits=2),
            _plain("token NLL", "token_nll", nll),
        ]
    else:
        scores = [
            _score("token NLL", "token_nll", kind, nll),
            _score(f"NLL vs {reference}", "token_nll_vs_reference", kind, f"paired difference from {reference}"),
            _score("bits/byte", "bits_per_byte", kind),
        ]
    candidates = [
        *scores,
        _plain("forgot", "forgetting", "F1 lost on the anchor questions"),
        _cost("s/doc", "seconds_per_document", _number, "seconds to observe a document"),
        _cost("FLOP/doc", "flops_per_document", _quantity),
        _cost("state", "state_bytes", _bytes, "bytes that the method changes or adds"),
    ]
    filled = [column for column in candidates if any(column.cell(row) for row in board.rows)]
    return [Column("method", lambda row: row.title), *filled, _TRIALS]


def caption(board: Board, selection: Sequence[Column]) -> str:
    """The caption of a board: dataset, model, names of the errors, and explanations of the columns."""
    errors = f"SE_stream over {len(board.streams)} streams of {board.streams[0].rpartition('-')[0]}"
    if board.error == "SE_doc":
        errors = f"SE_doc, clustered by document: {board.streams[0]} is the only stream, so there is no SE_stream"
    sentences = [
        f"{board.dataset}, {board.model}. Errors are {errors}.",
        *(f"{column.heading}: {column.explanation}." for column in selection if column.explanation),
    ]
    if any(row.leading for row in board.rows):
        sentences.append(
            "Bold: the best method and those not significantly worse (paired t test with SE_doc, Holm correction, 5 %)."
        )
    if any(row.control for row in board.rows):
        sentences.append("Controls come last.")
    return " ".join(sentences)


def _score(heading: str, name: str, kind: ErrorKind, explanation: str = "") -> Column:
    def cell(row: Row) -> str:
        estimate = row.estimate(name, kind)
        return "" if estimate is None else str(estimate)

    return Column(heading, cell, explanation)


def _plain(heading: str, name: str, explanation: str = "", digits: int = 3) -> Column:
    def cell(row: Row) -> str:
        value = row.value(name)
        return "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"

    return Column(heading, cell, explanation)


def _cost(heading: str, name: str, text: Callable[[float], str], explanation: str = "") -> Column:
    return Column(heading, lambda row: text(row.costs[name]) if name in row.costs else "", explanation)


def _trials(row: Row) -> str:
    return "-" if row.tuned is None else str(row.trials) if row.tuned else "untuned"


_TRIALS = Column("trials", _trials, "configurations tried on validation streams")


def _number(value: float) -> str:
    return "0" if value == 0 else "<0.001" if value < 0.0005 else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _quantity(value: float) -> str:
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))


def _bytes(value: float) -> str:
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {units[power]}".strip()
