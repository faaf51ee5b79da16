"""The same methods on several base models: scores and ranks on each, and the pairs of methods whose order inverts."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.errors import BenchError
from bench.files import write_bytes, write_json
from bench.records.schema import NOT_COMPARED
from bench.terminal import visible
from reports.agreement import DECIMALS, Agreement, Scores, agreement
from reports.board import Board, Headline
from reports.markup import markdown, pipes, spreadsheet
from reports.rows import Row
from reports.statistics import show

if TYPE_CHECKING:
    from rich.table import Table

FILES = ("bases.md", "bases.json", "bases.csv")


class Line(NamedTuple):
    """One entry of the experiment on one arm, with its row on each board."""

    label: str
    rows: tuple[Row, ...]


class Inversion(NamedTuple):
    """Two methods of which one has the better score on the first base, and the other one on another base."""

    better_on_first: str
    better_on_other: str
    significant: bool
    """True if the two differ significantly on both bases, by each board's tests of all pairs."""


@dataclass(frozen=True)
class Comparison:
    """The ranking on the first base and that on another one, over the methods that compete on both."""

    first: Board
    other: Board
    lines: Sequence[tuple[str, Row, Row]]
    """The label of each method, and its rows."""

    @cached_property
    def agreement(self) -> Agreement | None:
        """The rank correlation; None if one of the rankings has no order."""
        if not self.lines:
            return None
        a = [_by_stream(self.first, row) for _, row, _ in self.lines]
        b = [_by_stream(self.other, row) for _, _, row in self.lines]
        return agreement(np.array(a), np.array(b))

    @cached_property
    def inversions(self) -> list[Inversion]:
        """The inverted pairs, those that differ significantly on both bases first."""
        pairs = []
        for (label_a, first_a, other_a), (label_b, first_b, other_b) in itertools.permutations(self.lines, 2):
            if _is_better(self.first, first_a, first_b) and _is_better(self.other, other_b, other_a):
                significant = _beats(first_a, first_b) and _beats(other_b, other_a)
                pairs.append(Inversion(label_a, label_b, significant))
        return sorted(pairs, key=lambda pair: not pair.significant)

    def sentences(self) -> list[str]:
        """The rank correlation, and the number of inverted pairs, in words."""
        names, methods = f"{self.first.model} and {self.other.model}", len(self.lines)
        if self.agreement is None:
            reason = "fewer than two methods compete on both, or all of them are tied on one"
            return [f"There is no rank correlation between {names}: {reason}."]
        significant = [
            f"{pair.better_on_first} and {pair.better_on_other}" for pair in self.inversions if pair.significant
        ]
        return [
            f"Kendall's tau-b between the ranks of {methods} methods on {names} is {self.agreement}.",
            f"Pairs of methods in the opposite order: {len(self.inversions)} of {methods * (methods - 1) // 2}; "
            f"significantly different on both: {', '.join(significant) or 'none'}.",
        ]


def lines(board: Board) -> list[Line]:
    """A line for each entry of the experiment and each of its arms, in the order of the first board.

    Raises:
        BenchError: the boards differ in more than the base model, as after a run that was killed.
    """
    found: dict[tuple[str, ...], Line] = {}
    by_entry = [{(entry, row.arm): row for row in one.rows for entry in row.entries} for one in (board, *board.bases)]
    for other, rows in zip(board.bases, by_entry[1:], strict=True):
        methods, expected = ({key: row.method for key, row in some.items()} for some in (rows, by_entry[0]))
        if methods != expected or not _comparable(board, other):
            raise BenchError(
                f"The boards {board.experiment} and {other.experiment} cannot be compared: they differ in methods, "
                f"streams or settings. Run the experiment again: it runs only what is missing."
            )
    for key, first in by_entry[0].items():
        of_line = tuple(rows[key] for rows in by_entry)
        found.setdefault(tuple(row.label for row in of_line), Line(first.label, of_line))
    return list(found.values())


def comparisons(board: Board) -> list[Comparison]:
    """The comparison of the first base with each of the others."""
    found = lines(board)
    return [
        Comparison(
            board,
            other,
            [
                (line.label, line.rows[0], line.rows[place])
                for line in found
                if line.rows[0].standing is not None and line.rows[place].standing is not None
            ],
        )
        for place, other in enumerate(board.bases, 1)
    ]


def write(board: Board, out: Path) -> list[Path]:
    """Write ``bases.md``, ``.json`` and ``.csv`` under ``out``, if the board has further bases.

    Returns:
        The paths of the files written.

    Raises:
        BenchError: as :func:`lines`.
    """
    if not board.bases:
        return []
    rows = [_fields(board, line) for line in lines(board)]
    flat = [
        {**{key: value for key, value in row.items() if key != "bases"}, "base": base, **values}
        for row in rows
        for base, values in row["bases"].items()
    ]
    markdown, json, table = (out / name for name in FILES)
    write_bytes(markdown, _markdown(board).encode())
    write_json(
        json,
        {
            "experiment": board.experiment,
            "protocol": board.protocol,
            "dataset": board.dataset,
            "streams": list(board.streams),
            "headline": board.headline,
            "bases": [one.model for one in (board, *board.bases)],
            "comparisons": [_facts(comparison) for comparison in comparisons(board)],
            "rows": rows,
        },
    )
    write_bytes(table, spreadsheet(flat).encode())
    return [markdown, json, table]


