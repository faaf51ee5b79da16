"""Stored answers under another metric, without a model: a value for each run, and its mean over the streams."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.answering import metrics
from bench.data.scripts import Segmentation
from bench.errors import BenchError, nearest
from bench.files import write_bytes
from bench.records import boards
from bench.records.schema import AnswerEvent, RunRecord, mean
from bench.records.store import is_packed
from bench.terminal import visible
from reports.board import Board, build
from reports.markup import spreadsheet
from reports.rows import Row, final_answers, run_of
from reports.spread import Run
from reports.statistics import Estimate, Item, mean_over_streams, run_items

if TYPE_CHECKING:
    from rich.table import Table

Predictions = Sequence[str]
Golds = Sequence[Sequence[str]]
Metric = Callable[[Predictions, Golds, Segmentation, bool], Mapping[str, float]]
"""Values by name, of all answers of one run: the predictions, the gold answers of each, how F1 cuts them, and whether
each question of all runs has a single gold answer."""


@dataclass(frozen=True)
class Rescored:
    """A row of the board, and the estimate of each value of the metric."""

    board: Board
    row: Row
    estimates: Mapping[str, Estimate]

    def fields(self) -> dict[str, Any]:
        """The row as flat fields. ``<value>_ci95`` is the half-width of the 95 % t interval over streams."""
        names = ("label", "method", "arm", "status", "streams")
        flat: dict[str, Any] = {"dataset": self.board.dataset, "model": self.board.model}
        flat |= {name: getattr(self.row, name) for name in names}
        flat["recorded_f1"] = self.row.value("f1")
        for name, estimate in self.estimates.items():
            flat |= {name: estimate.mean, f"{name}_ci95": estimate.half_width(), f"{name}_se_stream": estimate.se}
        return flat


def rescore(runs: Path, metric: str, experiment: str | None = None) -> list[Rescored]:
    """The rows of an experiment's board (default: the newest), their answers at the last probe scored by ``metric``.

    ``metric`` is one of :data:`bench.answering.metrics.ANSWER_SCORES`, or the path of a file that ``evaluate.load``
    reads. Every run gets one value, so metrics of a whole corpus keep their meaning. If a metric takes one reference,
    and any question has several gold answers, the value of every run is the mean over its questions of the largest over
    their gold answers. Rows without answers are left out.

    Raises:
        BenchError: there is no such board or metric, the metric takes something else or fails, the records are
            published ones or hold no answers.
    """
    if is_packed(runs):
        raise BenchError(f"{runs} holds published records, which have no gold answers: rescore the runs themselves.")
    compute = _find(metric)
    board = build(runs, experiment)
    answered = [
        (one, row, [(record, final_answers(row.runs, record)) for record in row.records])
        for one in (board, *board.others)
        for row in one.rows
    ]
    single = all(len(answer.answers) == 1 for *_, of in answered for _, answers in of for answer in answers)
    rescored: list[Rescored] = []
    for one, row, of in answered:
        items = _items(of, compute, single)
        if items:
            runs_with_answers = sum(bool(answers) for _, answers in of)
            names = {name for name, values in items.items() if len(values) == runs_with_answers}
            if names != {*items} or (rescored and names != {*rescored[0].estimates}):
                raise BenchError(f"{metric} does not compute the same values for all runs: see those of {row.label}.")
            estimates = {name: mean_over_streams(of_runs) for name, of_runs in items.items()}
            rescored.append(Rescored(one, row, estimates))
    if not rescored:
        raise BenchError(f"The runs of {board.experiment} hold no answers, which rescore would score.")
    return rescored


def write(rescored: Sequence[Rescored], metric: str, out: Path) -> Path:
    """Write ``rescored_<metric>.csv`` beside the tables of the board, atomically; returns its path."""
    path = boards.folder(out, rescored[0].board.experiment) / f"rescored_{Path(metric).stem}.csv"
    write_bytes(path, spreadsheet([one.fields() for one in rescored]).encode())
    return path


def render(rescored: Sequence[Rescored]) -> Table:
    """The rows for a terminal: the recorded F1, and each value of the metric ± the half-width of its 95 % interval."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("method", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    names = list(rescored[0].estimates)
    for heading in ("recorded F1", *names):
        table.add_column(Text(visible(heading)), justify="right", no_wrap=True)
    several = any(one.board is not rescored[0].board for one in rescored)
    for one in rescored:
        label = f"{one.row.label}, {one.board.dataset}, {one.board.model}" if several else one.row.label
        recorded = one.row.estimate("f1", "SE_stream")
        cells = [str(recorded), *(str(one.estimates[name]) for name in names)]
        table.add_row(Text(visible(label)), *cells, style="dim" if one.row.control else "")
    return table


