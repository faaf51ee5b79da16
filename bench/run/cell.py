"""A cell: one (dataset, stream, base model, method, config, seed, arm), and running it as a function of its spec."""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic_core import to_json

from bench import hashing
from bench.answering.decoding import Decoding
from bench.contract import registry
from bench.contract.meta_training import MetaTrained
from bench.contract.method import Method, validate_config
from bench.data.arms import documents_per_reset
from bench.data.documents import episodes
from bench.data.prompt_format import PromptFormat
from bench.errors import BenchError, Diverged, RunError, text_of
from bench.harness.integrity import Fingerprint
from bench.harness.loop import Loop, construct, fit
from bench.lm import checkpoint, placement
from bench.lm.base_model import BaseModel
from bench.lm.precision import set_deterministic
from bench.lm.probe import Abilities
from bench.records import provenance
from bench.records.schema import (
    AnswerEvent,
    CellSpec,
    Costs,
    DocumentEvent,
    Failure,
    RunRecord,
    Summary,
    Tally,
    TokenEvent,
)
from bench.records.store import MANIFEST, MissingRecord, current_bytes, read_run, write_run
from bench.run import artifacts
from bench.run.executor import TaskError, UnfitMachine, limit_time, may_move, retire, tell
from bench.run.inputs import (
    CellInputs,
    Sources,
    artifact_folder,
    dependencies,
    inputs_of,
    offline_entries,
    qa_train_hash,
    train_hash,
)
from bench.run.places import place


class Cell(pydantic.BaseModel):
    """A cell's spec with its sources, as plain data, so that any process can run it."""

    spec: CellSpec
    sources: Sources

    @property
    def key(self) -> str:
        """:attr:`CellSpec.key`."""
        return self.spec.key

    @property
    def comparability_key(self) -> str:
        """:attr:`CellSpec.comparability_key`."""
        return self.spec.comparability_key

    @property
    def id(self) -> str:
        """:attr:`CellSpec.id`."""
        return self.spec.id

    @property
    def group(self) -> str:
        """The method, its code and the base: only cells with the same ones may share a process and a loaded base."""
        return f"{self.spec.method}-{self.spec.method_code}-{self.spec.model_hash}"

    def is_done(self, runs: Path) -> bool:
        """True if ``runs`` holds a record of this cell that is complete or diverged, not one that failed.

        Raises:
            BenchError: there is a record, but it cannot be read.
        """
        try:
            return read_run(runs / self.id).status != "failed"
        except MissingRecord:
            return False


def written(runs: Path, cell: str) -> str:
    """A hash of the record of a cell, which tells it from an earlier one; "" if there is none."""
    try:
        return hashing.digest(current_bytes(runs / cell / MANIFEST).decode(errors="replace"))
    except FileNotFoundError:
        return ""


ELSEWHERE = "elsewhere"
"""What :func:`run` returns of a cell that another process runs."""


def run(
    cell: Mapping[str, Any],
    runs: str,
    hook_timeout: float | None = None,
    abilities: Abilities | None = None,
    planned: str | None = None,
) -> str:
    """Run a cell (as plain data) and write its record to the place ``runs``; returns the record's status.

    A cell that another process runs at this moment, or has taken over from this one, is left to it (:data:`ELSEWHERE`
    is returned), and one of which it has written a record since the cell was ``planned`` (:func:`written`) is not run
    again. An error in the method or the model becomes part of the record. A worker of a pool retires after a cell that
    is not complete, whatever state it was left in. It is killed if a hook of the method runs for more than
    ``hook_timeout`` seconds. ``abilities`` are those of the base, if they have been tried.

    Raises:
        BenchError: the data, the model or the method have changed since the spec was made.
        UnfitMachine: the base could not be loaded here, or memory ran out, and another machine may try.
    """
    tell(Moment("starting"))
    own, where = Cell.model_validate(cell), place(runs)
    folder = where.path
    with where.claimed(own.id) as free:
        if not free:
            return ELSEWHERE
        where.fetch_record(own.id)
        if planned is not None and written(folder, own.id) not in ("", planned):
            return read_run(folder / own.id).status
        if own.spec.train_hash:
            where.fetch_weights()
        record, events = run_cell(own, folder, hook_timeout, abilities)
        if record.status != "complete":
            retire()
        if record.failure is not None and record.failure.kind == "out_of_memory" and may_move():
            raise UnfitMachine(record.failure.message)
        if not where.holds(own.id):
            return ELSEWHERE
        write_run(folder, record, *events)
        where.send(own.id)
    return record.status


