"""Types of records: events of documents, answers and weighted tokens, the manifest, tuning and boards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

import pydantic
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from bench.answering.retune import Retune
from bench.data.arms import Arm
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.data.scripts import Segmentation
from bench.hashing import digest

SCHEMA: Literal[4] = 4
"""Version of the records. A record of another version is not read."""

Count = Annotated[int, pydantic.Field(ge=0)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class _Record(pydantic.BaseModel):
    """Base of all records: unknown keys, NaN and infinity are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


class DocumentEvent(_Record):
    """One document of the stream, or one segment of it, in order."""

    position: Count
    """Position of the document in the stream, from 0."""
    segment: Count
    """Segment within the document, from 0 (always 0 if documents are not cut)."""
    document_id: str
    timestamp: str = ""
    """ISO date of the document, or ""."""
    tokens: Count
    """Tokens of the document or segment, each scored once if scoring is on."""
    bytes: Count
    """UTF-8 bytes of its text."""
    windows: Count
    """Windows in which the model read it (1 unless it is longer than the model's context)."""
    nll: NonNegative | None
    """Sum over its tokens of -log p (nats), before any update on it; None if scoring is off."""
    nll_after: NonNegative | None = None
    """The same right after the method observed it; None if it was not scored again."""
    observe_seconds: NonNegative


class AnswerEvent(_Record):
    """One question answered at one probe."""

    probe: Share
    """Fraction of the stream observed so far (0 is before the first document)."""
    set: Literal["stream", "anchor"]
    """``stream``: a question about a document of the stream; ``anchor``: a question about old knowledge."""
    question_id: str
    document_id: str
    timestamp: str = ""
    """ISO date of the question's document, or ""."""
    position: Count
    """Position of the question's document in the stream (for anchors: in the anchor set)."""
    prediction: str
    answers: tuple[str, ...]
    """The gold answers; none in published records."""
    em: Share
    f1: Share
    em_prefix: Share
    """Prefix exact match with the shortest gold (code of Hu et al. 2023 and Tack et al. 2024): never the headline."""
    f1_shortest: Share
    """Token F1 with the shortest gold."""
    cut_tokens: Count = 0
    """Tokens of the text before the question that did not fit into the model's window."""
    nll: NonNegative | None
    """Mean -log p (nats) over the tokens of " " + first gold answer + end of text; None if they were not read."""
    ended: bool | None = None
    """True if the model ended its answer itself, by a stop token or a newline, within the new tokens it may write;
    None if it was not asked."""
    unanswered: str | None = None
    """The reason, if the question did not fit into the model's window: it is scored as an empty answer."""
    retrieved: Count | None = None
    """Rank, from 1, of the question's document among those that the method used for it: 0 if it is not among them,
    None if the method names none."""
    earlier: tuple[str, ...] = ()
    """Answers that were true earlier and are not now, the oldest first; none if the fact has not changed, and in
    published records."""
    stale: Share | None = None
    """1 if the prediction matches one of ``earlier`` and no present answer, else 0; None for a fact that has not
    changed."""

    @property
    def f1_current(self) -> float | None:
        """F1 if the fact has changed by now, else None."""
        return None if self.stale is None else self.f1

    @property
    def f1_unchanged(self) -> float | None:
        """F1 if the fact has not changed by now, else None."""
        return self.f1 if self.stale is None else None

    @property
    def recall(self) -> float | None:
        """1 if the question's document was among those used, else 0; None if the method names no documents."""
        return None if self.retrieved is None else float(self.retrieved > 0)


CHANGE_SCORES = ("f1_current", "stale", "f1_unchanged")
"""Scores of the answers on facts that have changed, and of those on facts that have not."""

TokenClass = Literal["fact", "name", "filler"]
NOTED_DOCUMENTS = 50
"""Number of documents, from the first of a stream, whose tokens are noted."""

Asked = Literal["seen", "first"]
"""The questions that are asked: ``seen``, at each probe those on all documents seen so far; ``first``, at every probe
those of the first one, except those that any document of the stream supersedes."""


