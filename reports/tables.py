"""Tables of a board: JSON and CSV with all fields; Markdown, LaTeX and the terminal with columns for readers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import write_bytes, write_json
from bench.terminal import visible
from reports import origins
from reports.board import Board
from reports.columns import Column, caption, columns, notes
from reports.markup import ampersands, markdown, pipes, spreadsheet, tabularx
from reports.prices import COSTS
from reports.rows import SCORES, SE_DOC, Row

if TYPE_CHECKING:
    from rich.table import Table


def fields(row: Row, board: Board) -> dict[str, Any]:
    """A row as flat fields, the same in all rows; missing values are None.

    ``<score>_ci95`` is the half-width of the 95 % t interval over streams, or over documents if there is one stream;
    ``<score>_se_<kind>`` are the standard errors.
    """
    flat: dict[str, Any] = {
        "method": row.method,
        "label": row.label,
        "dataset": board.dataset,
        "model": board.model,
        "arm": row.arm,
        "first_documents": board.first_documents,
        "control": row.control,
        "status": row.status,
        "note": row.note,
        "overlap": row.overlap,
        "imported": row.imported,
        "streams": row.streams,
        "seeds": row.seeds,
        "orders": row.orders,
        "as_good_as_best": row.as_good_as_best,
        "rank_low": row.standing and row.standing.low,
        "rank_high": row.standing and row.standing.high,
        "p_vs_reference": row.p_vs_reference,
        "config": dict(row.config),
    }
    for name in SCORES:
        errors = {one.kind: one.se for one in row.scores.get(name, ())}
        estimate = row.estimate(name, board.error)
        flat[name] = row.value(name)
        flat[f"{name}_ci95"] = estimate and estimate.half_width()
        flat[f"{name}_se_stream"] = errors.get("SE_stream")
        if name in SE_DOC:
            flat[f"{name}_se_doc"] = errors.get("SE_doc")
    for name in COSTS:
        flat[name] = row.costs.get(name)
    for name in ("streams", "seeds", "orders", "rest"):
        flat[f"spread_{name}"] = row.spread.get(name)
    return {**flat, "trials": row.trials, "tuned": row.tuned, "hand_set": list(row.hand_set)}


def write(board: Board, out: Path, names: Sequence[str] = ()) -> list[Path]:
    """Write ``leaderboard.json``, ``.csv``, ``.md``, ``.tex`` and ``.txt`` under ``out``, atomically.

    ``names`` choose the columns of the Markdown and the LaTeX table (:func:`reports.columns.columns`). The text is the
    caption of the LaTeX table, and its notes.

    Returns:
        The paths of the files written.

    Raises:
        BenchError: there is no column of a name.
    """
    paper = _for_paper(board, names)
    rows = [fields(row, board) for row in board.rows]
    json_path = out / "leaderboard.json"
    write_json(json_path, _facts(board, rows))
    texts = {
        "leaderboard.csv": _csv(rows),
        "leaderboard.md": _markdown(board, columns(board, names)),
        "leaderboard.tex": _latex(board, paper),
        "leaderboard.txt": _text(board, paper),
    }
    for name, text in texts.items():
        write_bytes(out / name, text.encode())
    return [json_path, *(out / name for name in texts)]


def _facts(board: Board, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The board as plain data: facts on all of it, its rows with their runs, and the origins of the runs."""
    found = origins.distinct(record for row in board.rows for record in row.records)
    return {
        "protocol": board.protocol,
        "comparability": board.comparability,
        "experiment": board.experiment,
        "dataset": board.dataset,
        "model": board.model,
        "streams": list(board.streams),
        "headline": board.headline,
        "error": board.error,
        "reference": board.reference,
        "first_documents": board.first_documents,
        "prompt": board.prompt.model_dump(mode="json"),
        "retune": board.retune and board.retune.model_dump(mode="json"),
        "remarks": list(board.remarks),
        "origins": found,
        "rows": [
            {**flat, "runs": [origins.run(record, found) for record in row.records]}
            for flat, row in zip(rows, board.rows, strict=True)
        ],
    }


LABEL_WIDTH = 18
"""Minimum width of the labels, in characters, on a narrow terminal; longer labels are folded."""
DISPENSABLE = (
    *(
        "orders",
        "break-even",
        "FLOP/doc",
        "total FLOP",
        "fit s",
        "train s",
        "tune s",
        "state",
        "forgot",
        "answer NLL",
        "EM",
        "recall",
        "gain",
        "F1 at start",
        "prefix EM",
    ),
    *("s/question", "bits/byte", "SE", "s/doc", "token NLL", "total s", "ended"),
)
"""Columns that a narrow terminal leaves out, in this order, before others from the right; the files have all."""


