"""Tables of a board: JSON and CSV with all fields; Markdown, LaTeX and the terminal with the columns for readers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import csv_text, write_bytes, write_json
from bench.terminal import visible
from reports.board import Board
from reports.columns import Column, caption, columns
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
        "config": dict(row.config),
    }
    for name in SCORES:
        estimates = row.scores.get(name, ())
        errors = {estimate.kind: estimate.se for estimate in estimates}
        headline = row.estimate(name, board.error)
        flat[name] = row.value(name)
        flat[f"{name}_ci95"] = headline and headline.half_width()
        flat[f"{name}_se_stream"] = errors.get("SE_stream")
        if name in SE_DOC:
            flat[f"{name}_se_doc"] = errors.get("SE_doc")
    for name in COSTS:
        flat[name] = row.costs.get(name)
    for name in ("streams", "seeds", "orders", "rest"):
        flat[f"spread_{name}"] = row.spread.get(name)
    return {**flat, "trials": row.trials, "tuned": row.tuned, "hand_set": list(row.hand_set)}


def write(board: Board, out: Path) -> list[Path]:
    """Write ``leaderboard.json``, ``.csv``, ``.md`` and ``.tex`` under ``out``, atomically; returns their paths."""
    rows = [fields(row, board) for row in board.rows]
    json_path = out / "leaderboard.json"
    write_json(
        json_path,
        {
            "protocol": board.protocol,
            "comparability": board.comparability,
            "experiment": board.experiment,
            "streams": list(board.streams),
            "headline": board.headline,
            "reference": board.reference,
            "remarks": list(board.remarks),
            "rows": rows,
        },
    )
    texts = {"leaderboard.csv": _csv(rows), "leaderboard.md": _markdown(board), "leaderboard.tex": _latex(board)}
    for name, text in texts.items():
        write_bytes(out / name, text.encode())
    return [json_path, *(out / name for name in texts)]


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
"""Columns that a narrow terminal leaves out, in this order; the files have all of them."""


def render(board: Board, width: int | None = None) -> Table:
    """The board for a terminal of ``width`` characters (default: the current one). Columns are left out, never cut."""
    from rich.console import Console

    console = Console(width=width)
    candidates = columns(board)
    for count in range(len(DISPENSABLE) + 1):
        selection = [column for column in candidates if column.heading not in DISPENSABLE[:count]]
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
        styles = ["bold" if row.as_good_as_best and index < 2 else "" for index in range(len(selection))]
        texts = [Text(visible(column.cell(row)), style) for column, style in zip(selection, styles, strict=True)]
        table.add_row(*texts, style="dim" if row.control else "")
    return table


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    import json

    structured = ("config", "hand_set")
    return csv_text([{**row, **{key: json.dumps(row[key], sort_keys=True) for key in structured}} for row in rows])


def _markdown(board: Board) -> str:
    selection = columns(board)
    lines = [
        f"# {board.experiment}",
        "",
        pipes([column.heading for column in selection]),
        pipes(["---", *["---:"] * (len(selection) - 1)]),
    ]
    for row in board.rows:
        cells = [column.cell(row).replace("|", "\\|") for column in selection]
        cells[0] = f"*{cells[0]}*" if row.control else cells[0]
        if row.as_good_as_best:
            cells[:2] = [f"**{cell}**" for cell in cells[:2]]
        lines.append(pipes(cells))
    lines += ["", caption(board, selection), *(f"\n{remark}" for remark in board.remarks)]
    return "\n".join(lines) + "\n"


def pipes(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _latex(board: Board) -> str:
    selection = columns(board)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"% {caption(board, selection)}",
        f"\\begin{{tabular}}{{l{'r' * (len(selection) - 1)}}}",
        "\\toprule",
        _ampersands([_escape(column.heading) for column in selection]),
        "\\midrule",
    ]
    for previous, row in zip([None, *board.rows], board.rows, strict=False):
        if previous is not None and row.control and not previous.control:
            lines.append("\\midrule")
        cells = [_escape(column.cell(row)) for column in selection]
        if row.as_good_as_best:
            cells[:2] = [f"\\textbf{{{cell}}}" for cell in cells[:2]]
        lines.append(_ampersands(cells))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escape(text: str) -> str:
    text = re.sub("[" + re.escape("".join(_SPECIAL)) + "]", lambda match: _SPECIAL[match[0]], text)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)  # a minus, not a hyphen
