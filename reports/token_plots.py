"""Plots of token weights: one document as methods weigh it, and how the weights are distributed."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import TokenEvent
from reports.board import Board
from reports.statistics import Estimate
from reports.style import BLUE, DASHED, GREY, ORANGE, WIDTH, Drawings, error, heading, name_axes, panels, title
from reports.token_weights import CLASSES, Weighing, weighings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("token_weights", "token_weight_histogram", "token_weights_by_class")

COLOURS = {"fact": ORANGE, "name": BLUE, "filler": GREY}
DARK = "#444444"
COLUMNS = 112
"""Characters on a line of the document that is shown."""
LINES = 8
"""Lines of it that are shown at most."""
BINS = 24
TAGS = 10
"""Parts of speech that are shown: the most frequent."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots of the board's weighings, if there are any."""
    found = weighings(board, runs)
    draw: Drawings = {
        "token_weights": lambda: _document(found),
        "token_weight_histogram": lambda: _histogram(found),
        "token_weights_by_class": lambda: _by_class(board, found),
    }
    return draw if found else {}


class Piece(NamedTuple):
    """Where a token of the document stands on the page."""

    token: int
    line: int
    column: int
    text: str


def lay_out(pieces: Sequence[str], columns: int = COLUMNS, lines: int = LINES) -> list[Piece]:
    """The tokens set in lines, broken before white space; what does not fit into the last line is left out."""
    placed: list[Piece] = []
    line = column = 0
    for word in _words(pieces):
        length = sum(len(text) for _, text in word)
        if column and column + length > columns:
            line, column = line + 1, 0
        if line == lines:
            break
        for token, text in word:
            shown = text.lstrip() if column == 0 else text
            placed.append(Piece(token, line, column, shown))
            column += len(shown)
    return placed