def render(board: Board, width: int | None = None, names: Sequence[str] = ()) -> Table:
    """The board for a terminal of ``width`` characters (default: the current one). Columns are left out, never cut.

    ``names`` choose the columns, as in :func:`write`.
    """
    from rich.console import Console

    console = Console(width=width)
    candidates = columns(board, names)
    rest = [one.heading for one in candidates[2:] if one.heading not in DISPENSABLE]  # not the method and its score
    order = [*DISPENSABLE, *reversed(rest)]
    for count in range(len(order) + 1):
        selection = [column for column in candidates if column.heading not in order[:count]]
        table = _table(board, selection, left_out=len(candidates) - len(selection))
        if Console(width=1000).measure(table).minimum <= console.width:  # measured at a width that squeezes nothing
            break
    return table


def _table(board: Board, selection: Sequence[Column], left_out: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, caption_justify="left")
    table.title = Text(visible(f"{board.experiment}: {board.dataset}, {board.model}"), "table.title")
    table.title_justify = "left"
    more = f" {left_out} more column{'s' * (left_out > 1)} in leaderboard.md." if left_out else ""
    table.caption = Text(visible(caption(board, selection) + more), "table.caption")
    for column in selection:
        heading = "\n".join(column.heading.rsplit(" ", 1))
        cells = [heading, *map(column.cell, board.rows)]
        width = max(len(line) for text in cells for line in text.split("\n"))
        if column is selection[0]:
            table.add_column(Text(heading), overflow="fold", min_width=min(width, LABEL_WIDTH))
        else:
            table.add_column(Text(visible(heading)), justify="right", no_wrap=True, min_width=width)
    for previous, row in zip([None, *board.rows], board.rows, strict=False):
        if previous is not None and row.control and not previous.control:
            table.add_section()
        styles = ["bold" if column.name in _bold(board, row) else "" for column in selection]
        texts = [Text(visible(column.cell(row)), style) for column, style in zip(selection, styles, strict=True)]
        table.add_row(*texts, style="dim" if row.control else "")
    return table


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    import json

    structured = ("config", "hand_set")
    return spreadsheet([{**row, **{key: json.dumps(row[key], sort_keys=True) for key in structured}} for row in rows])


def _bold(board: Board, row: Row) -> set[str]:
    """The columns that are bold in a row."""
    return {"method", board.headline} if row.is_bold else set()


def _markdown(board: Board, selection: Sequence[Column]) -> str:
    lines = [
        f"# {markdown(board.experiment)}",
        "",
        pipes([column.heading for column in selection]),
        pipes(["---", *["---:"] * (len(selection) - 1)]),
    ]
    for row in board.rows:
        stars = {**dict.fromkeys(_bold(board, row), "**"), **({"method": "*"} if row.control else {})}
        marks = [stars.get(column.name, "") for column in selection]
        lines.append(pipes([column.cell(row) for column in selection], marks))
    lines += ["", markdown(caption(board, selection)), *(f"\n{markdown(remark)}" for remark in board.remarks)]
    return "\n".join(lines) + "\n"


PAPER = ("f1", "rank", "total_seconds", "relative_f1", "f1_current", "stale", "token_nll", "bits_per_byte")
"""Columns for LaTeX, the most important ones first: the table has the first four of them that the board has."""


def _for_paper(board: Board, names: Sequence[str]) -> list[Column]:
    """The columns of these names; without names, those of :data:`PAPER` that fit into a column of a paper."""
    candidates = columns(board, names)
    at_hand = {column.name for column in candidates}
    few = [name for name in PAPER if name in at_hand][:4]
    return candidates if names else [column for column in candidates if column.name in ("method", *few)]


def _latex(board: Board, selection: Sequence[Column]) -> str:
    headings = [column.heading.rpartition(" ") for column in selection]
    lines = [
        *([ampersands([upper for upper, _, _ in headings])] if any(upper for upper, _, _ in headings) else []),
        ampersands([lower for _, _, lower in headings]),
        r"\midrule",
    ]
    for previous, row in zip([None, *board.rows], board.rows, strict=False):
        if previous is not None and row.control and not previous.control:
            lines.append(r"\midrule")
        bold = [column.name in _bold(board, row) for column in selection]
        lines.append(ampersands([column.cell(row) for column in selection], bold))
    return tabularx(lines, len(selection) - 1, "leaderboard.txt")


def _text(board: Board, selection: Sequence[Column]) -> str:
    """The caption of a table, its notes, and the remarks on the board, as paragraphs."""
    shown = f"Scores and costs of methods on {board.dataset} with {board.model}, protocol {board.protocol}."
    parts = [shown, " ".join(notes(board, selection)), *board.remarks]
    return "\n\n".join(textwrap.fill(visible(part), 120, break_long_words=False) for part in parts) + "\n"
