"""What a row opens to: the command that makes it, settings, tuning, each run's scores and costs, and provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bench.records import tuning
from bench.records.schema import RunRecord, TuningRecord
from bench.settings import dotted
from reports.board import Board
from reports.origins import command, costs_of, seconds, summary_of
from reports.prices import COSTS
from reports.rows import SCORES, Row

RUN_SCORES = ("f1", "em", "recall", "token_nll", "bits_per_byte", "answer_nll", "anchor_f1")


def facts(board: Board, row: Row) -> dict[str, Any]:
    """The details of a row as plain data."""
    return {
        "commands": list(dict.fromkeys(map(_command, row.records))),
        "settings": _settings(row),
        "tuning": None if row.tuning is None else _tuning(row.tuning),
        "scores": [
            [name, estimate.mean, estimate.half_width(), estimate.se, estimate.kind]
            for name in SCORES
            for estimate in row.scores.get(name, ())
        ],
        "prices": [[name, row.costs[name]] for name in COSTS if name in row.costs],
        "spread": dict(row.spread),
        "runs": [_run(record) for record in row.records],
        "provenance": _provenance(row),
        "remarks": list(dict.fromkeys([*_noted(row), *_naming(row, board)])),
    }


def _command(record: RunRecord) -> str:
    """The recorded command line, after the commit's checkout if the commit is known."""
    line, commit = command(record), record.provenance.get("commit")
    return f"git checkout {commit}\n{line}" if line and commit else line


def _settings(row: Row) -> list[list[Any]]:
    """Each setting by its dotted name, with its value and its source."""
    by_tuning = set(row.tuning.space) if row.tuning else set()
    return [
        [name, value, "by hand" if name in row.hand_set else "tuned" if name in by_tuning else "default"]
        for name, value in dotted(row.config).items()
    ]


def _tuning(record: TuningRecord) -> dict[str, Any]:
    """The trials: the tuned settings of each, its score, and whether it ran on whole streams."""
    names = list(record.space)
    configs = [dotted(trial["config"]) for trial in record.trials]
    return {
        "metric": record.metric,
        "floor": record.floor,
        "names": names,
        "chosen": tuning.best(record.metric, record.floor, record.trials),
        "trials": [
            {
                "values": [config.get(name) for name in names],
                "score": trial["score"],
                "documents": trial["documents"],
                "whole": trial["whole"],
            }
            for trial, config in zip(record.trials, configs, strict=True)
        ],
    }


def _run(record: RunRecord) -> dict[str, Any]:
    summary = summary_of(record)
    return {
        "stream": record.spec.stream,
        "seed": record.spec.seed,
        "order": record.spec.order,
        "id": record.id,
        "scores": {name: value for name in RUN_SCORES if (value := getattr(summary, name)) is not None},
        "seconds": seconds(costs_of(record)),
    }


def _provenance(row: Row) -> list[list[str]]:
    """Facts on the code, the packages and the machine; several values if the runs differ."""
    values: dict[str, dict[str, None]] = {}
    for record in row.records:
        facts = {**record.provenance, "device": record.spec.device, "dtype": record.spec.dtype}
        for name, text in _flat(facts):
            values.setdefault(name, {})[text] = None
        for name in ("model_hash", "harness_code", "method_code", "train_hash", "comparability_key"):
            text = getattr(record.spec, name)
            values.setdefault(name.replace("_", " "), {})[text or "none"] = None
    started = sorted(values.pop("started", {}))
    dates = [["started", " to ".join(dict.fromkeys([started[0], started[-1]]))]] if started else []
    return [*([name, ", ".join(texts)] for name, texts in values.items()), *dates]


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The known facts but the command, which stands elsewhere, by dotted name."""
    for name, value in dotted(facts).items():
        if value is not None and name != "command":
            yield name.removeprefix("packages."), str(value)


def _noted(row: Row) -> list[str]:
    """The method's own remarks on its runs."""
    return [remark for record in row.records for remark in record.notes.get("remarks", ())]


def _naming(row: Row, board: Board) -> list[str]:
    """The board's remarks that name the row. A longer label, or other settings in brackets, is another row's name."""
    labels = sorted((other.label for other in board.rows if row.label in other.label), key=len, reverse=True)
    names = re.compile(rf"(?<![\w=])(?:{'|'.join(map(re.escape, labels))})(?!\w| \([\w.]+=)")
    return [remark for remark in board.remarks if row.label in names.findall(remark)]
