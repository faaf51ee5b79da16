"""Plots of token weights: one document with its weights, and the distribution of weights by class."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import TokenEvent
from reports.board import Board
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    WIDTH,
    Drawings,
    bar,
    heading,
    label_rows,
    name_axes,
    panels,
    stream_error_name,
    title,
)
from reports.token_weights import CLASSES, RowWeights, row_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCUMENT = "token_weights"
NAMES = (DOCUMENT, "token_weight_histogram", "token_weights_by_class")

COLOURS = {"fact": ORANGE, "name": BLUE, "filler": GREY}
DARK = "#444444"
COLUMNS = 112
"""Characters on a line of the plotted document."""
LINES = 8
"""Maximum number of lines of the plotted document."""
BINS = 24
TAGS = 10
"""Maximum number of parts of speech in a plot; the most frequent ones are plotted."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plots, if a method on the board weights tokens. Published records have no text of a document to draw."""
    if not (all_weights := row_weights(board, runs)):
        return {}
    return {
        **({DOCUMENT: lambda: _document(all_weights)} if _have_text(all_weights) else {}),
        "token_weight_histogram": lambda: _histogram(all_weights),
        "token_weights_by_class": lambda: _by_class(board, all_weights),
    }


def _have_text(all_weights: Sequence[RowWeights]) -> bool:
    return all(event.pieces for event in select_document(all_weights).values())


class Piece(NamedTuple):
    """A token of the document with its place on the page."""

    token: int
    line: int
    column: int
    text: str


def lay_out(pieces: Sequence[str], columns: int = COLUMNS, lines: int = LINES) -> list[Piece]:
    """The tokens in lines that break before white space; tokens that do not fit into the last line are left out."""
    layout: list[Piece] = []
    line = column = 0
    for word in _words(pieces):
        length = sum(len(text) for _, text in word)
        if column and column + length > columns:
            line, column = line + 1, 0
        if line == lines:
            break
        for token, text in word:
            visible = text.lstrip() if column == 0 else text
            layout.append(Piece(token, line, column, visible))
            column += len(visible)
    return layout


def _words(pieces: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Tokens with their text, white space as blanks, grouped by word."""
    word: list[tuple[int, str]] = []
    for token, piece in enumerate(pieces):
        text = "".join(" " if character.isspace() else character for character in piece)
        if word and (text[:1] == " " or word[-1][1].endswith(" ")):
            yield word
            word = []
        word.append((token, text))
    if word:
        yield word


def select_document(all_weights: Sequence[RowWeights]) -> dict[str, TokenEvent]:
    """The events of one document of the first stream, by the label of the row.

    Of the documents weighted by most rows it is the shortest with a fact.
    """
    stream = min(itertools.chain.from_iterable(weights.events for weights in all_weights))
    by_position: dict[int, dict[str, TokenEvent]] = defaultdict(dict)
    for weights in all_weights:
        for event in weights.events.get(stream, ()):
            by_position[event.position][weights.row.label] = event

    def order(position: int) -> tuple[int, bool, int, int]:
        any_event = next(iter(by_position[position].values()))
        return -len(by_position[position]), "fact" not in any_event.classes, len(any_event.weights), position

    return by_position[min(by_position, key=order)]


def _document(all_weights: Sequence[RowWeights]) -> Figure:
    """The document once for each method; a bar above each token and its shade show weight / largest weight.

    Facts and names are underlined, so they are visible without weight too.
    """
    from matplotlib.figure import Figure

    events = select_document(all_weights)
    titles = {weights.row.label: title(weights.row) for weights in all_weights}
    layouts = {label: lay_out(event.pieces) for label, event in events.items()}
    line, above, foot = 0.27, 0.24, 0.22  # inches
    heights = {label: above + line * (1 + layout[-1].line) for label, layout in layouts.items()}
    total = sum(heights.values()) + foot
    figure = Figure(figsize=(WIDTH, total))
    top = total
    for label, event in events.items():
        top -= heights[label]
        axes = figure.add_axes((0.01, top / total, 0.98, (heights[label] - above) / total))
        _weighted_text(axes, event, layouts[label])
        axes.set_title(titles[label], loc="left", pad=3)
    for x, kind in zip((0.01, 0.09, 0.19), CLASSES, strict=True):
        figure.text(x, 0.06 / total, f"■ {kind}", color=COLOURS[kind], fontsize=7)
    figure.text(
        0.99,
        0.06 / total,
        "bar and shade: weight / the method's largest weight in this document",
        ha="right",
        fontsize=7,
    )
    return figure


def _weighted_text(axes: Axes, event: TokenEvent, layout: Sequence[Piece]) -> None:
    size = 0.98 * WIDTH * 72 / COLUMNS / 0.602  # the width of a character of DejaVu Sans Mono is 0.602 of its size
    largest = max(max(event.weights), 0) or 1
    for piece in layout:
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
    axes.set_ylim(1 + layout[-1].line, 0)
    axes.set_axis_off()


def _histogram(all_weights: Sequence[RowWeights]) -> Figure:
    """Histograms of the weights by class, one panel for each method, with a logarithmic axis of counts."""
    figure, grid = panels(len(all_weights), sharex=False, height=1.5)
    for axes, weights in zip(grid, all_weights, strict=True):
        highest = max(max(stream.weights) for stream in weights.streams)
        lowest = min(0.0, *(min(stream.weights) for stream in weights.streams))
        edges = [lowest + (highest - lowest or 1) * i / BINS for i in range(BINS + 1)]
        for kind in reversed(CLASSES):
            values = [value for stream in weights.streams for value in stream.of(kind)]
            axes.hist(values, edges, histtype="step", color=COLOURS[kind], label=kind)
        axes.set_yscale("log")
        heading(axes, title(weights.row))
    grid[0].set_ylim(bottom=0.5)  # shared by all panels; a single token is visible
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper right", ncols=3, frameon=False, fontsize=7)
    name_axes(figure, "weight of a token", "tokens")
    return figure


def _by_class(board: Board, all_weights: Sequence[RowWeights]) -> Figure:
    """Mean weight of each class and, if known, part of speech, relative to the mean weight of all tokens."""
    counts = Counter(tag for weights in all_weights for stream in weights.streams for tag in stream.pos)
    tags = [tag for tag, _ in counts.most_common(TAGS)]
    kinds: list[str] = [*CLASSES, *tags]
    places = [y + 0.5 * (kind in tags) for y, kind in enumerate(kinds)]
    figure, grid = panels(len(all_weights), height=0.3 + 0.16 * len(kinds))
    for axes, weights in zip(grid, all_weights, strict=True):
        for y, kind in zip(places, kinds, strict=True):
            if (estimate := weights.relative(kind)) is not None:
                bar(axes, y, estimate, COLOURS.get(kind, DARK))
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
        heading(axes, title(weights.row))
    label_rows(grid, places, kinds, margin=0.6)
    name_axes(figure, f"mean weight relative to all tokens ({stream_error_name(len(board.streams))})", "")
    return figure
