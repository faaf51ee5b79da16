"""Plots of a board, for a paper's page: PDF, SVG and PNG, the same bytes for the same records."""

from __future__ import annotations

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.record_files import read_documents, write_bytes
from bench.records import RunRecord
from bench.statistics import Estimate, stream_error
from reports.board import CEILING, Board, load
from reports.rows import FLOOR, Row, final_answers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("f1_by_method", "f1_by_position", "token_nll_by_position", "token_nll_gain_by_position")
FORMATS = ("pdf", "svg", "png")
FILES = tuple(f"{name}.{ending}" for name in NAMES for ending in FORMATS)

BINS = 10
"""Parts into which the positions of a stream are put."""
BLUE, GREY = "#0072B2", "#8C8C8C"  # distinct to colour-blind readers too
DASHED = (0, (4, 3))
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,  # text that a publisher can embed and a reader can search
    "svg.hashsalt": "online-adaptation-bench",
}


@dataclass(frozen=True)
class Curve:
    """One row's values in each part of the stream, by stream; None where a part has nothing."""

    label: str
    by_stream: Mapping[str, Sequence[float | None]]
    units: int
    """Positions that the longest stream has."""
    unit: str
    """What a position counts: documents, or the segments that they are cut into."""

    def minus(self, other: Curve) -> Curve:
        """The difference to another curve, stream by stream, over the streams of both."""
        pairs = {
            name: (self.by_stream[name], other.by_stream[name]) for name in self.by_stream.keys() & other.by_stream
        }
        return Curve(
            self.label,
            {
                name: [None if x is None or y is None else x - y for x, y in zip(*pair, strict=True)]
                for name, pair in sorted(pairs.items())
            },
            self.units,
            self.unit,
        )

    def points(self) -> tuple[list[float], list[Estimate]]:
        """Middle of each part (units seen) and the mean over streams with SE_stream, of the parts that have any."""
        size = self.units / len(next(iter(self.by_stream.values())))
        found = []
        for part, values in enumerate(zip(*self.by_stream.values(), strict=True)):
            if present := [value for value in values if value is not None]:
                found.append(((part + 0.5) * size, stream_error(present)))
        return [x for x, _ in found], [estimate for _, estimate in found]


def write(board: Board, runs: Path, out: Path) -> list[Path]:
    """Draw what the records allow, remove plots that they no longer allow; returns the files written."""
    import matplotlib

    written = []
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # whatever the user's own configuration is
    with matplotlib.rc_context(style):
        drawn = _figures(board, runs)
        for name in NAMES:
            for ending in FORMATS:
                path = out / f"{name}.{ending}"
                if name in drawn:
                    picture = io.BytesIO()
                    drawn[name].savefig(picture, format=ending, dpi=300, metadata=_NO_DATE[ending])
                    write_bytes(path, picture.getvalue())
                    written.append(path)
                else:
                    path.unlink(missing_ok=True)
    return written


def due(board: Board, runs: Path) -> set[str]:
    """Names of the files that :func:`write` would write."""
    return {f"{name}.{ending}" for name in _drawable(board, _curves(board, runs)) for ending in FORMATS}


_NO_DATE: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {"Software": None},
}


def _figures(board: Board, runs: Path) -> dict[str, Figure]:
    """The plots that have something to show, by name."""
    curves = _curves(board, runs)
    draw = {
        "f1_by_method": lambda: _by_method(board),
        "f1_by_position": lambda: _panels(board, curves["f1"], "answer F1", bottom=0),
        "token_nll_by_position": lambda: _panels(board, curves["token_nll"], "token NLL (nats)"),
        "token_nll_gain_by_position": lambda: _panels(board, curves["gain"], f"token NLL (nats)\nminus {_name(FLOOR)}"),
    }
    return {name: draw[name]() for name in _drawable(board, curves)}