def _items(
    answered: Sequence[tuple[RunRecord, Sequence[AnswerEvent]]], compute: Metric, single: bool
) -> dict[str, list[Item]]:
    """The values of each run of a row that has answers; ``single`` if no question has several gold answers."""
    runs: dict[str, dict[Run, float]] = defaultdict(dict)
    for record, answers in answered:
        if answers:
            predictions, golds = [answer.prediction for answer in answers], [answer.answers for answer in answers]
            for name, value in compute(predictions, golds, record.spec.segment, single).items():
                runs[name][run_of(record)] = value
    return {name: run_items(values) for name, values in runs.items()}


def _find(metric: str) -> Metric:
    if metric in metrics.ANSWER_SCORES:
        return _built_in(metric)
    if metric.endswith(".py") and Path(metric).is_file():
        return _from_file(Path(metric))
    hint = nearest(metric, metrics.ANSWER_SCORES)
    raise BenchError(
        f"There is no metric {metric!r}.{hint} Name one of {', '.join(metrics.ANSWER_SCORES)}, or a Python file with a "
        f"metric in the form of evaluate."
    )


def _built_in(name: str) -> Metric:
    def compute(predictions: Predictions, golds: Golds, segment: Segmentation, _: bool) -> Mapping[str, float]:
        scores = [metrics.score(*pair, segment)[name] for pair in zip(predictions, golds, strict=True)]
        return {name: mean(scores) or 0.0}

    return compute


def _from_file(path: Path) -> Metric:
    """The metric in a file, which takes texts as predictions, and a text or a list of texts as each reference."""
    import evaluate

    import datasets

    try:
        module = evaluate.load(str(path.resolve()), keep_in_memory=True)
        kinds = module.features if isinstance(module.features, list) else [module.features]
        inputs = [(kind.get("predictions"), kind.get("references")) for kind in kinds]
    except Exception as error:  # whatever the code in the file raises
        raise BenchError(f"{path} is not a metric that evaluate can load: {error}") from error
    text = datasets.Value("string")
    takes_lists = (text, datasets.List(text)) in inputs
    if not takes_lists and (text, text) not in inputs:
        raise BenchError(f"{path} takes other inputs than rescore has: predictions and references that are texts.")

    def values(predictions: Predictions, references: Sequence[Any]) -> Mapping[str, float]:
        try:
            computed = module.compute(predictions=list(predictions), references=list(references))
            numbers = {name: float(value) for name, value in computed.items() if _is_number(value)}
        except Exception as error:
            raise BenchError(f"{path} failed: {type(error).__name__}: {error}") from error
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            raise BenchError(f"{path} computes a {bad[0]} that is no number for {visible(str(predictions[0]))[:60]!r}.")
        return numbers

    def best(prediction: str, golds: Sequence[str]) -> Mapping[str, float]:
        of_golds = [values([prediction], [gold]) for gold in dict.fromkeys(golds)]
        return {name: max(one[name] for one in of_golds) for name in of_golds[0]}

    def compute(predictions: Predictions, golds: Golds, _: Segmentation, single: bool) -> Mapping[str, float]:
        if takes_lists:
            scores = values(predictions, [list(of_one) for of_one in golds])
        elif single:
            scores = values(predictions, [gold for (gold,) in golds])
        else:
            scored = [best(*pair) for pair in zip(predictions, golds, strict=True)]
            scores = {name: mean([one[name] for one in scored]) or 0.0 for name in scored[0]}
        if not scores:
            raise BenchError(f"{path} computes no number: it must return a mapping of names to numbers.")
        return scores

    return compute


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)
