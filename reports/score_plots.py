"""Plots of scores: F1 by method, and scores by position in the stream."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.schema import RunRecord
from bench.records.store import read_documents
from reports.board import Board
from reports.origins import summary_of
from reports.rows import CEILING, FLOOR, Row, final_answers, row_of, run_of
from reports.spread import Run, Runs
from reports.statistics import mean_over_streams, run_items, stream_means
from reports.style import (
    BLUE,
    DASHED,
    GREY,
    OTHERS,
    Drawings,
    Plot,
    Points,
    answer_f1,
    band,
    bar,
    board_error,
    clip,
    draw_others,
    from_zero,
    intervals,
    label_rows,
    legend,
    line,
    name_axes,
    no_band,
    off_scale,
    panels,
    score,
    split_floor,
    stream_error_name,
    top_of,
    wrap_labels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("f1_by_method", "f1_by_position", "token_nll_by_position", "token_nll_gain_by_position")

CUT = "a mean beyond the axis is a triangle at its edge"
"""Note on :func:`reports.style.clip`."""

BINS = 10
"""Number of parts into which a stream is divided."""


@dataclass(frozen=True)
class Curve:
    """One row's values in each part of the stream, by run."""

    label: str
    parts: Sequence[Runs]
    documents: int
    """Number of documents along the x axis."""

    def below(self, other: Curve) -> Curve:
        """How far each run is below the mean of another curve over the runs of its stream, if that has any."""
        means = [stream_means(run_items(part)) for part in other.parts]
        parts = [
            {run: mean[run.stream] - value for run, value in part.items() if run.stream in mean}
            for part, mean in zip(self.parts, means, strict=True)
        ]
        return replace(self, parts=parts)

    def points(self) -> Points:
        """The mean over streams at the middle of each part that has values on all of them."""
        size, streams = self.documents / len(self.parts), {run.stream for part in self.parts for run in part}
        whole = [(i, part) for i, part in enumerate(self.parts) if part and {run.stream for run in part} == streams]
        return [((i + 0.5) * size, mean_over_streams(run_items(part))) for i, part in whole]


def drawings(board: Board) -> Drawings:
    """The plots that have data."""
    f1_curves, nll_curves, gain_curves = _curves(board)
    plots: dict[str, Plot] = {}
    if rows := _main_rows(board):
        plots["f1_by_method"] = Plot(
            lambda: _by_method(board, rows),
            f"{answer_f1(board)} of every method",
            [
                intervals("bars", board_error(board)),
                "bold names: not distinguishable from the best, since no method is significantly better"
                if any(row.is_bold for row in rows)
                else "",
                "grey: controls",
                "open: not complete" if any(row.note for row in rows) else "",
                _dashed(row_of(rows, FLOOR) is not None),
            ],
        )
    if f1_curves and board.first_documents is None:
        plots["f1_by_position"] = Plot(
            lambda: _panels(board, f1_curves, "answer F1"),
            "Answer F1 by the position of the question's document in the stream, in ten parts",
            _notes(board, f1_curves),
        )
    if nll_curves:
        plots["token_nll_by_position"] = Plot(
            lambda: _panels(board, nll_curves, "token NLL (nats),\nlower is better", lower_is_better=True),
            "NLL per token along the stream, in ten parts, each token scored before any update on it; lower is better",
            [*_notes(board, nll_curves), CUT],
        )
    if len(gain_curves) > 1:
        gain = f"NLL gain over {FLOOR}\n(nats), higher is better"
        plots["token_nll_gain_by_position"] = Plot(
            lambda: _panels(board, gain_curves, gain, lower_is_better=False),
            f"Token NLL of {FLOOR} minus that of the method along the stream, in ten parts; higher is better",
            [*_notes(board, gain_curves), CUT],
        )
    return plots


def _dashed(drawn: bool) -> str:
    return f"dashed: {FLOOR}, the unadapted model" if drawn else ""


def _notes(board: Board, curves: Curves) -> list[str]:
    shown, floor = split_floor(board, curves)
    return [
        intervals("bands", stream_error_name(board)),
        no_band(board, [curve.points() for curve in shown]),
        _dashed(floor is not None),
        "light lines: the other panels" if len(shown) > 1 else "",
    ]


def _main_rows(board: Board) -> list[Row]:
    """The rows with F1, without the arms in :mod:`reports.arm_plots` other than the placebo."""
    return [row for row in board.rows if "f1" in row.scores and row.arm in ("stream", "placebo")]


