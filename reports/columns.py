"""The columns of a board that readers see in every format, and the caption that explains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bench.data.arms import irrelevant_percent
from bench.data.prompt_format import PLAIN
from bench.errors import BenchError
from bench.records.schema import CHANGE_SCORES
from reports.board import Board
from reports.rows import CEILING, FIRST, FLOOR, Row, about_changes, some_run_on
from reports.statistics import ErrorKind, Estimate, show_error, show_number

NAMES = (
    *("method", "f1", "se", "rank", FIRST, "relative_f1", "f1_vs_reference", "em", "ended", "em_prefix", "answer_nll"),
    *(*CHANGE_SCORES, "recall", "knowledge_gain", "token_nll", "token_nll_vs_reference"),
    *("token_nll_after", "bits_per_byte"),
    *("seeds", "orders", "forgetting", "training_seconds", "fit_seconds", "tuning_seconds", "seconds_per_document"),
    *("seconds_per_question", "total_seconds", "flops_per_document", "total_flops", "state_bytes"),
    *("break_even_documents", "trials", "p_vs_reference"),
)
"""Names by which columns are chosen: those of ``leaderboard.csv``, besides ``se`` and ``rank``."""
ON_REQUEST = {"p_vs_reference"}
"""Columns that are shown only if they are chosen."""
ALIASES = {"nll": "token_nll"}


class Column(NamedTuple):
    """A column: names, the text of its cell in a row, its explanation in the caption, and the number it shows."""

    name: str
    heading: str
    cell: Callable[[Row], str]
    explanation: str = ""
    value: Callable[[Row], Estimate | float | None] = lambda row: None
    """The number behind the text: an estimate if its error is shown with it; None without a number."""


def check(names: Iterable[str]) -> None:
    """Check names by which columns are chosen.

    Raises:
        BenchError: there is no column of a name; the message has all names.
    """
    for name in names:
        if ALIASES.get(name, name) not in NAMES:
            raise BenchError(f"There is no column {name!r}. The columns are {', '.join(NAMES)}.")


def columns(board: Board, names: Sequence[str] = ()) -> list[Column]:
    """The method and the columns of these names, in this order, also those without a value.

    Without names: all that have a value in at least one row and are not 0 in all rows, as far as they fit to the board.

    Raises:
        BenchError: as :func:`check`.
    """
    check(names)
    every = {column.name: column for column in _every(board)}
    if names:
        return [every[name] for name in dict.fromkeys(["method", *(ALIASES.get(name, name) for name in names)])]
    unfit = ON_REQUEST | {name for name in ("seeds", "orders") if all(getattr(row, name) == 1 for row in board.rows)}
    unfit |= {"bits_per_byte"} if board.headline == "f1" else set()
    unfit |= set() if some_run_on(board.rows) else {column.name for column in _FORMAT}
    unfit |= set() if about_changes(board.rows) else {column.name for column in _CHANGES}
    filled = (column for column in every.values() if {*map(column.cell, board.rows)} not in ({""}, {"0"}))
    return [column for column in filled if column.name not in unfit]


def _every(board: Board) -> list[Column]:
    """The columns of :data:`NAMES`, with the headline score first."""
    reference, kind = board.reference, board.error
    nll = "nats per token, scored before any update on the token"
    difference = f"paired difference from {reference}, each interval by itself, not corrected for the number of rows"
    if any(row.label == reference and row.standing is not None for row in board.rows):
        difference += "; see rank"
    spread = [_error(board.headline, kind), _RANK]
    answers = [
        _score(board.f1_name, "f1", kind),
        *(spread if board.headline == "f1" else ()),
        _plain("F1 at start", FIRST),
        _score("relative F1", "relative_f1", "SE_stream", _relative(board)),
        _score(f"F1 vs {reference}", "f1_vs_reference", kind, difference),
        _plain("EM", "em"),
        *_FORMAT,
        *_CHANGES,
        _plain("recall", "recall", "share of questions that were given their own document"),
        _score("gain", "knowledge_gain", "SE_stream", f"(F1 - placebo F1) / ({CEILING} F1 - placebo F1)"),
    ]
    texts = [
        _plain("token NLL", "token_nll", nll)
        if board.headline == "f1"
        else _score("token NLL", "token_nll", kind, nll),
        *(spread if board.headline == "token_nll" else ()),
        _score(f"NLL vs {reference}", "token_nll_vs_reference", kind, difference),
        _score("NLL after", "token_nll_after", kind, "nats per token, scored right after the text was observed"),
        _score("bits/byte", "bits_per_byte", kind),
    ]
    return [
        Column("method", "method", lambda row: row.title),
        *(answers + texts if board.headline == "f1" else texts + answers),
        _count("seeds"),
        _count("orders"),
        _plain(
            "forgot",
            "forgetting",
            "F1 lost on the anchor questions, from before the first document to after the last; low if there was none",
        ),
        _cost("train s", "training_seconds", number, "seconds to train the weights that it loads"),
        _cost("fit s", "fit_seconds", number, "seconds to learn offline within a run"),
        _cost("tune s", "tuning_seconds", number, "seconds of all runs that tuning needed"),
        _cost("s/doc", "seconds_per_document", number, "seconds to observe a document"),
        _cost("s/question", "seconds_per_question", number),
        _cost(
            "total s",
            "total_seconds",
            number,
            "the offline seconds and those of the documents and questions of one stream",
        ),
        _cost("FLOP/doc", "flops_per_document", _quantity),
        _cost("total FLOP", "total_flops", _quantity),
        _cost("state", "state_bytes", in_bytes, "bytes that the method changes or adds"),
        Column(
            "break_even_documents",
            "break-even",
            lambda row: break_even(row) or "",
            f"number of documents beyond which, or until which, its total seconds are at most those of {reference}; "
            f"?: which of the two costs more for a document is not resolved over streams, or not so in operations",
            lambda row: row.costs.get("break_even_documents"),
        ),
        Column(
            "trials",
            "trials",
            _trials,
            "configurations tried on validation streams",
            lambda row: row.trials if row.tuned else None,
        ),
        Column(
            "p_vs_reference",
            f"p vs {reference}",
            lambda row: "" if row.p_vs_reference is None else _p_value(row.p_vs_reference),
            f"of the difference from {reference}, by a paired t test over {_units(board)}, adjusted for the number of "
            f"rows that compete (Holm)",
            lambda row: row.p_vs_reference,
        ),
    ]


def _units(board: Board) -> str:
    """What the tests of a board are paired over."""
    return "streams" if board.error == "SE_stream" else "documents"


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _relative(board: Board) -> str:
    """Explanation of relative F1: what it is relative to."""
    base = "F1 of the same method and settings without irrelevant documents"
    if board.first_documents is not None:
        base = f"F1 at start, after the first {board.first_documents} documents, on the same questions"
    return f"F1 / {base}; for methods with a base significantly above {FLOOR}"


def caption(board: Board, selection: Sequence[Column]) -> str:
    """The caption of a board: dataset, model, protocol, meaning of the errors, and explanations of the columns."""
    return " ".join([f"{board.dataset}, {board.model}, protocol {board.protocol}.", *notes(board, selection)])


def notes(board: Board, selection: Sequence[Column]) -> list[str]:
    """Sentences on what the errors, the columns and the bold type mean."""
    interval = any("±" in column.cell(row) for column in selection for row in board.rows)
    sentences = [
        *_questions(board),
        *_errors(board, interval, any(column.name == "se" for column in selection)),
        *(f"{column.heading}: {column.explanation}." for column in selection if column.explanation),
    ]
    if sum(row.standing is not None for row in board.rows) > 1:
        meaning = "Bold: not distinguishable from the best, since no method is significantly better"
        if not any(row.is_bold for row in board.rows):
            meaning = "No row is bold, since no method is significantly better than another"
        sentences.append(f"{meaning} (paired t tests of all pairs over {_units(board)}, Holm correction, 5 %).")
    if any(row.control for row in board.rows):
        sentences.append("Controls come last.")
    return sentences


def _questions(board: Board) -> list[str]:
    """Sentences that say what happens before questions, which are asked and when, if it is not as on other boards."""
    sentences = []
    if board.prompt != PLAIN:
        sentences.append(f"Prompts: {board.prompt.stated}.")
    if (retune := board.retune) is not None:
        sentences.append(
            f"Before the questions of each probe every method takes up to {retune.steps} steps (Adam, rate "
            f"{retune.rate:g}) on questions of qa_train without any document; they are undone afterwards."
        )
    if board.first_documents is not None:
        sentences.append(
            f"All scores of answers are on the questions about the first {board.first_documents} documents of each "
            f"stream, asked again after all of its documents."
        )
    if any(irrelevant_percent(row.arm) for row in board.rows):
        sentences.append(
            "On the arms irrelevant_N the stream has other documents without questions at random places, N % as many "
            "as its own."
        )
    return sentences


def _errors(board: Board, shows_interval: bool, shows_se: bool) -> list[str]:
    """Sentences that say which error stands in which column, and why; none if no error is shown."""
    from scipy.special import stdtr

    count, name = len(board.streams), board.streams[0].rpartition("-")[0]
    if board.error == "SE_stream":
        covered = 1 - 2 * float(stdtr(count - 1, -1.0))
        interval = f"± is the half-width of the 95 % t interval over {count} streams of {name}."
        if any(0 < row.streams < count for row in board.rows):
            interval += " Rows with a note in brackets have fewer."
        se = f"SE is the standard error over streams (SE_stream); ± 1 SE would cover only {100 * covered:.0f} %."
    else:
        interval = (
            f"± is the half-width of the 95 % t interval over documents: {board.streams[0]} is the only stream, so "
            f"there is no SE_stream."
        )
        se = "SE is SE_doc, the standard error over questions, clustered by document."
    sentences = [*([interval] if shows_interval else []), *([se] if shows_se else [])]
    if sentences and any(row.seeds > 1 for row in board.rows):
        sentences.append("Errors include the seeds, for rows that have several.")
    return sentences


def _score(heading: str, name: str, kind: ErrorKind, explanation: str = "") -> Column:
    def cell(row: Row) -> str:
        estimate = row.estimate(name, kind)
        return "" if estimate is None else str(estimate)

    return Column(name, heading, cell, explanation, lambda row: row.estimate(name, kind))


def _error(name: str, kind: ErrorKind) -> Column:
    def cell(row: Row) -> str:
        estimate = row.estimate(name, kind)
        return "" if estimate is None else show_error(estimate.se)

    def value(row: Row) -> float | None:
        estimate = row.estimate(name, kind)
        return None if estimate is None else estimate.se

    return Column("se", "SE", cell, value=value)


_RANK = Column(
    "rank",
    "rank",
    lambda row: "" if row.standing is None else str(row.standing),
    "ranks that the method can have, by the tests behind the bold type",
    lambda row: None if row.standing is None else row.standing.low,
)


def _plain(heading: str, name: str, explanation: str = "", digits: int = 3) -> Column:
    def cell(row: Row) -> str:
        value = row.value(name)
        return "" if value is None else show_number(value, digits)

    return Column(name, heading, cell, explanation, lambda row: row.value(name))


_FORMAT = (
    _plain("ended", "ended", "share of answers that the model ends itself, by a newline or an end of text"),
    _plain("prefix EM", "em_prefix", "share of answers that begin with the shortest gold answer, however they go on"),
    _plain("answer NLL", "answer_nll", "nats per token of the first gold answer and its end of text"),
)
"""Scores that tell what a model knows from the form in which it answers."""

_CHANGES = (
    _plain("current F1", "f1_current", "F1 on questions whose fact has changed along the stream"),
    _plain("stale", "stale", "share of these answered with an earlier truth"),
    _plain("unchanged F1", "f1_unchanged", "F1 on the other questions"),
)


def _cost(heading: str, name: str, text: Callable[[float], str], explanation: str = "") -> Column:
    return Column(
        name,
        heading,
        lambda row: text(row.costs[name]) if name in row.costs else "",
        explanation,
        lambda row: row.costs.get(name),
    )


def _count(name: str) -> Column:
    return Column(name, name, lambda row: str(getattr(row, name)), value=lambda row: getattr(row, name))


def _trials(row: Row) -> str:
    return "-" if row.tuned is None else str(row.trials) if row.tuned else "untuned"


def break_even(row: Row) -> str | None:
    """The documents from which on a row is cheaper than the reference, or "until" which it is; None if it never is.

    "?" if it is not clear which of the two costs more for a document.
    """
    if "break_even_unclear" in row.costs:
        return "?"
    if (until := row.costs.get("break_even_until")) is not None:
        return f"until {number(until)}"
    start = row.costs.get("break_even_documents")
    return None if start is None else number(start)


def number(value: float) -> str:
    """A number of seconds or documents as text."""
    return "0" if value == 0 else "<0.001" if value < 0.0005 else f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def _quantity(value: float) -> str:
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E"))


def in_bytes(value: float) -> str:
    """A number of bytes as text, with its unit."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {units[power]}".strip()
