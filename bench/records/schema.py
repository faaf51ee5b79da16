"""What is recorded of a run: events of documents, answers and weighed tokens, and the manifest; as types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pydantic

from bench.data.arms import Arm

RUN_SCHEMA = 1


class _Event(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class DocumentEvent(_Event):
    """One document (or one segment of it) of the stream, in order."""

    position: int
    """Position of the document in the stream, from 0."""
    segment: int
    """Segment within the document, from 0 (always 0 when documents are not cut)."""
    document_id: str
    tokens: int
    """Tokens of the document or segment, each scored once when scoring is on."""
    bytes: int
    """UTF-8 bytes of its text."""
    windows: int
    """Windows that the model needed to read it (1 unless it is longer than the model's context)."""
    nll: float | None
    """Sum over its tokens of -log p (nats), before any update on it; None when scoring is off."""
    observe_seconds: float


class AnswerEvent(_Event):
    """One question answered at one probe."""

    probe: float
    """Fraction of the stream that had been observed (0 is before the first document)."""
    set: Literal["stream", "anchor"]
    """``stream``: a question on a document seen so far; ``anchor``: old knowledge."""
    question_id: str
    document_id: str
    position: int
    """Stream position of the question's document (for anchors: its place in the anchor set)."""
    prediction: str
    answers: tuple[str, ...]
    em: float
    f1: float
    em_prefix: float
    """Prefix exact match of the CaMeLS and MAC code, against the single shortest gold: never a headline."""
    f1_shortest: float
    """Token F1 against the single shortest gold."""
    cut_tokens: int = 0
    """Tokens of the text before the question that did not fit into the model's window."""
    nll: float
    """Mean -log p (nats) over the tokens of " " + first gold answer + end of text."""
    retrieved: int | None = None
    """Rank, from 1, of the question's document among those that the method gave with it: 0 if it was not among them,
    None if the method names none."""

    @property
    def recall(self) -> float | None:
        """1 if the question's document was given with it, else 0; None if the method names no documents."""
        return None if self.retrieved is None else float(self.retrieved > 0)


TokenClass = Literal["fact", "name", "filler"]


class TokenEvent(_Event):
    """What each token of one document weighed when the method learned from it; numbers to six significant digits."""

    position: int
    document_id: str
    pieces: tuple[str, ...]
    """The text of each token: laid end to end, the document's."""
    weights: tuple[float, ...]
    nll: tuple[float, ...] | None
    """-log p of each token (nats), before any update on it; None when scoring is off."""
    classes: tuple[TokenClass, ...]
    """``fact``: states a value that is asked about; ``name``: of what the document is about; ``filler``: the rest."""
    pos: tuple[str, ...] | None = None
    """Part of speech of each token; None without a tagger."""


class CellSpec(_Event):
    """Everything that defines a cell. Plain data: a cell can run in any process on any machine."""

    protocol: str
    dataset: str
    stream: str
    """Name of the stream, ``<split>-<n>-<k>``."""
    stream_hash: str
    """Hash of the documents, questions, answers and of what the arm observes."""
    anchor_hash: str
    train_hash: str
    """Hash of what a method that learns offline learned from, else ""."""
    model: str
    """Name of the base model as the user gave it."""
    model_hash: str
    dtype: str
    device: str
    method: str
    config: dict[str, Any]
    seed: int
    arm: Arm
    probes: tuple[float, ...]
    scoring: bool
    segment_tokens: int | None
    decoding: dict[str, Any]
    metrics: dict[str, str]
    """Version of each metric."""
    harness_code: str
    """Hash of the harness's source."""
    method_code: str
    """Hash of the source of the method and of what it imports from the project."""


FREE = {"stream", "stream_hash", "train_hash", "method", "method_code", "config", "seed", "arm", "device"}
"""Fields of a spec that may differ between cells of one board; the streams' split and size may not."""


class Tally(_Event):
    """Cost of one phase, or of one unit of it."""

    seconds: float
    flops: float
    """Floating-point operations (one multiply-add is two)."""
    peak_bytes: int
    """Highest memory in use during the phase: allocated on the GPU, resident set of the process on a CPU."""


class Costs(_Event):
    """Cost of a cell by phase, and of what the method keeps."""

    offline: Tally
    score: Tally
    observe: Tally
    answer: Tally
    state_bytes: int
    """Bytes of the method's state that differ from the base (weights changed, tensors registered, optimizer)."""


class Summary(_Event):
    """Means over the cell's events at the last probe (None where there is nothing to average)."""

    documents: int
    questions: int
    em: float | None
    f1: float | None
    em_prefix: float | None
    f1_shortest: float | None
    answer_nll: float | None
    token_nll: float | None
    """Nats per token."""
    bits_per_byte: float | None
    anchor_f1_before: float | None
    anchor_f1: float | None
    anchor_nll_before: float | None
    """Nats per token of the anchor documents before the stream."""
    anchor_nll: float | None
    recall: float | None = None
    """Share of the questions that were given their document, where the method names documents."""


class Failure(_Event):
    """Why a cell has no scores."""

    kind: Literal["failed", "diverged", "out_of_memory", "worker_died"]
    message: str
    traceback: str
    position: int | None
    """Stream position at which it happened."""


class RunRecord(_Event):
    """The manifest ``run.json``."""

    schema_version: int = RUN_SCHEMA
    id: str
    cell_key: str
    comparability_key: str
    status: Literal["complete", "failed", "diverged"]
    control: bool
    """True for methods that see the evidence."""
    tunable: bool = False
    """True for methods that declare a grid: without a tuning record such a row is untuned."""
    spec: CellSpec
    summary: Summary | None
    costs: Costs | None
    failure: Failure | None
    document_events: int = 0
    answer_events: int = 0
    token_events: int = 0
    """How many lines each file of events has: a file with others is torn."""
    notes: dict[str, Any] = {}
    """What a method reports of itself (``Method.notes``), e.g. which tagger was found."""
    provenance: dict[str, Any]


class TuningRecord(_Event):
    """``runs/tuning/<key>.json``: every trial of one method on the validation streams, and what was chosen."""

    key: str
    method: str
    dataset: str
    model: str
    model_hash: str
    metric: Literal["f1", "token_nll"]
    trials: tuple[dict[str, Any], ...]
    """One per candidate: {"config": ..., "score": mean over validation streams or None (diverged), "runs": [ids]}."""
    chosen: dict[str, Any]


class BoardRecord(_Event):
    """``runs/boards/<experiment>.json``: which runs make up an experiment's board, and what its reader should know."""

    experiment: str
    runs: list[str]
    tuning: list[str]
    """Keys of the tuning records that chose its settings."""
    remarks: list[str]


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None of nothing."""
    return sum(values) / len(values) if values else None