class TokenEvent(_Record):
    """Token weights with which the method learned from one document; numbers to six significant digits."""

    position: Count
    document_id: str
    pieces: tuple[str, ...]
    """The text of each token; their concatenation is the document. None in published and imported records."""
    weights: tuple[float, ...]
    nll: tuple[NonNegative, ...] | None
    """-log p of each token (nats), before any update on it; None if scoring is off."""
    classes: tuple[TokenClass, ...]
    """``fact``: states the answer to a question; ``name``: names the subject of the document; ``filler``: the rest."""
    pos: tuple[str, ...] | None = None
    """Part of speech of each token; None without a tagger."""
    gradient_norms: tuple[NonNegative, ...] | None = None
    """Norm of the gradient of each token's -log p, before any update on it and without weights; None if not asked for.
    """

    @pydantic.model_validator(mode="after")
    def _one_each(self) -> Self:
        columns = (self.pieces or None, self.nll, self.classes, self.pos, self.gradient_norms)
        if any(len(column) != len(self.weights) for column in columns if column is not None):
            raise ValueError("weights, nll, classes, pos and gradient_norms need one value for each piece")
        return self


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
    order: Count = 0
    """The order of the stream's documents: 0 is that of the stream, others are permutations."""
    prefix: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Number of the stream's first documents that are used; None: all."""
    arm: Arm
    probes: tuple[Share, ...]
    questions: Asked = "seen"
    scoring: bool
    reread: bool = False
    """True if each segment is scored again after it was observed."""
    gradient_norms: Count = 0
    """Number of documents, from the first, for whose tokens the norms of the gradients are recorded."""
    segment_tokens: Annotated[int, pydantic.Field(ge=1)] | None
    window: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Most tokens that the base reads at once; None: as many as it can."""
    deterministic: bool = False
    """True if torch may only use algorithms that give the same bits each time."""
    prompt: PromptFormat = PLAIN
    decoding: dict[str, Any]
    retune: Retune | None = None
    """Steps on questions of ``qa_train`` before the questions of each probe; None: no steps."""
    qa_train_hash: str = ""
    """Hash of the entries of ``qa_train`` with these questions; "" without such steps."""
    segment: Segmentation = "words"
    """Tokens of F1: words, or characters in scripts without spaces."""
    metrics: dict[str, str]
    """Version of each metric."""
    harness_code: str
    """Hash of the harness's source."""
    method_code: str
    """Hash of the method's source and of the project modules that it imports."""
    dependencies: dict[str, str] = {}
    """Identity of what else can change the method's numbers (:meth:`Method.depends_on`): files by their hash."""

    @property
    def key(self) -> str:
        """Hash of everything that can change the numbers."""
        return digest(self._hashed(set()))

    @property
    def comparability_key(self) -> str:
        """Hash of everything that must be equal for two cells to appear on one board."""
        return digest({**self._hashed(NOT_COMPARED), "streams": self.stream.rpartition("-")[0]})

    def _hashed(self, left_out: set[str]) -> dict[str, Any]:
        """The fields that are hashed, without those of :data:`ADDED` that have their defaults."""
        values = self.model_dump(mode="json", exclude=left_out)
        defaults = {name: type(self).model_fields[name].default for name in ADDED}
        return {name: value for name, value in values.items() if name not in ADDED or value != defaults[name]}

    @property
    def id(self) -> str:
        """Name of the record's folder: readable, and unique by the key."""
        return f"{self.method}-{self.arm}-{self.stream}-{self.key[:12]}"

    @property
    def place(self) -> tuple[str, str, int]:
        """What decides which documents a run of a board observes, and in which order."""
        return self.stream, self.arm, self.order


NOT_COMPARED = {
    "stream",
    "stream_hash",
    "train_hash",
    "method",
    "method_code",
    "dependencies",
    "config",
    "seed",
    "order",
    "arm",
    "device",
    "deterministic",
}
"""Fields of a spec that may differ between cells of one board. The split and size of the streams may not."""


ADDED = {"reread", "gradient_norms", "deterministic"}
"""Fields of a spec that older records lack. At their defaults they are not hashed, so that the keys of these hold."""


class Tally(_Record):
    """Cost of one phase."""

    seconds: NonNegative
    flops: NonNegative
    """Floating-point operations (one multiply-add is two)."""
    peak_bytes: Count
    """Peak memory during the phase: allocated on the GPU, or the resident set of the process on a CPU."""


class Costs(_Record):
    """Cost of a cell by phase, and the size of the method's state."""

    training: Tally
    """Training of the weights that the cell loads, from their card; nothing is trained in the cell."""
    fit: Tally
    score: Tally
    observe: Tally
    answer: Tally
    state_bytes: Count
    """Bytes of the method's state that differ from the base (changed weights, registered tensors, optimizer)."""


class Summary(_Record):
    """Means over the cell's events at the last probe (None if there is nothing to average)."""

    documents: Count
    questions: Count
    unanswered: Count = 0
    """Those that did not fit into the model's window. Their scores are those of an empty answer, without an NLL."""
    em: Share | None
    f1: Share | None
    em_prefix: Share | None
    f1_shortest: Share | None
    ended: Share | None = None
    """Share of the answers that the model ended itself, without those to questions that were not asked."""
    answer_nll: NonNegative | None
    token_nll: NonNegative | None
    """Nats per token."""
    token_nll_after: NonNegative | None = None
    """The same right after each document or segment was observed; None if they were not scored again."""
    bits_per_byte: NonNegative | None
    anchor_f1_before: Share | None
    anchor_f1: Share | None
    anchor_nll_before: NonNegative | None
    """Nats per token of the anchor documents before the stream."""
    anchor_nll: NonNegative | None
    recall: Share | None = None
    """Share of the questions whose document was among those used, for methods that name documents."""
    changed: Count = 0
    """The questions whose fact has changed by then: those of ``f1_current`` and ``stale``."""
    f1_current: Share | None = None
    stale: Share | None = None
    """Share of the answers on changed facts that match an earlier truth and not the present one."""
    f1_unchanged: Share | None = None


