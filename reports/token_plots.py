"""Plots of token weights: one document with its weights, and the distribution of weights by class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import TokenEvent, mean
from reports.board import Board
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    WIDTH,
    Drawings,
    Plot,
    bar,
    intervals,
    label_rows,
    legend,
    name_axes,
    panels,
    stream_error_name,
)
from reports.token_weights import CLASSES, RowWeights, on_first_stream, row_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCUMENT = "token_weights"
NAMES = (DOCUMENT, "token_weight_histogram", "token_weights_by_class")

COLOURS = {"fact": ORANGE, "name": BLUE, "filler": GREY}
COLOUR_NAMES = {"fact": "orange", "name": "blue", "filler": "grey"}
MEAN = "dashed: the mean of all tokens"
DARK = "#444444"
COLUMNS = 112
"""Characters on a line of the plotted document."""
LINES = 8
"""Maximum number of lines of the plotted document."""
BINS = 24
TAGS = 10
"""Maximum number of parts of speech in a plot; the most frequent ones are plotted."""


def drawings(board: Board) -> Drawings:
    """The plots, if a method on the board weights tokens. Published and imported records have no text to draw."""
    all_weights = row_weights(board)
    if not all_weights:
        return {}
    with_text = list(filter(_have_text, all_weights))
    document = Plot(
        lambda: _document(with_text),
        "One document with the token weights of each method",
        [
            "bar above a token and shade: its weight over the method's largest one in this document",
            *(f"{COLOUR_NAMES[kind]}: {kind}" for kind in CLASSES),
            "facts and names are underlined",
        ],
    )
    return {
        **({DOCUMENT: document} if with_text else {}),
        "token_weight_histogram": Plot(
            lambda: _histogram(all_weights),
            "Distribution of the token weights of facts, of names and of the rest, each class with an area of 1",
            ["weights are relative to the method's mean weight", "the axis of densities is logarithmic", MEAN],
        ),
        "token_weights_by_class": Plot(
            lambda: _by_class(board, all_weights),
            "Mean token weight of facts, of names, of the rest and, if a tagger is installed, of parts of speech, "
            "relative to the mean weight of all tokens",
            [intervals("bars", stream_error_name(board)), MEAN],
        ),
    }


def _have_text(weights: RowWeights) -> bool:
    return all(event.pieces for events in weights.events.values() for event in events)


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
    """The events of one document of the first stream, by the label of the row; of several seeds the first.

    Of the documents weighted by most rows it is the shortest with a fact.
    """
    by_position: dict[int, dict[str, TokenEvent]] = defaultdict(dict)
    for weights, events in on_first_stream(all_weights):
        for event in events:
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
    titles = {weights.row.label: weights.row.title for weights in all_weights}
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
        axes.set_title(titles[label], loc="left", pad=3, parse_math=False)
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
    """Densities of the weights by class, one panel for each method, on shared axes; that of densities is logarithmic.

    Weights are in units of the method's mean weight, so that methods can be compared.
    """
    figure, grid = panels([weights.row.title for weights in all_weights], height=1.5)
    values = [_relative(weights) for weights in all_weights]
    all_values = [value for of in values for kind in of.values() for value in kind]
    lowest, highest = min(0.0, *all_values), max(all_values)
    width = (highest - lowest or 1.0) / BINS
    edges = [lowest + width * i for i in range(BINS + 1)]
    for axes, of in zip(grid, values, strict=True):
        for kind in reversed(CLASSES):
            if of[kind]:
                axes.hist(of[kind], edges, density=True, histtype="step", color=COLOURS[kind])
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
        axes.set_yscale("log")
    grid[0].set_ylim(1e-4 / width, 1.5 / width)  # from one token in ten thousand to all
    legend(figure, [*((kind, COLOURS[kind], "-") for kind in CLASSES), ("mean of all tokens", GREY, DASHED)])
    name_axes(figure, "weight of a token relative to the method's mean", "density within a class\n(log scale)")
    return figure


def _relative(weights: RowWeights) -> dict[str, list[float]]:
    """The weights of each class in units of the mean weight of all tokens, which may be 0."""
    runs = weights.runs.values()
    unit = mean([weight for run in runs for weight in run.weights]) or 1.0
    return {kind: [weight / unit for run in runs for weight in run.of(kind)] for kind in CLASSES}


def _by_class(board: Board, all_weights: Sequence[RowWeights]) -> Figure:
    """Mean weight of each class and, if known, part of speech, relative to the mean weight of all tokens."""
    counts = Counter(tag for weights in all_weights for run in weights.runs.values() for tag in run.pos)
    tags = [tag for tag, _ in counts.most_common(TAGS)]
    kinds: list[str] = [*CLASSES, *tags]
    places = [y + 0.5 * (kind in tags) for y, kind in enumerate(kinds)]
    figure, grid = panels([weights.row.title for weights in all_weights], height=0.3 + 0.16 * len(kinds))
    for axes, weights in zip(grid, all_weights, strict=True):
        for y, kind in zip(places, kinds, strict=True):
            if (estimate := weights.relative(kind)) is not None:
                bar(axes, y, estimate, COLOURS.get(kind, DARK), digits=2)
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
    label_rows(grid, places, kinds, margin=0.6)
    grid[0].set_xlim(right=1.2 * grid[0].get_xlim()[1])  # room for the values
    legend(figure, [("mean of all tokens", GREY, DASHED)])
    name_axes(figure, "mean weight relative to all tokens", "", [stream_error_name(board)])
    return figure
