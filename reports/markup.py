"""Texts from records in Markdown, LaTeX and CSV: they are shown as they are, whatever they hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.files import csv_text
from bench.terminal import visible

_ACTIVE = re.compile(r"[\\`*|~]|_(?![^\W_])|(?<![^\W_])_|<(?=[A-Za-z/!?])|&(?=[\w#])|(?<=\])\(")
"""Characters that mean something in a Markdown table: "_" within a word and "<" before a number do not."""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "[": "{[}",  # after \\ and \midrule it would begin an optional argument
    "*": "{*}",
    "=": r"=\allowbreak{}",  # settings in the label of a row can be long
    **{character: f"\\{character}" for character in "&%$#_{}"},
}

_NEEDS = r"% Needs \usepackage{booktabs,tabularx}. It is as wide as \linewidth: a column in table, the page in table*."
_OPENING = r"""{\footnotesize\setlength{\tabcolsep}{3pt}\renewcommand{\_}{\textunderscore\allowbreak}%
\begin{tabularx}{\linewidth}{@{}>{\raggedright\arraybackslash\hyphenpenalty=10000\hangindent=1em}X"""

_FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")
"""What a formula in a spreadsheet begins with; the last ones are wide forms of the first."""


def markdown(text: str) -> str:
    """The text on one line of Markdown, also in a cell of a table."""
    return _ACTIVE.sub(lambda match: f"\\{match[0]}", visible(" ".join(text.split())))


def pipes(texts: Sequence[str], marks: Sequence[str] = ()) -> str:
    """A row of a Markdown table: texts as in :func:`markdown`, the first ones between marks of emphasis."""
    cells = (f"{mark}{markdown(text)}{mark}" for text, mark in itertools.zip_longest(texts, marks, fillvalue=""))
    return f"| {' | '.join(cells)} |"


def latex(text: str) -> str:
    """The text on one line of LaTeX; characters that cannot be printed are spaces."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    escaped = re.sub("[" + re.escape("".join(_SPECIAL)) + "]", lambda match: _SPECIAL[match[0]], printable)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def ampersands(texts: Sequence[str], bold: Sequence[bool] = ()) -> str:
    """A row of a LaTeX table: texts as in :func:`latex`, some of the first ones bold."""
    pairs = itertools.zip_longest(map(latex, texts), bold)
    return " & ".join(rf"\textbf{{{cell}}}" if is_bold else cell for cell, is_bold in pairs) + r" \\"


def tabularx(rows: Sequence[str], numbers: int, text: str) -> str:
    """A LaTeX table: a column of names and columns of numbers; the file ``text`` beside it has its caption."""
    opening = [
        _NEEDS,
        f"% {text} has the caption and the notes. Scripts beyond Latin need XeLaTeX or LuaLaTeX.",
        f"{_OPENING}{'r' * numbers}@{{}}}}",
        r"\toprule",
    ]
    return "\n".join([*opening, *rows, r"\bottomrule", r"\end{tabularx}}"]) + "\n"


def spreadsheet(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV; a text that would be a formula gets an apostrophe in front, a number does not."""
    return csv_text([{_cell(key): _cell(value) for key, value in row.items()} for row in rows])


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\n")  # csv puts a text in quotation marks for \n, and not for \r
    return f"'{text}" if text.startswith(_FORMULA) else text
