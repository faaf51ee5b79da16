"""Plots of tuning: what the learning rate does to a method on the validation streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.schema import TuningRecord
from bench.records.store import read_board, read_run, read_tuning
from reports.board import Board
from reports.statistics import Estimate, stream_error
from reports.style import BLUE, GREY, Drawings, heading, log_ticks, name_axes, open_circles, panels, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("learning_rate_sensitivity",)

KEY = "learning_rate"
SCORES = {"f1": "answer F1", "token_nll": "token NLL (nats)"}


@dataclass(frozen=True)
class Sensitivity:
    """A method's score on the validation streams at each learning rate that was tried."""

    label: str
    metric: str
    points: Sequence[tuple[float, Estimate | None]]
    """By rate; None where every trial diverged. Of several settings tried at one rate it is the best one's."""
    chosen: float
    others: bool
    """Whether there were others: another key was tuned too."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, where the learning rate of some method was tuned."""
    found = sensitivities(board, runs)
    return {NAMES[0]: lambda: _draw(found)} if found else {}


def sensitivities(board: Board, runs: Path) -> list[Sensitivity]:
    """Those of the board's methods whose learning rate was tuned, as the board orders them.

    Raises:
        BenchError: a tuning record, or the run of a trial, is missing or unreadable.
    """
    records = read_tuning(runs, read_board(runs, board.experiment).tuning)
    order = [(row.method, dict(row.config)) for row in board.rows if row.arm == "stream"]
    labels = {i: row.label for i, row in enumerate(row for row in board.rows if row.arm == "stream")}
    found = []
    for record in records:
        place = order.index((record.method, record.chosen)) if (record.method, record.chosen) in order else len(order)
        if sensitivity := _sensitivity(runs, record, labels.get(place, record.method)):
            found.append((place, sensitivity))
    return [sensitivity for _, sensitivity in sorted(found, key=lambda pair: pair[0])]


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
    for rate, tried in sorted(by_rate.items()):
        scored = [estimate for estimate in tried if estimate is not None]
        points.append((rate, best(scored, key=lambda estimate: estimate.mean) if scored else None))
    others = any(len(tried) > 1 for tried in by_rate.values())
    return Sensitivity(readable(label), record.metric, points, record.chosen[KEY], others)


def _score(runs: Path, metric: str, trial: Sequence[str]) -> Estimate | None:
    summaries = [read_run(runs / name).summary for name in trial]
    values = [getattr(summary, metric) for summary in summaries if summary is not None]
    scored = [value for value in values if value is not None]
    return stream_error(scored) if scored else None


def _draw(found: Sequence[Sensitivity]) -> Figure:
    """One small panel for each method; the rate that was chosen is filled."""
    figure, grid = panels(len(found), sharex=False)
    for axes, sensitivity in zip(grid, found, strict=True):
        _curve(axes, sensitivity)
        heading(axes, sensitivity.label)
    streams = max((point.n for one in found for _, point in one.points if point is not None), default=1)
    errors = f"± SE_stream over {streams} validation streams" if streams > 1 else "one validation stream: no error"
    note = f"learning rate ({errors}; filled: chosen"
    if any(estimate is None for one in found for _, estimate in one.points):
        note += "; ×:\u00a0diverged"
    if any(one.others for one in found):
        note += "; with the best of the other settings tuned"
    name_axes(figure, note + ")", SCORES[found[0].metric])
    return figure


def _curve(axes: Axes, sensitivity: Sensitivity) -> None:
    scored = [(rate, estimate) for rate, estimate in sensitivity.points if estimate is not None]
    rates = [rate for rate, _ in sensitivity.points]
    log_ticks(axes, rates, [f"{rate:.3g}".replace("e-0", "e-") for rate in rates])
    open_circles(axes, [rate for rate, _ in scored], [estimate for _, estimate in scored])
    for rate, estimate in sensitivity.points:
        if estimate is None:
            axes.plot(rate, 0.03, "x", color=GREY, markersize=4, transform=axes.get_xaxis_transform())
        elif rate == sensitivity.chosen:
            axes.plot(rate, estimate.mean, "o", color=BLUE, markersize=4, zorder=3)
