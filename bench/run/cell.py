"""A cell: one (dataset, stream, base model, method, config, seed, arm), and running it as a function of its spec."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch

from bench import hashing
from bench.answering.decoding import Decoding
from bench.contract import registry
from bench.contract.meta_training import MetaTrained
from bench.contract.method import Method, validate_config
from bench.data.arms import apart
from bench.data.documents import episodes
from bench.errors import BenchError, Diverged
from bench.harness.loop import Loop, construct, fit
from bench.hashing import digest
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.records import provenance
from bench.records.schema import FREE, CellSpec, Failure, RunRecord
from bench.records.store import read_run, write_run
from bench.run import artifacts
from bench.run.inputs import Material, Sources, material, offline_entries, train_hash, trained


class Cell(pydantic.BaseModel):
    """A cell's spec with its sources: plain data, so that any process can run it."""

    spec: CellSpec
    sources: Sources

    @property
    def key(self) -> str:
        """Hash of everything that can change the numbers."""
        return digest(self.spec.model_dump(mode="json"))

    @property
    def comparability_key(self) -> str:
        """Hash of what must be equal for two cells to stand on one board."""
        spec = self.spec.model_dump(mode="json", exclude=FREE)
        return digest({**spec, "streams": self.spec.stream.rpartition("-")[0]})

    @property
    def id(self) -> str:
        """Name of the record's folder: readable, and unique by the key."""
        return f"{self.spec.method}-{self.spec.arm}-{self.spec.stream}-{self.key[:12]}"

    def is_done(self, runs: Path) -> bool:
        """Whether a whole record of this cell stands under ``runs``; a failed one does not count, a diverged one does.

        Raises:
            BenchError: there is a record, but it cannot be read.
        """
        return (runs / self.id / "run.json").exists() and read_run(runs / self.id).status != "failed"


@lru_cache(maxsize=2)
def _model(path: str, device: str, dtype: str) -> BaseModel:
    return BaseModel.load(str(checkpoint.locate(path)), device, dtype)


def load_base(sources: Sources, device: str, dtype: str) -> BaseModel:
    """The base model, loaded once per process and restored to what was loaded."""
    lm = _model(sources.model, device, dtype)
    lm.restore()
    return lm


def run(cell: Mapping[str, Any], runs: str) -> str:
    """Run a cell (as plain data) and write its record under the folder ``runs``; returns the record's status.

    What goes wrong inside the method or the model becomes part of the record.

    Raises:
        BenchError: the data, the model or the method are not those that the spec was made for.
    """
    this = Cell.model_validate(cell)
    started = provenance.collect()
    kind = registry.load_method(this.spec.method, this.sources.plugins)
    given = material(this.sources, this.spec.arm)
    _check_identity(this, kind, given, Path(runs))
    record = _blank(this, kind, started)
    loop: Loop | None = None
    try:
        lm = load_base(this.sources, this.spec.device, this.spec.dtype)
        method = construct(kind, lm, validate_config(kind, this.spec.config), this.spec.seed)
        loop = _loop(this.spec, method, given)
        if isinstance(method, MetaTrained):
            if folder := trained(type(method), method.config, this.sources, Path(runs)):
                artifacts.load(folder, method)
        elif kind.learns_offline(method.config):
            with loop.ledger.phase("offline"):
                fit(method, episodes(offline_entries(kind, this.sources)))
        loop.run()
        finished = {
            "status": "complete",
            "summary": loop.summary(),
            "costs": loop.ledger.costs(loop.state_bytes),
            "notes": json.loads(json.dumps(method.notes())),
        }
        method.reset()
        lm.restore()
    except Exception as error:
        failure = _failure(error, loop)
        finished = {"status": "diverged" if failure.kind == "diverged" else "failed", "failure": failure}
        _model.cache_clear()  # whatever state the model was left in, no other cell meets it
    record = record.model_copy(update=finished)
    write_run(Path(runs), record, *(loop.events if loop is not None else ()))
    return record.status


def _check_identity(cell: Cell, kind: type[Method], given: Material, runs: Path) -> None:
    found = {
        "stream_hash": given.hash,
        "anchor_hash": given.anchor_hash,
        "train_hash": train_hash(kind, validate_config(kind, cell.spec.config), cell.sources, runs),
        "model_hash": _model_hash(cell.sources.model),
        "method_code": hashing.method_hash(kind),
    }
    for name, value in found.items():
        if value != getattr(cell.spec, name):
            what = name.rpartition("_")[0]
            raise BenchError(f"The {what} has changed since the run was planned. Run the same command again.")


@lru_cache(maxsize=2)
def _model_hash(name: str) -> str:
    return checkpoint.identity(checkpoint.locate(name))


def _loop(spec: CellSpec, method: Method, given: Material) -> Loop:
    return Loop(
        method=method,
        entries=given.stream.entries,
        documents=given.documents,
        apart=apart(spec.arm),
        anchor=given.anchor,
        probes=spec.probes,
        scoring=spec.scoring,
        segment_tokens=spec.segment_tokens,
        decoding=Decoding(**spec.decoding),
        seed=spec.seed,
    )


def _blank(cell: Cell, kind: type[Method], started: dict[str, Any]) -> RunRecord:
    return RunRecord(
        id=cell.id,
        cell_key=cell.key,
        comparability_key=cell.comparability_key,
        status="failed",
        control=kind.sees_evidence,
        tunable=bool(kind.grid),
        spec=cell.spec,
        summary=None,
        costs=None,
        failure=None,
        provenance=started,
    )


def _failure(error: Exception, loop: Loop | None) -> Failure:
    kind: Literal["failed", "diverged", "out_of_memory"] = "failed"
    if isinstance(error, Diverged):
        kind = "diverged"
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error):
        kind = "out_of_memory"
    return Failure(
        kind=kind,
        message=f"{type(error).__name__}: {error}" if kind == "failed" else str(error),
        traceback="".join(traceback.format_exception(error)),
        position=None if loop is None else loop.position,
    )


def worker_died(cell: Cell, kind: type[Method], message: str) -> RunRecord:
    """The record of a cell whose process was killed."""
    failure = Failure(kind="worker_died", message=message, traceback="", position=None)
    return _blank(cell, kind, provenance.collect()).model_copy(update={"failure": failure})