Events = tuple[()] | tuple[list[DocumentEvent], list[AnswerEvent], list[TokenEvent]]
"""Those of documents, answers and tokens; none of a cell that did not begin."""


def run_cell(
    cell: Cell, runs: Path, hook_timeout: float | None = None, abilities: Abilities | None = None
) -> tuple[RunRecord, Events]:
    """Run a cell as :func:`run` does, with the trained weights of ``runs``; returns the record and its events."""
    spec, sources = cell.spec, cell.sources
    origin = provenance.collect()
    try:  # before the method is imported, so that what its import changes is seen
        lm, fingerprint = load_base(cell, abilities)
    except Exception as error:
        if may_move():
            raise UnfitMachine(failure_of(error, None).message) from error
        kind = registry.load_method(spec.method, sources.plugins)
        return record_of(cell, kind, origin, failure=failure_of(error, None)), ()
    if stated := placement.stated(lm.model):
        origin["gpu"] = f"{origin['gpu']} ({stated})"
    kind = registry.load_method(spec.method, sources.plugins)
    inputs = inputs_of(sources, spec.arm)
    check_unchanged(cell, kind, inputs, runs)
    hook = _Hooks(hook_timeout, len(inputs.documents))
    loop: Loop | None = None
    training = Tally(seconds=0, flops=0, peak_bytes=0)
    try:
        with hook("the constructor", None):
            method = construct(kind, lm, validate_config(kind, spec.config), spec.seed, spec.segment_tokens)
        loop = build_loop(spec, method, inputs)
        if spec.retune is not None:
            loop.qa_train = episodes(offline_entries("qa_train", sources))
        loop.hook = hook
        if isinstance(method, MetaTrained):
            if folder := artifact_folder(
                type(method), method.config, spec.seed, sources, spec.prompt, spec.dtype, runs
            ):
                artifacts.load(folder, method)
                training = artifacts.cost(folder)
            else:
                with loop.ledger.phase("fit"), hook("begin_training", None):
                    method.begin_training()
        elif kind.learns_offline(method.config):
            with loop.ledger.phase("fit"), hook("fit", None):
                fit(method, episodes(offline_entries(kind.learns_from, sources)))
        loop.run()
        with hook("notes", None):
            notes = json.loads(to_json(method.notes(), inf_nan_mode="strings"))  # JSON has no NaN
        costs = loop.ledger.costs(loop.state_bytes, training)
        record = record_of(cell, kind, origin, summary=loop.summary(), costs=costs, notes=notes)
        with hook("reset", None):
            method.reset()
        lm.restore()
        if change := fingerprint.difference(lm):
            raise RunError(f"The method changed what other cells use: {change}. Undo it in reset, or do without it.")
    except (Exception, SystemExit) as error:  # a method may call sys.exit
        record = record_of(cell, kind, origin, failure=failure_of(error, loop))
        _load_base.cache_clear()  # no other cell may run on the model in the state it was left in
    return record, loop.events if loop is not None else ()


Activity = Literal["starting", "learning offline", "reading", "answering", "running elsewhere"]
ACTIVITIES: Mapping[str, Activity] = {"fit": "learning offline", "observe": "reading", "condition": "answering"}
"""What a cell does when it calls a hook of its method."""
TELL_SECONDS = 0.2
"""Seconds between two moments of reading that a cell tells: telling each would take time."""