class Failure(_Record):
    """Reason for which a cell has no scores."""

    kind: Literal["failed", "diverged", "out_of_memory", "worker_died"]
    message: str
    traceback: str
    position: Count | None
    """Stream position at which it happened."""


class Manifest(_Record):
    """Base of the records that are files of their own. :mod:`bench.records.store` adds a digest to each file."""

    schema_version: Literal[4] = SCHEMA


class RunRecord(Manifest):
    """The manifest ``run.json``. Its id and keys are those of its spec, and its status fits its content."""

    id: str
    cell_key: str
    comparability_key: str
    status: Literal["complete", "failed", "diverged"]
    control: bool
    """True for methods that see the evidence, or break another rule on purpose."""
    tunable: bool = False
    """True for methods with settings to tune: without a tuning record their rows are untuned."""
    spec: CellSpec
    summary: Summary | None
    costs: Costs | None
    failure: Failure | None
    files: dict[str, str] = {}
    """SHA-256 of each file of events, by its name."""
    notes: dict[str, Any] = {}
    """Facts that the method reports (``Method.notes``), such as the tagger in use."""
    provenance: dict[str, Any]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        keys = {"id": self.spec.id, "cell_key": self.spec.key, "comparability_key": self.spec.comparability_key}
        for name, value in keys.items():
            if getattr(self, name) != value:
                raise ValueError(f"the {name} is not that of the spec")
        kind = None if self.failure is None else "diverged" if self.failure.kind == "diverged" else "failed"
        if self.status != (kind or "complete"):
            raise ValueError(f"the status is {self.status}, but the failure says {kind or 'that there was none'}")
        has_results = (self.summary is not None, self.costs is not None)
        if has_results != ((True, True) if kind is None else (False, False)):
            raise ValueError("complete runs, and no others, have a summary and costs")
        return self


class TrialRecord(TypedDict):
    """One candidate: settings of a method, and how it does on the validation streams."""

    config: dict[str, Any]
    score: float | None
    """Mean over the validation streams; None if a run has no results."""
    answer_nll: float | None
    """The same of the answers' NLL."""
    documents: int
    """Documents of each stream on which the score was measured."""
    whole: bool
    """True if it ran on whole streams, False if it was stopped after their first part."""
    runs: list[str]
    """Ids of all its runs: on the first part of each stream and, if it went on, on each whole stream."""


class TuningRecord(Manifest):
    """``runs/tuning/<key>.json``: every trial of one method on the validation streams, and the chosen config."""

    key: str
    method: str
    dataset: str
    model: str
    model_hash: str
    metric: Literal["f1", "token_nll"]
    space: dict[str, Any]
    """The settings that were tuned, with their range or choices."""
    floor: float | None
    """Mean score of the method without any document on the whole streams; None for token_nll."""
    trials: tuple[TrialRecord, ...]
    chosen: dict[str, Any]
    runs: list[str]
    """Ids of the runs of the floor, which are part of the cost of tuning."""


class BoardEntry(_Record):
    """One method of an experiment, as the experiment plans it."""

    method: str
    runs: list[str]
    tuning: str | None
    """Key of its tuning record; None if nothing was tuned."""
    hand_set: list[str]
    """Settings that the experiment states, in place of the method's defaults (dotted names)."""


class BoardRecord(Manifest):
    """``runs/boards/<experiment>.json``: the runs of an experiment's board, and remarks for its readers."""

    experiment: str
    entries: list[BoardEntry]
    remarks: list[str]
    overlaps: list[str] = []
    """What the splits of the experiment share although they should not; if there is any, every row is marked."""
    bases: list[str] = []
    """Names of the boards of the same methods on the experiment's other pairs of dataset and base model."""

    @property
    def runs(self) -> list[str]:
        """Ids of the runs of all entries, each once."""
        return list(dict.fromkeys(run for entry in self.entries for run in entry.runs))

    @property
    def tuning(self) -> list[str]:
        """Keys of the tuning records of all entries."""
        return [entry.tuning for entry in self.entries if entry.tuning is not None]


def documents_seen(probe: float, documents: int) -> int:
    """Documents of a stream that have been observed at a probe: the fraction as it is written, rounded up.

    0.14 of 50 documents are 7, although the float nearest to 0.14 is a little more.
    """
    return math.ceil(Fraction(str(probe)) * documents)


def first_probe(probes: Sequence[float]) -> float:
    """The first probe that is not before the stream.

    Raises:
        ValueError: there is none.
    """
    return min(probe for probe in probes if probe > 0)


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None without values."""
    return sum(values) / len(values) if values else None
