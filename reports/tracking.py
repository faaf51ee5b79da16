"""A board in an experiment tracker, TensorBoard or Weights & Biases, through the tracker's own package.

Each row of the board is a run of the tracker: its settings, its scores and costs, the token NLL along the stream, and
the F1 at each probe. Nothing else of the project knows a tracker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import BenchError, nearest
from bench.records.schema import mean
from bench.settings import dotted
from reports.board import Board
from reports.probes import curves_of
from reports.rows import Row, read_segments, token_nll

TRACKERS = ("tensorboard", "wandb")
"""The trackers, by the names of their packages."""
PROJECT = "online-adaptation-bench"
"""Name of the project in Weights & Biases. Entity, mode and folder are those of its environment variables."""
Curve = Sequence[tuple[int, float]]
"""Documents so far, and a score."""


def check(tracker: str) -> None:
    """Check that there is such a tracker, and that its package is installed.

    Raises:
        BenchError: there is none, or it is not.
    """
    if tracker not in TRACKERS:
        raise BenchError(f"There is no tracker {tracker!r}.{nearest(tracker, TRACKERS)}")
    if find_spec(tracker) is None:
        raise BenchError(f"{tracker} is not installed. Install it with pip install {tracker}, or leave --track out.")


def track(board: Board, out: Path, tracker: str) -> str:
    """Log the rows of a board, and of those on its other pairs; returns a sentence that says where they are.

    TensorBoard's files are in ``<out>/tensorboard/<experiment>/<row>``. Rows without scores are left out.

    Raises:
        BenchError: as :func:`check`.
    """
    check(tracker)
    log = {"tensorboard": _tensorboard, "wandb": _wandb}[tracker]
    for one in (board, *board.others):
        for row in (row for row in one.rows if row.scores):
            log(one, row, _curves(row), out)
    if tracker == "tensorboard":
        return f"Logged to TensorBoard: tensorboard --logdir {out / 'tensorboard'}"
    return f"Logged to Weights & Biases, project {PROJECT}, group {board.experiment}."


def _curves(row: Row) -> dict[str, Curve]:
    """Means of a row: token NLL of each document over its runs, and F1 at each probe over its streams, as on boards."""
    nll: dict[int, list[float]] = defaultdict(list)
    for record in row.records:
        for segments in read_segments(row.runs, record):
            if (of_document := token_nll(segments)) is not None:
                nll[segments[0].position + 1].append(of_document)
    f1 = [(int(seen), estimate.mean) for seen, estimate in curves_of(row, ("f1",))["f1"]]
    return {"token_nll": [(step, mean(nll[step]) or 0.0) for step in sorted(nll)], "f1_at_probe": f1}


def _values(row: Row) -> dict[str, float]:
    return {**{name: row.scores[name][0].mean for name in row.scores}, **row.costs}


def _tensorboard(board: Board, row: Row, curves: Mapping[str, Curve], out: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = out / "tensorboard" / board.experiment / row.label.replace("/", "_")
    settings = {name: _plain(value) for name, value in _settings(board, row).items()}
    with SummaryWriter(str(folder)) as writer:
        for name, curve in curves.items():
            for step, value in curve:
                writer.add_scalar(f"stream/{name}", value, step)
        scores = {f"board/{name}": value for name, value in _values(row).items()}
        writer.add_hparams(settings, scores, run_name=".")


def _wandb(board: Board, row: Row, curves: Mapping[str, Curve], out: Path) -> None:
    import wandb

    out.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=PROJECT, group=board.experiment, name=row.label, config=_settings(board, row), dir=out
    ) as run:
        run.define_metric("documents")
        for name, curve in curves.items():
            run.define_metric(name, step_metric="documents")
            for step, value in curve:
                run.log({"documents": step, name: value})
        run.summary.update(_values(row))


def _settings(board: Board, row: Row) -> dict[str, Any]:
    """What distinguishes a row: where it ran, its arm, and the settings of its method."""
    return {"dataset": board.dataset, "model": board.model, "method": row.method, "arm": row.arm, **dotted(row.config)}


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
