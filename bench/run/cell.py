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
from bench.data.arms import documents_per_reset
from bench.data.documents import episodes
from bench.errors import BenchError, Diverged
from bench.harness.loop import Loop, construct, fit
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.records import provenance
from bench.records.schema import NOT_COMPARED, CellSpec, Failure, RunRecord
from bench.records.store import read_run, write_run
from bench.run import artifacts
from bench.run.inputs import CellInputs, Sources, artifact_folder, inputs_of, offline_entries, train_hash


class Cell(pydantic.BaseModel):
    """A cell's spec with its sources, as plain data, so that any process can run it."""

    spec: CellSpec
    sources: Sources

    @property
    def key(self) -> str:
        """Hash of everything that can change the numbers."""
        return hashing.digest(self.spec.model_dump(mode="json"))

    @property
    def comparability_key(self) -> str:
        """Hash of everything that must be equal for two cells to appear on one board."""
        spec = self.spec.model_dump(mode="json", exclude=NOT_COMPARED)
        return hashing.digest({**spec, "streams": self.spec.stream.rpartition("-")[0]})

    @property
    def id(self) -> str:
        """Name of the record's folder: readable, and unique by the key."""
        return f"{self.spec.method}-{self.spec.arm}-{self.spec.stream}-{self.key[:12]}"

    def is_done(self, runs: Path) -> bool:
        """True if ``runs`` holds a record of this cell that is complete or diverged, not one that failed.

        Raises:
            BenchError: there is a record, but it cannot be read.
        """
        return (runs / self.id / "run.json").exists() and read_run(runs / self.id).status != "failed"


def run(cell: Mapping[str, Any], runs: str) -> str:
    """Run a cell (as plain data) and write its record under the folder ``runs``; returns the record's status.

    An error in the method or the model becomes part of the record.

    Raises:
        BenchError: the data, the model or the method have changed since the spec was made.
    """
    return run_cell(Cell.model_validate(cell), Path(runs)).status


def run_cell(cell: Cell, runs: Path) -> RunRecord:
    """Run a cell as :func:`run` does; returns the record."""
    spec, sources = cell.spec, cell.sources
    origin = provenance.collect()
    kind = registry.load_method(spec.method, sources.plugins)
    inputs = inputs_of(sources, spec.arm)
    check_unchanged(cell, kind, inputs, runs)
    loop: Loop | None = None
    try:
        lm = load_base(sources, spec.device, spec.dtype)
        method = construct(kind, lm, validate_config(kind, spec.config), spec.seed)
        loop = build_loop(spec, method, inputs)
        if isinstance(method, MetaTrained):
            if folder := artifact_folder(type(method), method.config, sources, runs):
                artifacts.load(folder, method)
        elif kind.learns_offline(method.config):
            with loop.ledger.phase("offline"):
                fit(method, episodes(offline_entries(kind, sources)))
        loop.run()
        results = {
            "status": "complete",
            "summary": loop.summary(),
            "costs": loop.ledger.costs(loop.state_bytes),
            "notes": json.loads(json.dumps(method.notes())),
        }
        method.reset()
        lm.restore()
    except (Exception, SystemExit) as error:  # a method may call sys.exit
        failure = failure_of(error, loop)
        results = {"status": "diverged" if failure.kind == "diverged" else "failed", "failure": failure}
        _load_base.cache_clear()  # no other cell may run on the model in the state it was left in
    record = failed_record(cell, kind, origin).model_copy(update=results)
    write_run(runs, record, *(loop.events if loop is not None else ()))
    return record


def load_base(sources: Sources, device: str, dtype: str) -> BaseModel:
    """The base model, loaded once per process and restored to its original weights."""
    lm = _load_base(sources.model, device, dtype)
    lm.restore()
    return lm


@lru_cache(maxsize=2)
def _load_base(model: str, device: str, dtype: str) -> BaseModel:
    return BaseModel.load(str(checkpoint.locate(model)), device, dtype)


@lru_cache(maxsize=2)
def _base_hash(model: str) -> str:
    return checkpoint.identity(checkpoint.locate(model))


def check_unchanged(cell: Cell, kind: type[Method], inputs: CellInputs, runs: Path) -> None:
    """Compare the hashes in the cell's spec with those of the data, model and code of this process.

    Raises:
        BenchError: one of them differs.
    """
    hashes = {
        "stream_hash": inputs.hash,
        "anchor_hash": inputs.anchor_hash,
        "train_hash": train_hash(kind, validate_config(kind, cell.spec.config), cell.sources, runs),
        "model_hash": _base_hash(cell.sources.model),
        "method_code": hashing.method_hash(kind),
    }
    for field, value in hashes.items():
        if value != getattr(cell.spec, field):
            part = field.rpartition("_")[0]
            raise BenchError(f"The {part} has changed since the run was planned. Run the same command again.")


def build_loop(spec: CellSpec, method: Method, inputs: CellInputs) -> Loop:
    """The loop of a cell, not yet run."""
    return Loop(
        method=method,
        entries=inputs.stream.entries,
        documents=inputs.documents,
        documents_per_reset=documents_per_reset(spec.arm),
        anchor=inputs.anchor,
        probes=spec.probes,
        scoring=spec.scoring,
        segment_tokens=spec.segment_tokens,
        decoding=Decoding(**spec.decoding),
        seed=spec.seed,
    )


def failed_record(cell: Cell, kind: type[Method], origin: dict[str, Any], failure: Failure | None = None) -> RunRecord:
    """The record of a cell without results; ``origin`` is its provenance."""
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
        failure=failure,
        provenance=origin,
    )


def dead_worker_record(cell: Cell, kind: type[Method], message: str) -> RunRecord:
    """The record of a cell whose worker process died."""
    failure = Failure(kind="worker_died", message=message, traceback="", position=None)
    return failed_record(cell, kind, provenance.collect(), failure)


LONGEST_MESSAGE = 2_000
"""Characters of an error's message that are kept in a record, and ten times as many of its traceback."""


def failure_of(error: BaseException, loop: Loop | None) -> Failure:
    """The error as the record states it: its kind, message, traceback and position in the stream.

    Whatever a method raises fits into a record: a message that cannot be shown, lone surrogates, megabytes of text.
    """
    try:
        text = str(error)
    except Exception:
        text = "(its message cannot be shown)"
    kind: Literal["failed", "diverged", "out_of_memory"] = "failed"
    if isinstance(error, Diverged):
        kind = "diverged"
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in text:
        kind = "out_of_memory"
    return Failure(
        kind=kind,
        message=_excerpt(f"{type(error).__name__}: {text}" if kind == "failed" else text, LONGEST_MESSAGE),
        traceback=_excerpt("".join(traceback.format_exception(error)), 10 * LONGEST_MESSAGE),
        position=None if loop is None else loop.position,
    )


def _excerpt(text: str, longest: int) -> str:
    """The text as UTF-8 can hold it, without its middle if it is too long."""
    text = text.encode(errors="replace").decode()
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} [...] {text[-half:]}"
