"""The plot of tuning: the trials of each method by learning rate, with their scores on the validation streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records import tuning
from bench.records.schema import TuningRecord
from reports.board import Board
from reports.style import BLUE, DASHED, GREY, ORANGE, Drawings, heading, name_axes, panels, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("learning_rate_sensitivity",)

RATE, STEPS = "learning_rate", "steps_per_document"
SCORES = {"f1": "answer F1", "token_nll": "token NLL (nats)"}


@dataclass(frozen=True)
class Trial:
    """A trial at its learning rate."""

    rate: float
    score: float | None
    """Mean over the validation streams; None if it diverged."""
    whole: bool
    """False if it was stopped after the first part of the streams."""
    chosen: bool
    steps: int | None
    """Steps on each document, if they were tuned."""


@dataclass(frozen=True)
class Sensitivity:
    """A method's trials, by learning rate."""

    label: str
    metric: str
    trials: Sequence[Trial]
    floor: float | None
    """The score without documents."""


def drawings(board: Board, runs: Path) -> Drawings:
    """The plot, if the learning rate of a method was tuned."""
    methods = sensitivities(board)
    return {NAMES[0]: lambda: _draw(methods)} if methods else {}


def sensitivities(board: Board) -> list[Sensitivity]:
    """The methods with a tuned learning rate, in the board's order."""
    rows = [row for row in board.rows if row.arm == "stream"]
    entries = []
    for record in board.tuning:
        matches = (i for i, row in enumerate(rows) if (row.method, row.config) == (record.method, record.chosen))
        place = next(matches, len(rows))
        label = rows[place].label if place < len(rows) else record.method
        if sensitivity := _sensitivity(record, label):
            entries.append((place, sensitivity))
    return [sensitivity for _, sensitivity in sorted(entries, key=lambda pair: pair[0])]


def _sensitivity(record: TuningRecord, label: str) -> Sensitivity | None:
    chosen = tuning.best(record.metric, record.floor, record.trials)
    # a rate of 0 has no place on a logarithmic axis
    trials = [
        Trial(
            rate=trial["config"][RATE],
            score=trial["score"],
            whole=trial["whole"],
            chosen=index == chosen,
            steps=trial["config"].get(STEPS) if STEPS in record.space else None,
        )
        for index, trial in enumerate(record.trials)
        if trial["config"].get(RATE)
    ]
    if len({trial.rate for trial in trials}) < 2:
        return None
    ordered = sorted(trials, key=lambda trial: trial.rate)
    return Sensitivity(readable(label), record.metric, ordered, record.floor)


def _draw(methods: Sequence[Sensitivity]) -> Figure:
    """One small panel for each method with a dot for each trial."""
    figure, grid = panels(len(methods), sharex=False)
    for axes, sensitivity in zip(grid, methods, strict=True):
        _dots(axes, sensitivity)
        heading(axes, sensitivity.label)
    trials = [trial for sensitivity in methods for trial in sensitivity.trials]
    notes = ["a dot is a trial", "ring: chosen"]
    notes += (
        ["open: first part of the streams only"] if any(not t.whole and t.score is not None for t in trials) else []
    )
    notes += ["×: diverged"] if any(trial.score is None for trial in trials) else []
    notes += ["number: steps per document"] if any(trial.steps is not None for trial in trials) else []
    notes += ["dashed: without documents"] if any(sensitivity.floor is not None for sensitivity in methods) else []
    name_axes(figure, f"learning rate ({'; '.join(notes)})", f"validation {SCORES[methods[0].metric]}")
    return figure


def _dots(axes: Axes, sensitivity: Sensitivity) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    rates = [trial.rate for trial in sensitivity.trials]
    axes.set_xlim(min(rates) / (margin := (max(rates) / min(rates)) ** 0.1), max(rates) * margin)
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    if sensitivity.floor is not None:
        axes.axhline(sensitivity.floor, color=GREY, linewidth=0.7, linestyle=DASHED, zorder=0)
    for trial in sensitivity.trials:
        if trial.score is None:
            axes.plot(trial.rate, 0.03, "x", color=GREY, markersize=4, transform=axes.get_xaxis_transform())
            continue
        filling = BLUE if trial.whole else "white"
        axes.plot(trial.rate, trial.score, "o", color=BLUE, markersize=3.5, markerfacecolor=filling)
        if trial.chosen:
            axes.plot(trial.rate, trial.score, "o", color=ORANGE, markersize=7, markerfacecolor="none")
        if trial.steps is not None:
            axes.annotate(
                str(trial.steps),
                (trial.rate, trial.score),
                xytext=(4, 2),
                textcoords="offset points",
                fontsize=6,
            )
