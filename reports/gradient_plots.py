"""Plot of gradients: how hard each token of a document pulls on the weights, before and after it is weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.records.schema import TokenClass, TokenEvent
from reports.board import Board
from reports.style import WIDTH, Drawings, Plot, heading, legend, name_axes
from reports.token_plots import COLOURS
from reports.token_weights import CLASSES, RowWeights, on_first_stream, row_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCUMENT = "gradient_norms"
NAMES = (DOCUMENT,)
TOKENS = 60
"""Maximum number of tokens that are shown."""


def drawings(board: Board) -> Drawings:
    """The plot, if a method weights tokens and gradients were recorded. Published records have no text to draw."""
    rows = [weights for weights in row_weights(board) if weights.row.arm == "stream"]
    found = first_documents(rows)
    if not found:
        return {}
    return {
        DOCUMENT: Plot(
            lambda: _draw(found),
            "Share of each token in the gradients of the first document of a stream, before and after weighting",
            [
                "line: norm of the gradient of the token's -log p, over the sum of these norms over the document",
                "bar: the same, with each norm times the weight of its token",
                f"at most {TOKENS} tokens are shown: those around the most tokens of facts",
            ],
        )
    }


def first_documents(all_weights: Sequence[RowWeights]) -> list[tuple[RowWeights, TokenEvent]]:
    """The first document of the first stream, with each row that has its gradients and its text."""
    return [
        (weights, event)
        for weights, events in on_first_stream(all_weights)
        for event in events
        if event.position == 0 and event.gradient_norms is not None and event.pieces
    ]


def shares(event: TokenEvent) -> tuple[list[float], list[float]]:
    """Each token's share of the document's gradient norms, before and after weighting. All 0 if the norms are."""
    norms = event.gradient_norms or ()
    weighted = [max(weight, 0.0) * norm for weight, norm in zip(event.weights, norms, strict=True)]
    return _of_sum(norms), _of_sum(weighted)


def on_class(event: TokenEvent, kind: TokenClass) -> tuple[float, float]:
    """The shares of all tokens of a class together, before and after weighting."""
    of_kind = [other == kind for other in event.classes]
    before, after = (sum(share for share, own in zip(of, of_kind, strict=True) if own) for of in shares(event))
    return before, after


def _of_sum(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def shown(classes: Sequence[TokenClass], most: int = TOKENS) -> range:
    """The tokens to show: the first of the stretches of ``most`` tokens that have the most tokens of facts."""
    starts = range(max(1, len(classes) - most + 1))
    start = max(starts, key=lambda i: (sum(kind == "fact" for kind in classes[i : i + most]), -i))
    return range(start, min(len(classes), start + most))


def _draw(found: Sequence[tuple[RowWeights, TokenEvent]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 0.9 + 0.95 * len(found)), layout="constrained")
    grid = list(figure.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False).flat)
    tokens = shown(found[0][1].classes)
    for axes, (weights, event) in zip(grid, found, strict=True):
        _panel(axes, event, tokens)
        before, after = on_class(event, "fact")
        heading(axes, f"{weights.row.title}: facts have {before:.0%} of the gradients before, {after:.0%} after")
    _label(grid[-1], found[0][1], tokens)
    legend(
        figure, [*((f"{kind}, weighted", COLOURS[kind], "-") for kind in CLASSES), ("before weighting", "black", "-")]
    )
    name_axes(figure, "token", "share of the document's\ngradient norms")
    return figure


def _panel(axes: Axes, event: TokenEvent, tokens: range) -> None:
    before, after = shares(event)
    places = list(range(len(tokens)))
    axes.bar(places, [after[i] for i in tokens], 0.8, color=[COLOURS[event.classes[i]] for i in tokens])
    edges = [-0.5, *(place + 0.5 for place in places)]
    axes.tick_params(axis="x", length=0, labelsize=6)
    axes.stairs([before[i] for i in tokens], edges, color="black", linewidth=0.6)


def _label(axes: Axes, event: TokenEvent, tokens: range) -> None:
    axes.set_xticks(range(len(tokens)), [event.pieces[i].strip() for i in tokens], rotation=90, parse_math=False)
    axes.set_xlim(-0.6, len(tokens) - 0.4)
    for label, i in zip(axes.get_xticklabels(), tokens, strict=True):
        label.set_color(COLOURS[event.classes[i]] if event.classes[i] != "filler" else "black")
