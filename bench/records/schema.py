"""Types of records: events of documents, answers and weighted tokens, the manifest, tuning and boards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import pydantic

from bench.data.arms import Arm

RUN_SCHEMA = 1


class _Record(pydantic.BaseModel):
    """Base of all records: unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid")


class DocumentEvent(_Record):
    """One document of the stream, or one segment of it, in order."""

    position: int
    """Position of the document in the stream, from 0."""
    segment: int
    """Segment within the document, from 0 (always 0 if documents are not cut)."""
    document_id: str
    tokens: int
    """Tokens of the document or segment, each scored once if scoring is on."""
    bytes: int
    """UTF-8 bytes of its text."""
    windows: int
    """Windows in which the model read it (1 unless it is longer than the model's context)."""
    nll: float | None
    """Sum over its tokens of -log p (nats), before any update on it; None if scoring is off."""
    observe_seconds: float


class AnswerEvent(_Record):
    """One question answered at one probe."""

    probe: float
    """Fraction of the stream observed so far (0 is before the first document)."""
    set: Literal["stream", "anchor"]
    """``stream``: a question about a document of the stream; ``anchor``: a question about old knowledge."""
    question_id: str
    document_id: str
    position: int
    """Position of the question's document in the stream (for anchors: in the anchor set)."""
    prediction: str
    answers: tuple[str, ...]
    em: float
    f1: float
    em_prefix: float
    """Prefix exact match with the shortest gold (code of Hu et al. 2023 and Tack et al. 2024): never the headline."""
    f1_shortest: float
    """Token F1 with the shortest gold."""
    cut_tokens: int = 0
    """Tokens of the text before the question that did not fit into the model's window."""
    nll: float
    """Mean -log p (nats) over the tokens of " " + first gold answer + end of text."""
    retrieved: int | None = None
    """Rank, from 1, of the question's document among those that the method used for it: 0 if it is not among them,
    None if the method names none."""

    @property
    def recall(self) -> float | None:
        """1 if the question's document was among those used, else 0; None if the method names no documents."""
        return None if self.retrieved is None else float(self.retrieved > 0)


TokenClass = Literal["fact", "name", "filler"]


class TokenEvent(_Record):
    """Token weights with which the method learned from one document; numbers to six significant digits."""

    position: int
    document_id: str
    pieces: tuple[str, ...]
    """The text of each token; their concatenation is the document."""
    weights: tuple[float, ...]
    nll: tuple[float, ...] | None
    """-log p of each token (nats), before any update on it; None if scoring is off."""
    classes: tuple[TokenClass, ...]
    """``fact``: states the answer to a question; ``name``: names the subject of the document; ``filler``: the rest."""
    pos: tuple[str, ...] | None = None
    """Part of speech of each token; None without a tagger."""


class CellSpec(_Record):
    """Complete definition of a cell as plain data: the cell can run in any process on any machine."""

    protocol: str
    dataset: str
    stream: str
    """Name of the stream, ``<split>-<n>-<k>``."""
    stream_hash: str
    """Hash of the documents, questions and answers, and of the documents that the arm observes."""
    anchor_hash: str
    train_hash: str
    """Hash of the trained weights, or of the entries that the method learns from offline; "" if it does neither."""
    model: str
    """Name of the base model: the last part of its path or hub id."""
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
    """Hash of the method's source and of the project modules that it imports."""


NOT_COMPARED = {"stream", "stream_hash", "train_hash", "method", "method_code", "config", "seed", "arm", "device"}
"""Fields of a spec that may differ between cells of one board. The split and size of the streams may not."""


class Tally(_Record):
    """Cost of one phase."""

    seconds: float
    flops: float
    """Floating-point operations (one multiply-add is two)."""
    peak_bytes: int
    """Peak memory during the phase: allocated on the GPU, or the resident set of the process on a CPU."""


class Costs(_Record):
    """Cost of a cell by phase, and the size of the method's state."""

    offline: Tally
    score: Tally
    observe: Tally
    answer: Tally
    state_bytes: int
    """Bytes of the method's state that differ from the base (changed weights, registered tensors, optimizer)."""


class Summary(_Record):
    """Means over the cell's events at the last probe (None if there is nothing to average)."""

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
    """Share of the questions whose document was among those used, for methods that name documents."""


class Failure(_Record):
    """Reason for which a cell has no scores."""

    kind: Literal["failed", "diverged", "out_of_memory", "worker_died"]
    message: str
    traceback: str
    position: int | None
    """Stream position at which it happened."""


class RunRecord(_Record):
    """The manifest ``run.json``."""

    schema_version: int = RUN_SCHEMA
    id: str
    cell_key: str
    comparability_key: str
    status: Literal["complete", "failed", "diverged"]
    control: bool
    """True for methods that see the evidence."""
    tunable: bool = False
    """True for methods that declare a grid: without a tuning record their rows are untuned."""
    spec: CellSpec
    summary: Summary | None
    costs: Costs | None
    failure: Failure | None
    document_events: int = 0
    answer_events: int = 0
    token_events: int = 0
    """Number of lines in each file of events. A file with another number is damaged."""
    notes: dict[str, Any] = {}
    """Facts that the method reports (``Method.notes``), such as the tagger in use."""
    provenance: dict[str, Any]


class TuningRecord(_Record):
    """``runs/tuning/<key>.json``: every trial of one method on the validation streams, and the chosen config."""

    key: str
    method: str
    dataset: str
    model: str
    model_hash: str
    metric: Literal["f1", "token_nll"]
    trials: tuple[dict[str, Any], ...]
    """One per candidate: {"config": ..., "score": mean over validation streams or None (no results), "runs": [ids]}."""
    chosen: dict[str, Any]


class BoardRecord(_Record):
    """``runs/boards/<experiment>.json``: the runs of an experiment's board, and remarks for its readers."""

    experiment: str
    runs: list[str]
    tuning: list[str]
    """Keys of the tuning records of its methods."""
    remarks: list[str]


def documents_seen(probe: float, documents: int) -> int:
    """Documents of a stream that have been observed at a probe: the fraction as it is written, rounded up.

    0.14 of 50 documents are 7, although the float nearest to 0.14 is a little more.
    """
    return math.ceil(Fraction(str(probe)) * documents)


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None without values."""
    return sum(values) / len(values) if values else None
