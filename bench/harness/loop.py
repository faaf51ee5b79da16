"""The loop: score each document, let the method observe it, and answer the questions at each probe."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from bench.answering import metrics
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.contract.config import MethodConfig
from bench.contract.method import Method, Scored
from bench.data.documents import Document, Entry, Episode, EvidencedQuestion, GoldQuestion, Question, superseded
from bench.data.scripts import Segmentation
from bench.errors import Diverged, RunError
from bench.harness.integrity import checksum
from bench.harness.ledger import Ledger, state_bytes
from bench.harness.token_notes import TokenNotes
from bench.lm.base_model import BaseModel
from bench.records.schema import AnswerEvent, DocumentEvent, Summary, TokenEvent, documents_seen
from bench.records.summary import summarize
from bench.seeds import seed_for


def construct(
    kind: type[Method], lm: BaseModel, config: MethodConfig, seed: int, segment_tokens: int | None = None
) -> Method:
    """Construct a method, with torch's generator seeded for random draws in its constructor.

    ``segment_tokens`` are those of the experiment; a method may ask for others.

    Raises:
        BenchError: the method needs what this base does not do.
        TypeError: the instance says something else about seeing the evidence than its class.
    """
    lm.abilities.require(kind.needs(config), type(lm.model).__name__, kind.name)
    torch.manual_seed(seed_for(seed, "construct"))
    declared = kind.sees_evidence
    method = kind(lm, config, seed)
    method.experiment_segment_tokens = segment_tokens
    if any(stated is not declared for stated in (method.sees_evidence, kind.sees_evidence)):
        raise TypeError(f"{kind.name} changes sees_evidence: state it once, in the body of the class.")
    return method


def fit(method: Method, episodes: Sequence[Episode]) -> None:
    """Let the method learn offline, with torch's generator seeded; :meth:`Method.reset` then returns to the result."""
    torch.manual_seed(seed_for(method.seed, "fit"))
    method.fit(episodes)
    method.keep()


@dataclass(frozen=True)
class DueQuestion:
    """A question to ask at a probe, with its document and the document's position in the stream."""

    gold: GoldQuestion
    document: Document
    position: int


def due_questions(entries: Sequence[Entry]) -> list[DueQuestion]:
    """The questions of the entries, except those that another of them supersedes."""
    questions = [DueQuestion(gold, entry.document, i) for i, entry in enumerate(entries) for gold in entry.questions]
    revised = superseded(question.gold for question in questions)
    return [question for question in questions if question.gold.question.id not in revised]


def question_for_method(sees_evidence: bool, question: Question, document: Document) -> Question:
    """The question as a method sees it: with its document if the method sees the evidence."""
    return EvidencedQuestion(question.id, question.text, document) if sees_evidence else question


@dataclass(frozen=True)
class Score:
    """Score of a segment: its negative log-likelihood (nats) and its tokens' log-probabilities, detached, by window."""

    nll: float
    log_probs: Sequence[torch.Tensor]