@dataclass(frozen=True)
class Moment:
    """What a running cell does, told to the process that started it."""

    activity: Activity
    document: int = 0
    """Number of the document in the stream, from 1; 0 before the first one."""
    documents: int = 0


class _Hooks:
    """Context of each call of one of the method's hooks: it limits the time, and tells what the cell does."""

    def __init__(self, seconds: float | None, documents: int) -> None:
        self.seconds, self.documents = seconds, documents
        self._told = 0.0

    @contextlib.contextmanager
    def __call__(self, hook: str, position: int | None) -> Iterator[None]:
        self._tell(hook, position)
        if self.seconds is None:
            yield
            return
        limit_time(self.seconds, (hook, position))
        try:
            yield
        finally:
            limit_time(None)

    def _tell(self, hook: str, position: int | None) -> None:
        activity, now = ACTIVITIES.get(hook), time.monotonic()
        if activity is None or (activity == "reading" and now < self._told + TELL_SECONDS):
            return
        self._told = now
        tell(Moment(activity, 0 if position is None else position + 1, self.documents))


def load_base(cell: Cell, abilities: Abilities | None = None) -> tuple[BaseModel, Fingerprint]:
    """The base model, loaded once per process and method and then restored, and its fingerprint when it was loaded."""
    spec, sources = cell.spec, cell.sources
    set_deterministic(spec.deterministic)
    lm, fingerprint = _load_base(
        sources.model, spec.device, sources.offload, spec.dtype, spec.prompt, spec.window, abilities, cell.group
    )
    lm.restore()
    return lm, fingerprint


@lru_cache(maxsize=1)
def _load_base(
    model: str,
    device: str,
    offload: bool,
    dtype: str,
    prompt: PromptFormat,
    window: int | None,
    abilities: Abilities | None,
    group: str,
) -> tuple[BaseModel, Fingerprint]:
    lm = BaseModel.load(str(checkpoint.locate(model)), device, dtype, abilities, prompt, window, offload)
    return lm, Fingerprint(lm)


@lru_cache(maxsize=2)
def _base_hash(model: str) -> str:
    return checkpoint.identity(checkpoint.locate(model))


def check_unchanged(cell: Cell, kind: type[Method], inputs: CellInputs, runs: Path) -> None:
    """Compare the hashes in the cell's spec with those of the data, model and code of this process.

    Raises:
        BenchError: one of them differs.
    """
    config = validate_config(kind, cell.spec.config)
    seed = cell.spec.seed
    hashes = {
        "stream_hash": inputs.hash,
        "anchor_hash": inputs.anchor_hash,
        "train_hash": train_hash(kind, config, seed, cell.sources, cell.spec.prompt, cell.spec.dtype, runs),
        "qa_train_hash": qa_train_hash(cell.spec.retune, cell.sources),
        "model_hash": _base_hash(cell.sources.model),
        "method_code": hashing.method_hash(kind),
        "harness_code": hashing.code_hash(hashing.LOOP),
    }
    for field, value in hashes.items():
        if value != getattr(cell.spec, field):
            part = field.rpartition("_")[0]
            raise BenchError(
                f"The {part} has changed since the run was planned, or is another one on this machine. Run the same "
                f"command again, with the same version on all machines."
            )
    present = dependencies(kind, config)
    for name in sorted(present.keys() | cell.spec.dependencies.keys()):
        if present.get(name) != cell.spec.dependencies.get(name):
            raise BenchError(f"{kind.name}'s {name} has changed since the run was planned. Run the same command again.")


