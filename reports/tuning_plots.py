"""The plot of tuning: the trials of each method by learning rate, with their scores on the validation streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records import tuning
from bench.records.schema import TuningRecord
from bench.records.store import read_run
from reports.board import Board
from reports.rows import run_of
from reports.statistics import Estimate, mean_over_streams, run_items
from reports.style import BLUE, DASHED, GREY, ORANGE, Drawings, Plot, legend, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = ("learning_rate_sensitivity",)

RATE, STEPS = "learning_rate", "steps_per_document"
ERROR = "bars: \N{PLUS-MINUS SIGN} one standard error over the validation streams; over two, a 50 % interval"
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
    estimate: Estimate | None
    """The score with its error over the validation streams; None if it diverged."""


@dataclass(frozen=True)
class Sensitivity:
    """A method's trials, by learning rate."""

    label: str
    metric: str
    trials: Sequence[Trial]
    floor: float | None
    """The score without documents."""


def drawings(board: Board) -> Drawings:
    """The plot, if the learning rate of a method was tuned."""
    methods = sensitivities(board)
    if not methods:
        return {}
    caption = f"Validation {SCORES[methods[0].metric]} of every trial of tuning, by learning rate"
    return {NAMES[0]: Plot(lambda: _draw(methods), caption, _notes(methods))}


def sensitivities(board: Board) -> list[Sensitivity]:
    """The methods with a tuned learning rate, in the board's order."""
    rows = [row for row in board.rows if row.arm == "stream" and not row.imported]
    entries = []
    for record in board.tuning:
        matches = (i for i, row in enumerate(rows) if (row.method, row.config) == (record.method, record.chosen))
        place = next(matches, len(rows))
        label = rows[place].label if place < len(rows) else record.method
        if sensitivity := _sensitivity(record, label, board.runs):
            entries.append((place, sensitivity))
    return [sensitivity for _, sensitivity in sorted(entries, key=lambda pair: pair[0])]


def _sensitivity(record: TuningRecord, label: str, runs: Path) -> Sensitivity | None:
    chosen = tuning.best(record.metric, record.floor, record.trials)
    # a rate of 0 has no place on a logarithmic axis
    trials = [
        Trial(
            rate=trial["config"][RATE],
            score=trial["score"],
            whole=trial["whole"],
            chosen=index == chosen,
            steps=trial["config"].get(STEPS) if STEPS in record.space else None,
            estimate=_over_streams(trial, record.metric, runs),
        )
        for index, trial in enumerate(record.trials)
        if trial["config"].get(RATE)
    ]
    if len({trial.rate for trial in trials}) < 2:
        return None
    ordered = sorted(trials, key=lambda trial: trial.rate)
    return Sensitivity(label, record.metric, ordered, record.floor)


def _notes(methods: Sequence[Sensitivity]) -> list[str]:
    trials = [trial for sensitivity in methods for trial in sensitivity.trials]
    notes = [
        "a dot is a trial",
        "ring: chosen",
        "open, grey: first part of the streams only"
        if any(not t.whole and t.score is not None for t in trials)
        else "",
        "×: no result" if any(trial.score is None for trial in trials) else "",
        "number: steps per document" if any(trial.steps is not None for trial in trials) else "",
        "dashed: without documents" if any(sensitivity.floor is not None for sensitivity in methods) else "",
        ERROR if any(trial.estimate and trial.estimate.se is not None for trial in trials) else "",
    ]
    return [note for note in notes if note]


def _draw(methods: Sequence[Sensitivity]) -> Figure:
    """One small panel for each method with a dot for each trial."""
    figure, grid = panels([sensitivity.label for sensitivity in methods], sharex=False)
    for axes, sensitivity in zip(grid, methods, strict=True):
        _dots(axes, sensitivity)
    if any(sensitivity.floor is not None for sensitivity in methods):
        legend(figure, [("without documents", GREY, DASHED)])
    notes = [note for note in _notes(methods) if not note.startswith("dashed")]
    name_axes(figure, "learning rate", f"validation {SCORES[methods[0].metric]}", notes)
    return figure


def _over_streams(trial: Mapping[str, Any], metric: str, runs: Path) -> Estimate | None:
    records = [read_run(runs / run_id) for run_id in trial["runs"]]
    values = {
        run_of(record): value
        for record in records
        if (record.spec.prefix is None) == trial["whole"]
        and record.summary is not None
        and (value := getattr(record.summary, metric)) is not None
    }
    return mean_over_streams(run_items(values)) if values and trial["score"] is not None else None


_SIDES = ((4, 2), (-8, 2), (4, -7), (-8, -7))
"""Where the number of steps is, in points from the dot."""


def _dots(axes: Axes, sensitivity: Sensitivity) -> None:
    rates = [trial.rate for trial in sensitivity.trials]
    _rate_axis(axes, min(rates), max(rates))
    axes.margins(y=0.12)
    if sensitivity.floor is not None:
        axes.axhline(sensitivity.floor, color=GREY, linewidth=0.7, linestyle=DASHED, zorder=0)
    before, side = 0.0, 0
    for trial in sensitivity.trials:
        side = 0 if trial.rate > 1.1 * before else side + 1  # numbers at nearly equal rates are not put over each other
        before = trial.rate
        if trial.score is None:
            axes.plot(trial.rate, 0.03, "x", color=GREY, markersize=4, transform=axes.get_xaxis_transform())
            continue
        axes.errorbar(
            trial.rate,
            trial.score,
            yerr=(trial.estimate.se if trial.estimate else None) or 0.0,
            fmt="o",
            color=BLUE if trial.whole else GREY,
            markersize=3.5,
            markerfacecolor=BLUE if trial.whole else "white",
            elinewidth=0.7,
        )
        if trial.chosen:
            axes.plot(trial.rate, trial.score, "o", color=ORANGE, markersize=7, markerfacecolor="none")
        if trial.steps is not None:
            axes.annotate(
                str(trial.steps),
                (trial.rate, trial.score),
                xytext=_SIDES[side % len(_SIDES)],
                textcoords="offset points",
                fontsize=6,
            )


def _rate_axis(axes: Axes, lowest: float, highest: float) -> None:
    """A logarithmic axis of learning rates with at least two labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(lowest / (margin := (highest / lowest) ** 0.1), highest * margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if highest / lowest > 100 else (1.0, 3.0), numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