@dataclass
class Loop:
    """One pass of one method over one stream. ``documents`` are observed; the questions are those of ``entries``.

    ``documents`` are those of the entries, except on control arms, which observe others or none. With
    ``documents_per_reset`` = n the method is reset every n documents and then asked the questions about these n, except
    those that later documents of the stream supersede. Together they are the questions asked at the end of the stream.
    """

    method: Method
    entries: Sequence[Entry]
    documents: Sequence[Document]
    anchor: Sequence[Entry] = ()
    probes: Sequence[float] = (1.0,)
    documents_per_reset: int | None = None
    scoring: bool = True
    decoding: Decoding = field(default_factory=Decoding)
    segment: Segmentation = "words"
    seed: int = 0
    hook: Callable[[str, int | None], contextlib.AbstractContextManager[None]] = lambda *_: contextlib.nullcontext()
    """Context of each call of one of the method's hooks, from the hook's name and the position in the stream."""
    document_events: list[DocumentEvent] = field(default_factory=list)
    answer_events: list[AnswerEvent] = field(default_factory=list)
    token_events: list[TokenEvent] = field(default_factory=list)
    anchor_nll: dict[float, float | None] = field(default_factory=dict)
    position: int | None = None
    state_bytes: int = 0
    """Bytes of the method's state at the end of the stream; with ``documents_per_reset``, the most over the groups."""

    def __post_init__(self) -> None:
        self.lm: BaseModel = self.method.lm
        self.ledger = Ledger(self.lm)
        self._sees_evidence = type(self.method).sees_evidence
        self._ids: dict[tuple[str, str], str] = {}

    @property
    def events(self) -> tuple[list[DocumentEvent], list[AnswerEvent], list[TokenEvent]]:
        """Events of documents, answers and tokens, for the record."""
        return self.document_events, self.answer_events, self.token_events

    def run(self) -> None:
        """Reset the method and go through the stream once, left to right; without documents, ask all questions.

        Raises:
            Diverged: a score or a weight became NaN or infinite.
        """
        if self.documents_per_reset is not None:
            return self._run_in_groups(self.documents_per_reset)
        with self.hook("reset", self.position):
            self.method.reset()
        due = [(documents_seen(probe, len(self.documents)), probe) for probe in sorted(self.probes) if probe > 0]
        if self.anchor or 0.0 in self.probes:
            self.probe(0.0, 0)
        for position, document in enumerate(self.documents):
            self.position = position
            self.step(position, document)
            for seen, probe in due:
                if seen == position + 1:
                    self.probe(probe, seen)
        if not self.documents:
            self.probe(max(self.probes), len(self.entries))
        self._measure_state()

    def _measure_state(self) -> None:
        with self.hook("state_dict", self.position):
            self.state_bytes = max(self.state_bytes, state_bytes(self.method))

    def _run_in_groups(self, every: int) -> None:
        due = due_questions(self.entries)
        for first in range(0, len(self.documents), every):
            with self.hook("reset", self.position):
                self.method.reset()
            group = range(first, min(first + every, len(self.documents)))
            for position in group:
                self.position = position
                self.step(position, self.documents[position])
            with self._answering(str(first)):
                self.ask(max(self.probes), "stream", [question for question in due if question.position in group])
            self._measure_state()

    def step(self, position: int, document: Document) -> None:
        """Process one document: score, then observe each of its segments."""
        size = self.method.segment_tokens
        segments: Sequence[Document] = [document] if size is None else self.lm.segments(document, size)
        notes = TokenNotes(position, document, self.entries)
        with self.hook("begin_document", position):
            self.method.begin_document()
        for index, segment in enumerate(segments):
            batch = self.lm.tokens(segment)
            score = self.score(segment) if self.scoring else None
            before = self.ledger.seconds("observe")
            torch.manual_seed(seed_for(self.seed, "observe", position, index))
            phase = self.ledger.phase("observe", len(batch), graph=self.method.scored is not None)
            with self.hook("observe", position), phase:
                self.method.observe(segment)
            self.method.scored = None  # frees the graph if the method did not use it
            notes.add(self.method, batch, score.log_probs if score is not None else [])
            self.document_events.append(
                DocumentEvent(
                    position=position,
                    segment=index,
                    document_id=document.id,
                    tokens=len(batch),
                    bytes=len(segment.text.encode()),
                    windows=self.method.reading.windows(self.lm, batch),
                    nll=score.nll if score is not None else None,
                    observe_seconds=self.ledger.seconds("observe") - before,
                )
            )
        self.token_events += notes.events()

    def score(self, document: Document) -> Score:
        """Score the document's tokens under the model as it is now.

        If the method learns from scoring and the document is read in one window, the method gets the graph.
        """
        batch = self.lm.tokens(document)
        self.lm.model.eval()
        reading = self.method.reading
        keep_graph = self.method.learns_from_scoring and reading.windows(self.lm, batch) == 1
        if keep_graph:
            with self.hook("before_scoring", self.position):
                self.method.before_scoring()
        with self.ledger.phase("score", len(batch), graph=keep_graph), torch.set_grad_enabled(keep_graph):
            windows = list(reading.log_probs(self.lm, batch))
            log_probs = [window.detach() for window in windows]
            nll = -sum(window.double().sum().item() for window in log_probs)
        self.method.scored = Scored(document, windows) if keep_graph else None
        return Score(_finite(nll, "likelihood of a document"), log_probs)

    def probe(self, fraction: float, seen: int) -> None:
        """Ask the questions about the first ``seen`` documents, except superseded ones, and those of the anchor set."""
        with_anchor = bool(self.anchor) and fraction in (0.0, max(self.probes))
        with self._answering(str(fraction)):
            self.ask(fraction, "stream", due_questions(self.entries[:seen]))
            if with_anchor:
                self.ask(fraction, "anchor", due_questions(self.anchor))
        if with_anchor:
            self.anchor_nll[fraction] = self._mean_nll([entry.document for entry in self.anchor])

    @contextlib.contextmanager
    def _answering(self, when: str) -> Iterator[None]:
        """Context in which questions are answered. The base's weights are the same before and after it.

        Raises:
            Diverged: a weight is NaN or infinite.
            RunError: the method changed weights and did not restore them.
        """
        self.lm.model.eval()
        for name, tensor in self.lm.named_tensors():
            # a sum is finite only if its terms are, and is much faster
            if not torch.isfinite(tensor.detach().sum()) and not torch.isfinite(tensor).all():
                raise Diverged(f"The weights {name} became NaN or infinite; a lower learning rate may help.")
        before = checksum(self.lm)
        torch.manual_seed(seed_for(self.seed, "answering", when))
        with contextlib.ExitStack() as stack:
            with self.hook("answering", self.position), self.ledger.phase("answer", 0, count=True):
                stack.enter_context(self.method.answering())
            yield
            with self.hook("answering", self.position):
                stack.close()
        for (name, _), old, new in zip(self.lm.named_tensors(), before, checksum(self.lm), strict=True):
            if old != new:
                raise RunError(
                    f"The weights {name} changed while questions were answered. What condition or answering changes, "
                    f"answering must restore on exit, bit for bit."
                )

    def ask(self, fraction: float, which: Literal["stream", "anchor"], due: Sequence[DueQuestion]) -> None:
        """Answer and score these questions, in a random order; the events are recorded in the order of ``due``.

        The method sees the questions only: in the order of their documents, their places would tell about these.
        """
        if not due:
            return
        generator = torch.Generator().manual_seed(seed_for(self.seed, "order", which, str(fraction)))
        order = torch.randperm(len(due), generator=generator).tolist()
        due = [due[i] for i in order]
        questions = [self._question(which, item) for item in due]
        first_golds = [item.gold.answers[0] for item in due]
        torch.manual_seed(seed_for(self.seed, "answer", which, str(fraction)))
        with self.ledger.phase("answer", len(due), count=True):
            with self.hook("condition", self.position):
                conditioning = self.method.condition(questions)
            prompts = build_prompts(self.lm, questions, conditioning, self.decoding.max_new_tokens)
        answering = partial(self.ledger.phase, "answer", 0, count=True)
        predictions, likelihoods = answer_and_nll(self.lm, prompts, first_golds, self.decoding, answering)
        ranks = [conditioning.rank(i, item.document.id) for i, item in enumerate(due)]
        events = [
            AnswerEvent(
                probe=fraction,
                set=which,
                question_id=item.gold.question.id,
                document_id=item.document.id,
                position=item.position,
                prediction=prediction,
                answers=item.gold.answers,
                cut_tokens=prompt.cut,
                nll=None if nll is None else _finite(nll, "likelihood of an answer"),
                unanswered=prompt.unanswered,
                retrieved=rank,
                **metrics.score(prediction, item.gold.answers, self.segment),
            )
            for item, prediction, prompt, nll, rank in zip(due, predictions, prompts, likelihoods, ranks, strict=True)
        ]
        places = sorted(range(len(order)), key=order.__getitem__)
        self.answer_events += [events[place] for place in places]

    def _question(self, which: str, item: DueQuestion) -> Question:
        """The question as the method sees it.

        Its id is a number, in the order in which questions are first asked: ids of data sets may tell the document.
        """
        number = self._ids.setdefault((which, item.gold.question.id), str(len(self._ids)))
        return question_for_method(self._sees_evidence, Question(number, item.gold.question.text), item.document)

    def _mean_nll(self, documents: Sequence[Document]) -> float | None:
        batches = list(map(self.lm.tokens, documents))
        tokens = sum(map(len, batches))
        return _finite(self.lm.total_nll(batches) / tokens, "likelihood of the anchor set") if tokens else None

    def summary(self) -> Summary:
        """Means at the last probe, and over all documents."""
        before, after = self.anchor_nll.get(0.0), self.anchor_nll.get(max(self.probes))
        return summarize(self.document_events, self.answer_events, before, after)


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise Diverged(f"The {what} became NaN or infinite; a lower learning rate may help.")
    return value