def _drawable(board: Board, curves: Curves) -> list[str]:
    drawable = {
        "f1_by_method": any("f1" in row.scores for row in board.rows),
        "f1_by_position": bool(curves["f1"]),
        "token_nll_by_position": bool(curves["token_nll"]),
        "token_nll_gain_by_position": len(curves["gain"]) > 1,  # another than the unadapted model itself
    }
    return [name for name in NAMES if drawable[name]]


def _by_method(board: Board) -> Figure:
    """F1 of every row with SE_stream, the closed book as a line; a ceiling far above is a number, not a bar."""
    from matplotlib.figure import Figure

    rows = [row for row in board.rows if "f1" in row.scores]
    tops = {row.label: _top(board, row) for row in rows}
    others = max((tops[row.label] for row in rows if row.method != CEILING), default=0.0)
    far = {row.label for row in rows if row.method == CEILING and tops[row.label] > 2 * others > 0}
    limit = 1.08 * max((top for label, top in tops.items() if label not in far), default=1.0) or 1.0
    labels = [textwrap.fill(_title(row), 30) for row in rows]
    height = 0.2 * max(1 + 0.6 * label.count("\n") for label in labels)
    figure = Figure(figsize=(3.4, 0.45 + height * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        estimate = _f1(board, row)
        if row.label in far:
            axes.annotate(
                f"{estimate.mean:.2f}",
                xy=(1, y),
                xytext=(0.87, y),
                xycoords=("axes fraction", "data"),
                va="center",
                ha="right",
                color=GREY,
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.8},
            )
            continue
        colour = GREY if row.control else BLUE
        axes.barh(y, estimate.mean, height=0.62, color="white" if row.note else colour, edgecolor=colour)
        if estimate.se is not None:
            axes.errorbar(estimate.mean, y, xerr=estimate.se, color="black", linewidth=0.8, capsize=1.5)
    floor = next((row for row in rows if row.method == FLOOR and row.arm == "stream"), None)
    if floor is not None:
        axes.axvline(floor.scores["f1"][0].mean, color=GREY, linewidth=0.8, linestyle=DASHED, zorder=0)
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, limit)
    errors = _error(board) if board.error == "SE_stream" else "± SE_doc, one stream"
    figure.supxlabel(f"answer F1 ({errors})", fontsize=8)
    return figure


