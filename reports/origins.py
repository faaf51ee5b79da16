"""Where the numbers of a row are from: its runs with their own scores, and the command and the machine of each."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from bench.records.schema import Costs, RunRecord, Summary

PHASES = ("training", "fit", "score", "observe", "answer")


def summary_of(record: RunRecord) -> Summary:
    """The summary of a complete run."""
    assert record.summary is not None
    return record.summary


def costs_of(record: RunRecord) -> Costs:
    """The costs of a complete run."""
    assert record.costs is not None
    return record.costs


def command(record: RunRecord) -> str:
    """The recorded command line, as one types it; "" if it is not known."""
    words = record.provenance.get("command") or []
    return shlex.join(["python", *words] if words and str(words[0]).endswith(".py") else words)


def seconds(costs: Costs) -> dict[str, float]:
    """The seconds of a run by phase."""
    return {phase: getattr(costs, phase).seconds for phase in PHASES}


def origin(record: RunRecord) -> dict[str, Any]:
    """The command, the code, the packages and the machine of a run, without the time at which it started."""
    facts = {name: value for name, value in record.provenance.items() if name != "started"}
    return {**facts, "command": command(record), "device": record.spec.device, "dtype": record.spec.dtype}


def distinct(records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """The origins of runs, each once, in the order of the runs."""
    origins: list[dict[str, Any]] = []
    for record in records:
        if (one := origin(record)) not in origins:
            origins.append(one)
    return origins


def run(record: RunRecord, origins: list[dict[str, Any]]) -> dict[str, Any]:
    """A complete run as plain data: means over documents or questions, seconds, and its place in the origins."""
    return {
        "id": record.id,
        "stream": record.spec.stream,
        "seed": record.spec.seed,
        "order": record.spec.order,
        "started": record.provenance.get("started"),
        "origin": origins.index(origin(record)),
        "scores": summary_of(record).model_dump(exclude_none=True),
        "seconds": seconds(costs_of(record)),
    }