def _by_method(board: Board, rows: Sequence[Row]) -> Figure:
    """F1 of the rows as bars, closed book as a line; the ceiling is a number if it is far above the others."""
    from matplotlib.figure import Figure

    far = off_scale(board, rows)
    limit = 1.2 * max((top_of(board, row) for row in rows if row.label not in far), default=1.0) or 1.0
    labels, places, height = wrap_labels([row.title for row in rows])
    figure = Figure(figsize=(3.4, 0.85 + height), layout="constrained")
    axes = figure.add_subplot()
    for y, row in zip(places, rows, strict=True):
        estimate = score(board, row)
        if row.label in far:
            axes.annotate(
                f"{estimate.mean:.3f}",
                xy=(1, y),
                xytext=(0.87, y),
                xycoords=("axes fraction", "data"),
                va="center_baseline",
                ha="right",
                fontsize=6.5,
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.8},
            )
        else:
            bar(axes, y, estimate, GREY if row.control else BLUE, filled=not row.note)
    if (floor := row_of(rows, FLOOR)) is not None:
        axes.axvline(floor.scores["f1"][0].mean, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
        legend(figure, [(FLOOR, GREY, DASHED)])
    label_rows([axes], places, labels, margin=places[0] + 0.5)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if row.is_bold else "normal")
    axes.set_xlim(0, limit)
    meaning = ["bold: not distinguishable from the best"] if any(row.is_bold for row in rows) else []
    name_axes(figure, answer_f1(board), "", [board_error(board), *meaning])
    return figure


def _panels(board: Board, curves: Curves, ylabel: str, lower_is_better: bool | None = None) -> Figure:
    """One small panel for each curve on shared axes; the curve of the unadapted model, if any, is dashed in each.

    ``lower_is_better`` says which end of the axis may be clipped; without it the scores are from 0 to 1.
    """
    shown, floor = split_floor(board, curves)
    points = [curve.points() for curve in shown]
    figure, grid = panels([curve.label for curve in shown])
    for axes, curve, of in zip(grid, shown, points, strict=True):
        if floor is not None:
            line(axes, floor.points(), GREY, DASHED)
        band(axes, of)
        axes.set_xlim(0, curve.documents)
    draw_others(grid, points)
    clipped = ""
    if lower_is_better is None:
        from_zero(grid[0])
    else:
        clipped = clip(grid, points, lower_is_better)
    legend(figure, [*([] if floor is None else [(FLOOR, GREY, DASHED)]), *([OTHERS] if len(shown) > 1 else [])])
    notes = [stream_error_name(board), clipped]
    name_axes(figure, "document's position in the stream", ylabel, notes)
    return figure


Curves = Mapping[str, Curve]
"""Curves by the label of the row."""


def _curves(board: Board) -> tuple[Curves, Curves, Curves]:
    """Curves of F1, of token NLL, and of how far it is below that of the unadapted model.

    The ceiling and control arms have no curves: their scores do not depend on the position. All curves of a score have
    the same parts: ten, or those that are documents if there are fewer. Texts that are cut always have ten.
    """
    rows = [row for row in board.rows if row.arm == "stream" and row.method != CEILING]
    documents = max((row.documents for row in rows), default=0)
    cut = any(record.spec.segment_tokens is not None for row in rows for record in row.records)
    f1_curves: dict[str, Curve] = {}
    nll_curves: dict[str, Curve] = {}
    for row in rows:
        if answers := [value for record in row.records for value in _answer_values(row.runs, record)]:
            f1_curves[row.label] = Curve(row.title, binned(answers, min(BINS, documents)), documents)
        if texts := [value for record in row.records for value in _text_values(row.runs, record)]:
            parts = BINS if cut else min(BINS, documents)
            nll_curves[row.label] = Curve(row.title, binned(texts, parts), documents)
    floor = nll_curves.get(board.floor.label) if board.floor else None
    gains = {label: curve.below(floor) for label, curve in nll_curves.items()} if floor else {}
    return f1_curves, nll_curves, {label: curve for label, curve in gains.items() if any(curve.parts)}


class Value(NamedTuple):
    """A scored answer, document or segment."""

    run: Run
    place: Fraction
    """Share of what is on the x axis that is before it."""
    total: float
    """The score times the weight."""
    weight: float


def _answer_values(runs: Path, record: RunRecord) -> Iterator[Value]:
    """F1 of each answer, at the question's document."""
    documents = summary_of(record).documents
    for event in final_answers(runs, record):
        yield Value(run_of(record), Fraction(event.position, documents), event.f1, 1.0)


def _text_values(runs: Path, record: RunRecord) -> Iterator[Value]:
    """Total NLL and number of tokens of each scored document or, if the experiment cuts documents, segment.

    A segment is at its share of its document, since methods may cut it differently.
    """
    events, documents = read_documents(runs, record.id), summary_of(record).documents
    cut = record.spec.segment_tokens is not None
    segments = Counter(event.position for event in events)
    for event in events:
        if event.nll is not None:
            within = Fraction(event.segment if cut else 0, segments[event.position])
            yield Value(run_of(record), (event.position + within) / documents, event.nll, event.tokens)


def binned(values: Iterable[Value], parts: int) -> list[dict[Run, float]]:
    """Weighted mean of each run in each part; a run without values in a part is not in it."""
    sums: list[dict[Run, list[float]]] = [defaultdict(lambda: [0.0, 0.0]) for _ in range(parts)]
    for value in values:
        of_run = sums[int(value.place * parts)][value.run]
        of_run[0] += value.total
        of_run[1] += value.weight
    return [{run: total / weight for run, (total, weight) in sorted(part.items()) if weight} for part in sums]