def _words(pieces: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Tokens with their text on one line, those of a word together."""
    word: list[tuple[int, str]] = []
    for token, piece in enumerate(pieces):
        text = "".join(" " if character.isspace() else character for character in piece)
        if word and (text[:1] == " " or word[-1][1].endswith(" ")):
            yield word
            word = []
        word.append((token, text))
    if word:
        yield word


def shown_document(found: Sequence[Weighing]) -> dict[str, TokenEvent]:
    """A document of the first stream as each label weighs it: of those that most weigh, the shortest with a fact."""
    stream = min(itertools.chain.from_iterable(weighing.events for weighing in found))
    by_position: dict[int, dict[str, TokenEvent]] = defaultdict(dict)
    for weighing in found:
        for event in weighing.events.get(stream, ()):
            by_position[event.position][weighing.row.label] = event

    def order(position: int) -> tuple[int, bool, int, int]:
        any_event = next(iter(by_position[position].values()))
        return -len(by_position[position]), "fact" not in any_event.classes, len(any_event.pieces), position

    return by_position[min(by_position, key=order)]


def _document(found: Sequence[Weighing]) -> Figure:
    """The document once for each method, a bar over each token and a shade behind it: weight / largest weight.

    Facts and names are underlined, so that one without weight is seen too.
    """
    from matplotlib.figure import Figure

    shown = shown_document(found)
    titles = {weighing.row.label: title(weighing.row) for weighing in found}
    layouts = {name: lay_out(event.pieces) for name, event in shown.items()}
    line, above, foot = 0.27, 0.24, 0.22  # inches
    heights = {name: above + line * (1 + placed[-1].line) for name, placed in layouts.items()}
    total = sum(heights.values()) + foot
    figure = Figure(figsize=(WIDTH, total))
    top = total
    for name, event in shown.items():
        top -= heights[name]
        axes = figure.add_axes((0.01, top / total, 0.98, (heights[name] - above) / total))
        _weighed_text(axes, event, layouts[name])
        axes.set_title(titles[name], loc="left", pad=3)
    for x, kind in zip((0.01, 0.09, 0.19), CLASSES, strict=True):
        figure.text(x, 0.06 / total, f"■ {kind}", color=COLOURS[kind], fontsize=7)
    figure.text(0.99, 0.06 / total, "bar and shade: weight / the method's largest here", ha="right", fontsize=7)
    return figure


def _weighed_text(axes: Axes, event: TokenEvent, placed: Sequence[Piece]) -> None:
    size = 0.98 * WIDTH * 72 / COLUMNS / 0.602  # a character of DejaVu Sans Mono is 0.602 of its size wide
    largest = max(max(event.weights), 0) or 1
    for piece in placed:
        share, colour = max(event.weights[piece.token], 0) / largest, COLOURS[event.classes[piece.token]]
        lead = len(piece.text) - len(piece.text.lstrip())
        left, width = piece.column + lead, len(piece.text) - lead
        axes.bar(left, -0.4 * share, width, piece.line + 0.46, align="edge", color=colour, linewidth=0)
        axes.bar(left, 0.5, width, piece.line + 0.48, align="edge", color=colour, alpha=0.5 * share, linewidth=0)
        if event.classes[piece.token] != "filler":
            axes.plot([left, left + width], [piece.line + 0.97] * 2, color=colour, linewidth=1, solid_capstyle="butt")
        axes.text(
            left, piece.line + 0.86, piece.text[lead:], family="DejaVu Sans Mono", fontsize=size, parse_math=False
        )
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(1 + placed[-1].line, 0)
    axes.set_axis_off()


def _histogram(found: Sequence[Weighing]) -> Figure:
    """How many tokens of each class have which weight: one panel a method, on a logarithmic axis of counts."""
    figure, grid = panels(len(found), sharex=False, height=1.5)
    for axes, weighing in zip(grid, found, strict=True):
        highest = max(max(stream.weights) for stream in weighing.streams)
        lowest = min(0.0, *(min(stream.weights) for stream in weighing.streams))
        edges = [lowest + (highest - lowest or 1) * i / BINS for i in range(BINS + 1)]
        for kind in reversed(CLASSES):
            values = [value for stream in weighing.streams for value in stream.of(kind)]
            axes.hist(values, edges, histtype="step", color=COLOURS[kind], label=kind)
        axes.set_yscale("log")
        heading(axes, title(weighing.row))
    grid[0].set_ylim(bottom=0.5)  # shared by all: a single token shows
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    name_axes(figure, "weight of a token", "tokens")
    return figure


def _by_class(board: Board, found: Sequence[Weighing]) -> Figure:
    """Mean weight of each class, and of each part of speech where it is known, with the mean of all tokens as 1."""
    counts = Counter(tag for weighing in found for stream in weighing.streams for tag in stream.pos)
    tags = [tag for tag, _ in counts.most_common(TAGS)]
    rows: list[str] = [*CLASSES, *tags]
    places = [y + 0.5 * (name in tags) for y, name in enumerate(rows)]
    figure, grid = panels(len(found), height=0.3 + 0.16 * len(rows))
    for axes, weighing in zip(grid, found, strict=True):
        for y, name in zip(places, rows, strict=True):
            if (estimate := weighing.relative(name)) is not None:
                _bar(axes, y, estimate, COLOURS.get(name, DARK))
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
        heading(axes, title(weighing.row))
    grid[0].set_yticks(places, rows)
    grid[0].set_ylim(places[-1] + 0.6, -0.6)
    for axes in grid:
        axes.tick_params(axis="y", length=0)
    name_axes(figure, f"mean weight, of all tokens 1 ({error(board)})", "")
    return figure


def _bar(axes: Axes, y: float, estimate: Estimate, colour: str) -> None:
    axes.barh(y, estimate.mean, height=0.62, color=colour)
    if estimate.se is not None:
        axes.errorbar(estimate.mean, y, xerr=estimate.se, color="black", linewidth=0.8, capsize=1.5)
