"""The plot of tuning: sensitivity of each method to the learning rate on the validation streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.schema import TuningRecord
from bench.records.store import read_run
from reports.board import Board
from reports.statistics import Estimate, stream_error
from reports.style import (
    GREY,
    Drawings,
    heading,
    log_ticks,
    name_axes,
    open_circles,
    panels,
    readable,
    stream_error_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("learning_rate_sensitivity",)

KEY = "learning_rate"
SCORES = {"f1": "answer F1", "token_nll": "token NLL (nats)"}


@dataclass(frozen=True)
class Sensitivity:
    """A method's score on the validation streams at each learning rate tried."""

    label: str
    metric: str
    points: Sequence[tuple[float, Estimate | None]]
    """The best score at each rate over the other settings; None if all trials diverged."""
    chosen: float
    several_settings: bool
    """True if other settings were tuned too."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, if the learning rate of a method was tuned."""
    methods = sensitivities(board, runs)
    return {NAMES[0]: lambda: _draw(methods)} if methods else {}


def sensitivities(board: Board, runs: Path) -> list[Sensitivity]:
    """The methods with a tuned learning rate, in the board's order.

    Raises:
        BenchError: the run of a trial is missing or unreadable.
    """
    rows = [row for row in board.rows if row.arm == "stream"]
    entries = []
    for record in board.tuning:
        matches = (i for i, row in enumerate(rows) if (row.method, row.config) == (record.method, record.chosen))
        place = next(matches, len(rows))
        label = rows[place].label if place < len(rows) else record.method
        if sensitivity := _sensitivity(runs, record, label):
            entries.append((place, sensitivity))
    return [sensitivity for _, sensitivity in sorted(entries, key=lambda pair: pair[0])]


def _sensitivity(runs: Path, record: TuningRecord, label: str) -> Sensitivity | None:
    by_rate: dict[float, list[Estimate | None]] = defaultdict(list)
    for trial in record.trials:
        rate = trial["config"].get(KEY)
        if rate:  # a rate of 0 has no place on a logarithmic axis
            by_rate[rate].append(_score(runs, record.metric, trial["runs"]) if trial["score"] is not None else None)
    if len(by_rate) < 2:
        return None
    best = max if record.metric == "f1" else min
    points = []
    for rate, trials in sorted(by_rate.items()):
        estimates = [estimate for estimate in trials if estimate is not None]
        points.append((rate, best(estimates, key=lambda estimate: estimate.mean) if estimates else None))
    several_settings = any(len(trials) > 1 for trials in by_rate.values())
    return Sensitivity(readable(label), record.metric, points, record.chosen[KEY], several_settings)


def _score(runs: Path, metric: str, run_ids: Sequence[str]) -> Estimate | None:
    summaries = [read_run(runs / run_id).summary for run_id in run_ids]
    values = [getattr(summary, metric) for summary in summaries if summary is not None]
    present = [value for value in values if value is not None]
    return stream_error(present) if present else None


def _draw(methods: Sequence[Sensitivity]) -> Figure:
    """One small panel for each method; the circle at the chosen rate is filled."""
    figure, grid = panels(len(methods), sharex=False)
    for axes, sensitivity in zip(grid, methods, strict=True):
        _curve(axes, sensitivity)
        heading(axes, sensitivity.label)
    estimates = [estimate for sensitivity in methods for _, estimate in sensitivity.points]
    streams = max((estimate.n for estimate in estimates if estimate is not None), default=1)
    notes = [stream_error_name(streams, kind="validation "), "filled: chosen"]
    notes += ["×: diverged"] if None in estimates else []
    if any(sensitivity.several_settings for sensitivity in methods):
        notes.append("best of the other tuned settings at each rate")
    name_axes(figure, f"learning rate ({'; '.join(notes)})", SCORES[methods[0].metric])
    return figure


def _curve(axes: Axes, sensitivity: Sensitivity) -> None:
    rates = [rate for rate, _ in sensitivity.points]
    log_ticks(axes, rates, [f"{rate:.3g}".replace("e-0", "e-") for rate in rates])
    points = [(rate, estimate) for rate, estimate in sensitivity.points if estimate is not None]
    open_circles(axes, points, chosen=sensitivity.chosen)
    for rate, estimate in sensitivity.points:
        if estimate is None:
            axes.plot(rate, 0.03, "x", color=GREY, markersize=4, transform=axes.get_xaxis_transform())