def build_loop(spec: CellSpec, method: Method, inputs: CellInputs) -> Loop:
    """The loop of a cell, not yet run."""
    return Loop(
        method=method,
        entries=inputs.stream.entries,
        documents=inputs.documents,
        documents_per_reset=documents_per_reset(spec.arm),
        anchor=inputs.anchor,
        probes=spec.probes,
        questions=spec.questions,
        scoring=spec.scoring,
        reread=spec.reread,
        gradient_norms=spec.gradient_norms,
        decoding=Decoding(**spec.decoding),
        retune=spec.retune,
        segment=spec.segment,
        seed=spec.seed,
    )


def record_of(
    cell: Cell,
    kind: type[Method],
    origin: dict[str, Any],
    summary: Summary | None = None,
    costs: Costs | None = None,
    notes: Mapping[str, Any] | None = None,
    failure: Failure | None = None,
) -> RunRecord:
    """The record of a cell with its results, or with the failure that ended it.

    ``origin`` is its provenance, to which the commit of a base from the hub is added.
    """
    base = cell.sources.hub
    return RunRecord(
        id=cell.id,
        cell_key=cell.key,
        comparability_key=cell.comparability_key,
        status="complete" if failure is None else "diverged" if failure.kind == "diverged" else "failed",
        control=kind.sees_evidence or kind.control,
        tunable=bool(kind.search_space(validate_config(kind, cell.spec.config))),
        spec=cell.spec,
        summary=summary,
        costs=costs,
        failure=failure,
        notes=notes or {},
        provenance={**origin, "base": base} if base else origin,
    )


def failure_line(record: RunRecord) -> str:
    """The record of a failed cell on one line: method, stream, document and reason."""
    failure = record.failure
    if failure is None:
        return record.id
    where = "" if failure.position is None else f", document {failure.position + 1}"
    reason = failure.message.splitlines()[0][:300] if failure.message else failure.kind
    return f"{record.spec.method} on {record.spec.stream} ({record.spec.arm}{where}): {reason}"


def dead_worker_record(cell: Cell, kind: type[Method], error: TaskError) -> RunRecord:
    """The record of a cell whose worker died, was killed because a hook took too long, or could not read or write."""
    died = error.kind == "worker_died"
    failure = Failure(kind="worker_died" if died else "failed", message=error.message, traceback="", position=None)
    if error.kind == "timed_out":
        hook, position = error.activity
        where = "" if position is None else f" at document {position + 1} of the stream"
        message = f"The time limit (--hook-timeout) ended {hook}{where}. {error.message}"
        failure = Failure(kind="failed", message=message, traceback="", position=position)
    return record_of(cell, kind, provenance.collect(), failure=failure)


_OUT_OF_MEMORY = re.compile(
    r"not enough memory|out of memory|can(?:no|')t allocate|unable to allocate|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
"""How libraries say that memory has run out where their errors have no type for it (DefaultCPUAllocator, cuBLAS)."""
LONGEST_MESSAGE = 2_000
"""Characters of an error's message that are kept in a record, and ten times as many of its traceback."""


def failure_of(error: BaseException, loop: Loop | None) -> Failure:
    """The error as the record states it: its kind, message, traceback and position in the stream.

    Whatever a method raises fits into a record: a message that cannot be shown, lone surrogates, megabytes of text.
    """
    text = text_of(error)
    kind: Literal["failed", "diverged", "out_of_memory"] = "failed"
    if isinstance(error, Diverged):
        kind = "diverged"
    elif isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _OUT_OF_MEMORY.search(text):
        kind = "out_of_memory"
    plain = kind != "failed" or isinstance(error, BenchError | RunError)  # a sentence of the harness
    return Failure(
        kind=kind,
        message=_excerpt(text if plain else f"{type(error).__name__}: {text}", LONGEST_MESSAGE),
        traceback=_excerpt("".join(traceback.format_exception(error)), 10 * LONGEST_MESSAGE),
        position=None if loop is None else loop.position,
    )


def _excerpt(text: str, longest: int) -> str:
    """The text as UTF-8 can hold it, without its middle if it is too long."""
    text = text.encode(errors="replace").decode()
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} [...] {text[-half:]}"