def _panels(board: Board, curves: Mapping[str, Curve], ylabel: str, bottom: float | None = None) -> Figure:
    """One small panel for each curve, all on the same axes, each with the unadapted model's, if any, dashed."""
    from matplotlib.figure import Figure

    beside = curves.get(FLOOR)
    shown = [curve for curve in curves.values() if curve is not beside] or list(curves.values())
    across = min((4, 3), key=lambda n: (-len(shown) % n, -n)) if len(shown) > 4 else len(shown)
    down = math.ceil(len(shown) / across)
    width = min(6.9, 1.2 + 2.1 * across)
    figure = Figure(figsize=(width, 0.45 + 1.35 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(shown):
            axes.set_axis_off()
            continue
        if beside is not None:
            axes.plot(*_xy(beside), color=GREY, linewidth=0.8, linestyle=DASHED)
        _band(axes, shown[index])
        axes.set_title(textwrap.fill(shown[index].label, 26), loc="left", pad=2)
        if index + across >= len(shown):
            axes.tick_params(labelbottom=True)
        axes.set_xlim(0, shown[index].units)
    if bottom is not None:
        grid[0, 0].set_ylim(bottom=bottom)  # shared by all; after drawing, so that the top still fits the highest
    dashed = "" if beside is None else f"; dashed: {_name(FLOOR)}"
    label = f"{shown[0].unit}'s position in the stream ({_error(board)}{dashed})"
    figure.supxlabel(textwrap.fill(label, round(15 * width)), fontsize=8)
    figure.supylabel(ylabel, fontsize=8)
    return figure


def _band(axes: Axes, curve: Curve) -> None:
    x, estimates = curve.points()
    axes.plot(*_xy(curve), color=BLUE, marker="o", markersize=2)
    lows = [estimate.mean - (estimate.se or 0) for estimate in estimates]
    highs = [estimate.mean + (estimate.se or 0) for estimate in estimates]
    axes.fill_between(x, lows, highs, color=BLUE, alpha=0.25, linewidth=0)


def _xy(curve: Curve) -> tuple[list[float], list[float]]:
    x, estimates = curve.points()
    return x, [estimate.mean for estimate in estimates]


Curves = Mapping[str, Mapping[str, Curve]]
"""Curves by what they show and by label."""


def _curves(board: Board, runs: Path) -> Curves:
    """Curves of the board's rows. The ceiling and placebo arms have none: nothing there depends on position."""
    groups, _, _ = load(runs, board.experiment)
    curves: dict[str, dict[str, Curve]] = {"f1": {}, "token_nll": {}, "gain": {}}
    for row in board.rows:
        if row.arm != "stream" or row.method == CEILING or not row.streams:
            continue
        records = next(g for g in groups if (g.method, g.config, g.arm) == (row.method, row.config, row.arm)).complete()
        documents = max((record.summary.documents for record in records if record.summary), default=0)
        answers = [(record.spec.stream, *found) for record in records for found in _answers(runs, record)]
        tokens = [(record.spec.stream, *found) for record in records for found in _tokens(runs, record)]
        cut = records[0].spec.segment_tokens is not None
        scored = max((position + 1 for _, position, *_ in tokens), default=0) if cut else documents
        for score, found, units, unit in (
            ("f1", answers, documents, "document"),
            ("token_nll", tokens, scored, "segment" if cut else "document"),
        ):
            if found:
                curves[score][row.label] = Curve(_title(row), _binned(found, units), units, unit)
    if floor := curves["token_nll"].get(FLOOR):
        gains = {label: curve.minus(floor) for label, curve in curves["token_nll"].items()}
        curves["gain"] = {label: curve for label, curve in gains.items() if curve.by_stream}
    return curves


def _answers(runs: Path, record: RunRecord) -> Iterable[tuple[int, float, float]]:
    """Position, score and weight of each answer."""
    return ((event.position, event.f1, 1.0) for event in final_answers(runs, record))


def _tokens(runs: Path, record: RunRecord) -> Iterable[tuple[int, float, float]]:
    """Position, summed NLL and tokens of each document or segment that was scored."""
    events = [event for event in read_documents(runs, record.id) if event.nll is not None]
    cut = record.spec.segment_tokens is not None
    return ((i if cut else event.position, event.nll or 0.0, event.tokens) for i, event in enumerate(events))


def _binned(found: Iterable[tuple[str, int, float, float]], units: int) -> dict[str, list[float | None]]:
    """Ratio of the values' sum to the weights' sum in each part of each stream; several seeds fall together."""
    parts = min(BINS, units)
    sums: dict[str, list[list[float]]] = defaultdict(lambda: [[0.0, 0.0] for _ in range(parts)])
    for stream, position, value, weight in found:
        part = sums[stream][position * parts // units]
        part[0] += value
        part[1] += weight
    return {name: [v / w if w else None for v, w in row] for name, row in sorted(sums.items())}


def _error(board: Board) -> str:
    count = len(board.streams)
    return f"± SE_stream over {count} streams" if count > 1 else "one stream: no error"


def _f1(board: Board, row: Row) -> Estimate:
    return row.estimate("f1", board.error) or row.scores["f1"][0]


def _top(board: Board, row: Row) -> float:
    estimate = _f1(board, row)
    return estimate.mean + (estimate.se or 0)


def _title(row: Row) -> str:
    return _name(f"{row.label} [{row.note}]" if row.note else row.label)


def _name(label: str) -> str:
    return label.replace("_", " ")
