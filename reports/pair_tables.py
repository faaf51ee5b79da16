"""Tables of the same methods on several pairs of dataset and base: for readers, for papers and as plain data."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import write_bytes, write_json
from bench.terminal import visible
from reports.board import Board
from reports.markup import ampersands, latex, markdown, pipes, spreadsheet, tabularx
from reports.pairs import Comparison, Line, comparisons, lines, names, parts, rank
from reports.rows import Row
from reports.statistics import show
from reports.tables import LABEL_WIDTH

if TYPE_CHECKING:
    from rich.table import Table

LEFT_OUT = "–"
"""Stands for the score of a method on a board from which it is left out."""


def write(board: Board, out: Path) -> list[Path]:
    """Write ``pairs.md``, ``.json``, ``.csv``, ``.tex`` and ``.txt`` under ``out``, if there are several boards.

    The text is the caption of the LaTeX table, and its notes.

    Returns:
        The paths of the files written.

    Raises:
        BenchError: as :func:`reports.pairs.lines`.
    """
    if not board.others:
        return []
    rows = [_fields(board, line) for line in lines(board)]
    flat = [
        {**{key: value for key, value in row.items() if key != "pairs"}, "pair": pair, **values}
        for row in rows
        for pair, values in row["pairs"].items()
    ]
    content = {
        "experiment": board.experiment,
        "protocol": board.protocol,
        "pairs": [
            {
                "name": name,
                "board": one.experiment,
                "dataset": one.dataset,
                "model": one.model,
                "comparability": one.comparability,
                "streams": list(one.streams),
                "headline": one.headline,
            }
            for one, name in zip((board, *board.others), names(board), strict=True)
        ],
        "comparisons": [_facts(comparison) for comparison in comparisons(board)],
        "rows": rows,
    }
    json_path = out / "pairs.json"
    write_json(json_path, content)
    texts = {
        "pairs.csv": spreadsheet(flat),
        "pairs.md": _markdown(board),
        "pairs.tex": _latex(board),
        "pairs.txt": _text(board),
    }
    for name, text in texts.items():
        write_bytes(out / name, text.encode())
    return [json_path, *(out / name for name in texts)]


def render(board: Board, width: int | None = None) -> Table:
    """The comparison for a terminal of ``width`` characters (default: the current one): score and rank on each pair.

    Where the ranks do not fit, they are left out.
    """
    from rich.console import Console

    console = Console(width=width)
    table = _table(board, with_ranks=True)
    fits = Console(width=1000).measure(table).minimum <= console.width  # measured at a width that squeezes nothing
    return table if fits else _table(board, with_ranks=False)


def _table(board: Board, with_ranks: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.title, table.title_justify = Text(visible(_title(board)), "table.title"), "left"
    table.caption = Text(visible(_caption(board, with_ranks)), "table.caption")
    found = lines(board)
    table.add_column("method", overflow="fold", min_width=min(LABEL_WIDTH, max(len(line.label) for line in found)))
    for place, (one, of) in enumerate(zip((board, *board.others), parts(board), strict=True)):
        heading = "\n".join([f"{_score_name(one)} on", *of])
        widest = max(len(_score_cell(one, line.rows[place], one.headline)) for line in found)
        table.add_column(Text(visible(heading)), justify="right", overflow="fold", min_width=widest)
        if with_ranks:
            table.add_column("rank", justify="right", no_wrap=True)
    for line in found:
        cells = [Text(visible(line.label))]
        for one, row in _pairs(board, line):
            texts = [_score_cell(one, row, one.headline), *([_rank_cell(one, row)] if with_ranks else [])]
            cells += [Text(visible(text), "bold" if _is_bold(row) else "") for text in texts]
        table.add_row(*cells, style="dim" if line.control else "")
    return table


def _is_bold(row: Row | None) -> bool:
    return row is not None and row.is_bold


def _fields(board: Board, line: Line) -> dict[str, Any]:
    """A line as plain data."""
    first = next(row for row in line.rows if row is not None)
    pairs = zip(names(board), _pairs(board, line), strict=True)
    return {
        "label": line.label,
        "method": first.method,
        "arm": first.arm,
        "control": line.control,
        "pairs": {name: _numbers(one, row) for name, (one, row) in pairs if row is not None},
    }


def _pairs(board: Board, line: Line) -> Iterator[tuple[Board, Row | None]]:
    return zip((board, *board.others), line.rows, strict=True)


def _numbers(board: Board, row: Row) -> Mapping[str, Any]:
    numbers: dict[str, Any] = {"dataset": board.dataset, "model": board.model}
    for score in ("em", "f1", "token_nll", "bits_per_byte"):
        estimate = row.estimate(score, board.error)
        numbers |= {score: estimate and estimate.mean, f"{score}_ci95": estimate and estimate.half_width()}
    return {
        **numbers,
        "rank": rank(board, row),
        "rank_low": row.standing and row.standing.low,
        "rank_high": row.standing and row.standing.high,
        "as_good_as_best": row.as_good_as_best,
        "note": row.note,
    }


def _facts(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    found = comparison.agreement
    return {
        "pairs": list(comparison.names),
        "methods": [label for label, _, _ in comparison.lines],
        "kendall_tau_b": found and found.tau,
        "kendall_tau_b_ci95": list(found.interval) if found and found.interval else None,
        "inversions": [pair._asdict() for pair in comparison.inversions],
    }


def _title(board: Board) -> str:
    datasets, models = (
        list(dict.fromkeys(getattr(one, kind) for one in (board, *board.others))) for kind in ("dataset", "model")
    )
    return f"{board.experiment}: {_listed(datasets)} on {_listed(models)}"


def _listed(names: Sequence[str], word: str = "and") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _score_name(board: Board) -> str:
    return board.f1_name if board.headline == "f1" else "token NLL"


Shown = Sequence[tuple[str, str]]
"""Scores in a table: heading and name."""


def _both(board: Board) -> Shown:
    """The scores of a board in Markdown, the headline last."""
    other = ("EM", "em") if board.headline == "f1" else ("bits/byte", "bits_per_byte")
    return [other, *_headline(board)]


def _headline(board: Board) -> Shown:
    """The score of a board in LaTeX: more would not fit into a column of a paper."""
    return [(_score_name(board), board.headline)]


def _cells(board: Board, line: Line, shown: Callable[[Board], Shown]) -> Iterator[tuple[str, bool]]:
    """The scores and the rank on each board, as text, and True for the headline of a method as good as the best."""
    for one, row in _pairs(board, line):
        for _, score in shown(one):
            yield _score_cell(one, row, score), score == one.headline and _is_bold(row)
        yield _rank_cell(one, row), False


def _score_cell(board: Board, row: Row | None, score: str) -> str:
    if row is None:
        return LEFT_OUT
    estimate = row.estimate(score, board.error)
    shown = [] if estimate is None else [show(estimate.mean, estimate.half_width())]
    return " ".join([*shown, *([f"[{row.note}]"] if row.note and score == board.headline else [])])


def _rank_cell(board: Board, row: Row | None) -> str:
    if row is None or row.standing is None:
        return ""
    number = str(rank(board, row))
    return number if str(row.standing) == number else f"{number} ({row.standing})"


def _caption(board: Board, with_ranks: bool = True) -> str:
    boards = (board, *board.others)
    kinds = {one.error for one in boards}
    over = "streams" if "SE_stream" in kinds else "documents"
    single = ", or over documents on a board of one stream" if len(kinds) > 1 else ""
    scores = _listed(list(dict.fromkeys(map(_score_name, boards))), "or")
    rows = [row for line in lines(board) for row in line.rows]
    ranks = f"rank: by {scores} among those that compete; in brackets the ranks that the tests of all pairs leave open."
    sentences = [
        f"±: half the width of the 95 % t interval over {over}{single}.",
        ranks if with_ranks else "Ranks are in pairs.md.",
        "Each board has its own tuning.",
        *(["Bold: not distinguishable from the best of its board."] if any(map(_is_bold, rows)) else []),
        *([f"{LEFT_OUT}: left out of that board, whose remarks say why."] if None in rows else []),
    ]
    return " ".join(sentences)


def _markdown(board: Board) -> str:
    boards = zip((board, *board.others), names(board), strict=True)
    headings = [[f"{heading} on {name}" for heading, _ in _both(one)] + ["rank"] for one, name in boards]
    columns = ["method", *itertools.chain.from_iterable(headings)]
    text = [f"# {markdown(_title(board))}", "", pipes(columns), pipes(["---", *["---:"] * (len(columns) - 1)])]
    for line in lines(board):
        cells = [*_cells(board, line, _both)]
        marks = ["*" * line.control, *("**" * best for _, best in cells)]
        text.append(pipes([line.label, *(cell for cell, _ in cells)], marks))
    text += ["", markdown(_caption(board))]
    for comparison in comparisons(board):
        text += ["", markdown(" ".join(comparison.sentences()))]
        if comparison.inversions:
            better = [f"better on {name}" for name in comparison.names]
            text += ["", pipes([*better, "significant on both"]), pipes(["---"] * 3)]
            text += [pipes([*pair[:2], "yes" if pair.significant else "no"]) for pair in comparison.inversions]
    return "\n".join(text) + "\n"


def _latex(board: Board) -> str:
    """The table with a group of columns for each pair, as in papers."""
    columns = [[*(heading for heading, _ in _headline(one)), "rank"] for one in (board, *board.others)]
    groups, rules, first = [], [], 2
    for name, headings in zip(names(board), columns, strict=True):
        last = first + len(headings) - 1
        groups.append(rf"\multicolumn{{{len(headings)}}}{{c}}{{{latex(name)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
        first = last + 1
    text = [
        " & ".join(["", *groups]) + r" \\",
        " ".join(rules),
        ampersands(["method", *itertools.chain.from_iterable(columns)]),
        r"\midrule",
    ]
    found = lines(board)
    for previous, line in zip([None, *found], found, strict=False):
        if previous is not None and line.control and not previous.control:
            text.append(r"\midrule")
        cells = [*_cells(board, line, _headline)]
        text.append(ampersands([line.label, *(cell for cell, _ in cells)], [False, *(best for _, best in cells)]))
    return tabularx(text, first - 2, "pairs.txt")


def _text(board: Board) -> str:
    """The caption of the LaTeX table and its notes, as paragraphs."""
    parts = [f"Scores and ranks of methods, {_title(board)}.", _caption(board)]
    return "\n\n".join(textwrap.fill(visible(part), 120, break_long_words=False) for part in parts) + "\n"