def render(board: Board) -> Table:
    """The comparison for a terminal: the score and the rank of each method on each base."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headings = _headings(board)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.title, table.title_justify = Text(visible(_title(board)), "table.title"), "left"
    table.caption = Text(visible(_caption(board)), "table.caption")
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(Text(visible(heading)), justify="right")
    for line in lines(board):
        cells = (Text(visible(cell)) for cell in _cells(board, line))
        table.add_row(*cells, style="dim" if line.rows[0].control else "")
    return table


def rank(board: Board, row: Row) -> int | None:
    """The rank of a row by its score among those that compete: 1 is the best, and equal scores share the lower number.

    None if the row does not compete.
    """
    rivals = [other for other in board.rows if other.standing is not None]
    return None if row.standing is None else 1 + sum(_is_better(board, other, row) for other in rivals)


def _comparable(*boards: Board) -> bool:
    """True if the boards have the same streams, and their runs would be comparable but for the base model."""
    runs = [run for board in boards for row in board.rows for run in row.records[:1]]
    settings = [run.spec.model_dump(exclude={*NOT_COMPARED, "model", "model_hash"}) for run in runs]
    return all(board.streams == boards[0].streams for board in boards) and all(one == settings[0] for one in settings)


def _score(board: Board, row: Row) -> float:
    """The headline score, the higher the better."""
    value = row.scores[board.headline][0].mean
    return value if board.headline == "f1" else -value


def _is_better(board: Board, a: Row, b: Row) -> bool:
    return round(_score(board, a) - _score(board, b), DECIMALS) > 0


def _beats(a: Row, b: Row) -> bool:
    """True if ``a`` is significantly better than ``b`` of the same board."""
    return a.standing is not None and b.label in a.standing.worse


def _by_stream(board: Board, row: Row) -> Scores:
    """The headline score of a row on each stream, the higher the better."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in row.records:
        values[record.spec.stream].append(getattr(record.summary, board.headline))
    return np.array([np.mean(values[stream]) for stream in board.streams]) * (1 if board.headline == "f1" else -1)


def _fields(board: Board, line: Line) -> dict[str, Any]:
    """A line as plain data."""
    first = line.rows[0]
    return {
        "label": line.label,
        "method": first.method,
        "arm": first.arm,
        "control": first.control,
        "bases": {one.model: _numbers(one, row, board.headline) for one, row in _pairs(board, line)},
    }


def _pairs(board: Board, line: Line) -> Iterator[tuple[Board, Row]]:
    return zip((board, *board.bases), line.rows, strict=True)


def _numbers(board: Board, row: Row, headline: Headline) -> Mapping[str, Any]:
    estimate = row.estimate(headline, board.error)
    return {
        headline: estimate and estimate.mean,
        f"{headline}_ci95": estimate and estimate.half_width(),
        "rank": rank(board, row),
        "rank_low": row.standing and row.standing.low,
        "rank_high": row.standing and row.standing.high,
        "note": row.note,
    }


def _facts(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    found = comparison.agreement
    return {
        "bases": [comparison.first.model, comparison.other.model],
        "methods": [label for label, _, _ in comparison.lines],
        "kendall_tau_b": found and found.tau,
        "kendall_tau_b_ci95": list(found.interval) if found and found.interval else None,
        "inversions": [pair._asdict() for pair in comparison.inversions],
    }


def _title(board: Board) -> str:
    *others, last = [one.model for one in (board, *board.bases)]
    return f"{board.experiment}: {board.dataset} on {', '.join(others)} and {last}"


def _headings(board: Board) -> list[str]:
    score = _score_name(board)
    return ["method", *(heading for one in (board, *board.bases) for heading in (f"{score} on {one.model}", "rank"))]


def _score_name(board: Board) -> str:
    return board.f1_name if board.headline == "f1" else "token NLL"


def _cells(board: Board, line: Line) -> list[str]:
    """The label, and for each base the score and the rank."""
    pairs = [(_score_cell(one, row), _rank_cell(one, row)) for one, row in _pairs(board, line)]
    return [line.label, *itertools.chain.from_iterable(pairs)]


def _score_cell(board: Board, row: Row) -> str:
    estimate = row.estimate(board.headline, board.error)
    shown = [] if estimate is None else [show(estimate.mean, estimate.half_width())]
    return " ".join([*shown, *([f"[{row.note}]"] if row.note else [])])


def _rank_cell(board: Board, row: Row) -> str:
    if row.standing is None:
        return ""
    number = str(rank(board, row))
    return number if str(row.standing) == number else f"{number} ({row.standing})"


def _caption(board: Board) -> str:
    over = "streams" if board.error == "SE_stream" else "documents"
    return (
        f"±: half the width of the 95 % t interval over {over}. rank: by {_score_name(board)} among the methods "
        f"that compete; in brackets the ranks that the tests of all pairs leave open. Each base has its own tuning."
    )


def _markdown(board: Board) -> str:
    headings = _headings(board)
    text = [f"# {markdown(_title(board))}", "", pipes(headings), pipes(["---", *["---:"] * (len(headings) - 1)])]
    for line in lines(board):
        text.append(pipes(_cells(board, line), ["*" * line.rows[0].control]))
    text += ["", markdown(_caption(board))]
    for comparison in comparisons(board):
        text += ["", markdown(" ".join(comparison.sentences()))]
        if comparison.inversions:
            names = [f"better on {one.model}" for one in (comparison.first, comparison.other)]
            text += ["", pipes([*names, "significant on both"]), pipes(["---"] * 3)]
            text += [pipes([*pair[:2], "yes" if pair.significant else "no"]) for pair in comparison.inversions]
    return "\n".join(text) + "\n"
