"""The loop: score each document, let the method observe it, and answer the questions at each probe."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch

from bench.answering import metrics
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import Answer
from bench.answering.prompts import Prompt, build_prompts
from bench.answering.retune import Retune
from bench.answering.retuning import retuned
from bench.contract.config import MethodConfig
from bench.contract.method import Conditioning, Method, Scored
from bench.data.documents import Document, Entry, Episode, EvidencedQuestion, GoldQuestion, Question, superseded
from bench.data.scripts import Segmentation
from bench.errors import Diverged, RunError
from bench.harness.integrity import checksum
from bench.harness.ledger import Ledger, state_bytes
from bench.harness.token_notes import TokenNotes
from bench.lm.base_model import BaseModel, TokenBatch
from bench.lm.mixing import MixNextToken
from bench.lm.precision import in_float64
from bench.lm.reading import CarriedCache, Reading
from bench.records.schema import (
    AnswerEvent,
    Asked,
    DocumentEvent,
    Summary,
    TokenEvent,
    documents_seen,
    first_probe,
)
from bench.records.summary import summarize
from bench.seeds import seed_for


def construct(
    kind: type[Method], lm: BaseModel, config: MethodConfig, seed: int, segment_tokens: int | None = None
) -> Method:
    """Construct a method, with torch's generator seeded for random draws in its constructor.

    ``segment_tokens`` are those of the experiment; a method may ask for others.

    Raises:
        BenchError: the method needs what this base does not do.
        TypeError: the instance has another base, other settings or another seed than it was given, or says something
            else about being a control than its class.
    """
    lm.abilities.require(kind.needs(config), type(lm.model).__name__, kind.name)
    torch.manual_seed(seed_for(seed, "construct"))
    declared = {flag: getattr(kind, flag) for flag in ("sees_evidence", "control")}
    method = kind(lm, config, seed)
    if method.lm is not lm:
        raise TypeError(f"{kind.name} replaces self.lm: the harness scores and asks the base that it was given.")
    if (method.config, method.seed) != (config, seed):
        raise TypeError(f"{kind.name} drops its settings or its seed: pass config and seed on to super().__init__.")
    method.experiment_segment_tokens = segment_tokens
    for flag, value in declared.items():
        if any(getattr(owner, flag) is not value for owner in (method, kind)):
            raise TypeError(f"{kind.name} changes {flag}: state it once, in the body of the class.")
    return method


def fit(method: Method, episodes: Sequence[Episode]) -> None:
    """Let the method learn offline, with torch's generator seeded; :meth:`Method.reset` then returns to the result."""
    torch.manual_seed(seed_for(method.seed, "fit"))
    method.fit(episodes)
    method.keep()


@dataclass(frozen=True)
class DueQuestion:
    """A question to ask at a probe, with its document and the document's position in the stream.

    ``earlier`` are the questions on the same fact that it supersedes, the oldest first.
    """

    gold: GoldQuestion
    document: Document
    position: int
    earlier: tuple[GoldQuestion, ...] = ()
    set: Literal["stream", "anchor"] = "stream"


def due_questions(entries: Sequence[Entry]) -> list[DueQuestion]:
    """The questions of the entries, except those that another of them supersedes."""
    questions = [DueQuestion(gold, entry.document, i) for i, entry in enumerate(entries) for gold in entry.questions]
    golds = {question.gold.question.id: question.gold for question in questions}
    revised = superseded(golds.values())
    return [
        replace(question, earlier=_earlier(question.gold, golds)) if question.gold.revises else question
        for question in questions
        if question.gold.question.id not in revised
    ]


def _earlier(gold: GoldQuestion, golds: Mapping[str, GoldQuestion]) -> tuple[GoldQuestion, ...]:
    """Those of ``golds`` that the question supersedes, directly or in turn, the oldest first."""
    ids = list(gold.supersedes)
    for old in ids:  # it grows meanwhile
        ids += [older for older in (golds[old].supersedes if old in golds else ()) if older not in ids]
    return tuple(golds[old] for old in reversed(ids) if old in golds)


def question_for_method(sees_evidence: bool, question: Question, document: Document) -> Question:
    """The question as a method sees it: with its document if the method sees the evidence."""
    if not sees_evidence:
        return question
    return EvidencedQuestion(question.id, question.text, question.timestamp, evidence=document)


@dataclass(frozen=True)
class Score:
    """Score of a segment: its negative log-likelihood (nats) and its tokens' log-probabilities, detached, by window."""

    nll: float
    log_probs: Sequence[torch.Tensor]


@dataclass
class Loop:
    """One pass of one method over one stream. ``documents`` are observed; the questions are those of ``entries``.

    ``documents`` are those of the entries, except on control arms, which observe others or none. With ``questions`` =
    "first" every probe asks the questions of the first probe, without those that the stream supersedes later. With
    ``documents_per_reset`` = n the method is reset every n documents and then asked the questions about these n, except
    those that later documents of the stream supersede. Together they are the questions asked at the end of the stream.
    With ``retune`` the model is tuned on the questions of ``qa_train`` before it answers, which is undone afterwards.
    With ``reread`` each segment is scored again after it was observed, which counts as no cost. ``gradient_norms`` is
    the number of documents whose tokens' gradients are noted.
    """

    method: Method
    entries: Sequence[Entry]
    documents: Sequence[Document]
    anchor: Sequence[Entry] = ()
    probes: Sequence[float] = (1.0,)
    questions: Asked = "seen"
    documents_per_reset: int | None = None
    scoring: bool = True
    reread: bool = False
    gradient_norms: int = 0
    decoding: Decoding = field(default_factory=Decoding)
    retune: Retune | None = None
    qa_train: Sequence[Episode] = ()
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
        if not self.documents and due:
            self.probe(max(self.probes), len(self.entries))
        self._measure_state()

    def _measure_state(self) -> None:
        with self.hook("state_dict", self.position):
            self.state_bytes = max(self.state_bytes, state_bytes(self.method))

    def _run_in_groups(self, every: int) -> None:
        due = self._due(len(self.entries)) if max(self.probes) > 0 else []
        for first in range(0, len(self.documents), every):
            with self.hook("reset", self.position):
                self.method.reset()
            group = range(first, min(first + every, len(self.documents)))
            for position in group:
                self.position = position
                self.step(position, self.documents[position])
            with self._flushed(str(first)), self._answering(str(first)):
                self.ask(max(self.probes), [question for question in due if question.position in group])
            self._measure_state()

    def step(self, position: int, document: Document) -> None:
        """Process one document: score, then observe each of its segments."""
        size = self.method.segment_tokens
        segments: Sequence[Document] = [document] if size is None else self.lm.segments(document, size)
        notes = TokenNotes(position, document, self.entries, position < self.gradient_norms)
        begins = type(self.method).begin_document is not Method.begin_document
        phase = self.ledger.phase("observe", 0, count=True) if begins else contextlib.nullcontext()
        torch.manual_seed(seed_for(self.seed, "begin_document", position))
        with self.hook("begin_document", position), phase:
            self.method.begin_document()
        for index, segment in enumerate(segments):
            batch = self.lm.tokens(segment)
            score = self.score(batch) if self.scoring else None
            notes.before(self.method, batch)
            before = self.ledger.seconds("observe")
            torch.manual_seed(seed_for(self.seed, "observe", position, index))
            phase = self.ledger.phase("observe", len(batch), graph=self.method.scored is not None)
            with self.hook("observe", position), phase:
                self.method.observe(segment)
            self.method.scored = None  # frees the graph if the method did not use it
            notes.after(self.method, batch, score.log_probs if score is not None else [])
            self.document_events.append(
                DocumentEvent(
                    position=position,
                    segment=index,
                    document_id=document.id,
                    timestamp=document.timestamp,
                    tokens=len(batch),
                    bytes=len(segment.text.encode()),
                    windows=self.method.reading.windows(self.lm, batch),
                    nll=score.nll if score is not None else None,
                    nll_after=self.score_again(batch).nll if self.reread else None,
                    observe_seconds=self.ledger.seconds("observe") - before,
                )
            )
        self.token_events += notes.events()

    def score(self, batch: TokenBatch) -> Score:
        """Score the tokens of a document, or of a segment, under the model as it is now.

        If the method learns from scoring and they are read in one window, the method gets the graph.
        """
        self.lm.model.eval()
        reading = self.method.reading
        mix = self._mix
        # a mixture is not what is learned
        keep_graph = self.method.learns_from_scoring and mix is None and reading.windows(self.lm, batch) == 1
        if keep_graph:
            with self.hook("before_scoring", self.position), self.ledger.phase("observe", 0, count=True):
                self.method.before_scoring()
        # what a mixture costs may grow along the stream, so that a sample does not show it
        phase = self.ledger.phase("score", len(batch), graph=keep_graph, count=mix is not None)
        with phase, torch.set_grad_enabled(keep_graph):
            windows = self._windows(batch)
            score = _score(windows)
        self.method.scored = Scored(batch.document, windows) if keep_graph else None
        return score

    @torch.no_grad()
    def score_again(self, batch: TokenBatch) -> Score:
        """Score a segment that the method has just observed."""
        self.lm.model.eval()
        return _score(self._windows(batch))

    def _windows(self, batch: TokenBatch) -> list[torch.Tensor]:
        """Log-probabilities of the segment's tokens under the model as it is, by window.

        Raises:
            RunError: the method reads them with code of its own.
        """
        reading = self.method.reading
        is_own = type(reading) is Reading and type(reading.cache) in (CarriedCache, type(None))
        if not is_own or "log_probs" in getattr(reading.cache, "__dict__", ()):
            raise RunError("reading must be a Reading, with a CarriedCache or none: the harness alone scores.")
        with self.lm.mixing(self._mix):
            return list(reading.log_probs(self.lm, batch))

    def probe(self, fraction: float, seen: int) -> None:
        """Ask the questions that are due after ``seen`` documents, and those of the anchor set."""
        anchor = self.anchor if fraction in (0.0, max(self.probes)) else ()
        of_anchor = [replace(question, set="anchor") for question in due_questions(anchor)]
        with self._flushed(str(fraction)):
            with self._answering(str(fraction)):
                self.ask(fraction, [*self._due(seen), *of_anchor])
            if anchor:
                self.anchor_nll[fraction] = self._mean_nll([entry.document for entry in anchor])

    def _due(self, seen: int) -> list[DueQuestion]:
        """The questions on the first ``seen`` documents or, with ``questions`` = "first", on no more than the first.

        Then questions that any document of the stream supersedes are never asked: every probe has the same ones.
        """
        if self.questions == "seen":
            return due_questions(self.entries[:seen])
        first = documents_seen(first_probe(self.probes), len(self.entries))
        return [question for question in due_questions(self.entries) if question.position < min(first, seen)]

    @contextlib.contextmanager
    def _flushed(self, when: str) -> Iterator[None]:
        """Context in which the method has learned all that it observed. Its state is the same before and after it."""
        if type(self.method).flush is Method.flush:
            yield
            return
        with self.hook("state_dict", self.position):
            state = self.method.state_dict()
        torch.manual_seed(seed_for(self.seed, "flush", when))
        with self.hook("flush", self.position), self.ledger.phase("observe", 0, count=True):
            self.method.flush()
        yield
        with self.hook("load_state_dict", self.position):
            self.method.load_state_dict(state)

    @property
    def _mix(self) -> MixNextToken | None:
        """The method's next-token hook, if it has one."""
        if type(self.method).mix_next_token is Method.mix_next_token:
            return None

        def mix(log_probs: torch.Tensor, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            with self.hook("mix_next_token", self.position):
                return self.method.mix_next_token(log_probs, hidden, ids)

        return mix

    @contextlib.contextmanager
    def _answering(self, when: str) -> Iterator[None]:
        """Context in which questions are answered, after retuning. The base's weights are the same before and after it.

        Raises:
            Diverged: a weight is NaN or infinite.
            RunError: the method changed weights and did not restore them.
        """
        self.lm.model.eval()
        tensors = dict(self.lm.named_tensors())
        # a sum is finite only if its terms are, and is much faster; the device is read once for all
        known = [tensor.detach().sum().isfinite().to(self.lm.device) for tensor in tensors.values()]
        finite = torch.stack(known).tolist()
        for (name, tensor), is_finite in zip(tensors.items(), finite, strict=True):
            if not is_finite and not torch.isfinite(tensor).all():
                raise Diverged(f"The weights {name} became NaN or infinite; a lower learning rate may help.")
        before = checksum(self.lm)
        with contextlib.ExitStack() as stack:
            if self.retune is not None:
                with self.ledger.phase("answer", 0, count=True):
                    stack.enter_context(retuned(self.lm, self.qa_train, self.retune, self.seed))
            torch.manual_seed(seed_for(self.seed, "answering", when))
            with self.hook("answering", self.position), self.ledger.phase("answer", 0, count=True):
                stack.enter_context(self.method.answering())
            yield
            with self.hook("answering", self.position), self.ledger.phase("answer", 0, count=True):
                stack.close()
        for (name, _), old, new in zip(self.lm.named_tensors(), before, checksum(self.lm), strict=True):
            if old != new:
                raise RunError(
                    f"The weights {name} changed while questions were answered. What condition or answering changes, "
                    f"answering must restore on exit, bit for bit."
                )

    def ask(self, fraction: float, due: Sequence[DueQuestion]) -> None:
        """Answer and score these questions, in an order that tells nothing; the events are in the order of ``due``.

        The method sees the questions only: in the order of their documents, their places would tell about these. The
        order follows from their texts alone, since a method can undo one that is drawn from a seed.

        Raises:
            RunError: ``condition`` returns no :class:`Conditioning`.
        """
        if not due:
            return
        order = sorted(range(len(due)), key=lambda i: seed_for("order", due[i].gold.question.text))
        due = [due[i] for i in order]
        questions = [  # their ids are their places, since ids of datasets may tell the document
            question_for_method(self._sees_evidence, replace(item.gold.question, id=str(i)), item.document)
            for i, item in enumerate(due)
        ]
        first_golds = [item.gold.answers[0] for item in due]
        torch.manual_seed(seed_for(self.seed, "answer", str(fraction)))
        with self.ledger.phase("answer", len(due), count=True):
            with self.hook("condition", self.position):
                conditioning = self.method.condition(questions)
            if type(conditioning) is not Conditioning:  # a class of the method's own could rank what it likes
                raise RunError(f"condition returned a {type(conditioning).__name__}: return a bench.Conditioning.")
            prompts = build_prompts(self.lm, questions, conditioning, self.decoding.max_new_tokens)
        answers, likelihoods = self._answer(prompts, first_golds, conditioning.weights)
        ranks = [conditioning.rank(i, item.document.id) for i, item in enumerate(due)]
        outdated = [
            metrics.outdated(item.gold.answers, [old.answers for old in item.earlier], self.segment) for item in due
        ]
        events = [
            AnswerEvent(
                probe=fraction,
                set=item.set,
                question_id=item.gold.question.id,
                document_id=item.document.id,
                timestamp=item.document.timestamp,
                position=item.position,
                prediction=answer.text,
                answers=item.gold.answers,
                cut_tokens=prompt.cut,
                nll=None if nll is None else _finite(nll, "likelihood of an answer"),
                ended=answer.ended,
                unanswered=prompt.unanswered,
                retrieved=rank,
                earlier=tuple(earlier),
                stale=metrics.stale(answer.text, item.gold.answers, earlier, self.segment),
                **metrics.score(answer.text, item.gold.answers, self.segment),
            )
            for item, answer, prompt, nll, rank, earlier in zip(
                due, answers, prompts, likelihoods, ranks, outdated, strict=True
            )
        ]
        places = sorted(range(len(order)), key=order.__getitem__)
        self.answer_events += [events[place] for place in places]

    def _answer(
        self, prompts: Sequence[Prompt], golds: Sequence[str], keys: Sequence[Hashable] | None
    ) -> tuple[list[Answer], list[float | None]]:
        """Answers and the likelihoods of ``golds``, answered together or, with ``keys``, together for each key."""
        # a mixture's cost is not proportional to what the base reads
        answering = partial(self.ledger.phase, "answer", 0, count=self._mix is not None)
        with self.lm.mixing(self._mix):
            if keys is None:
                return answer_and_nll(self.lm, prompts, golds, self.decoding, answering)
            results: dict[int, tuple[Answer, float | None]] = {}
            for key in dict.fromkeys(keys):
                group = [i for i, other in enumerate(keys) if other == key]
                own, own_golds = [prompts[i] for i in group], [golds[i] for i in group]
                with contextlib.ExitStack() as stack:
                    with self.hook("using", self.position), answering():
                        stack.enter_context(self.method.using(key))
                    of_group = answer_and_nll(self.lm, own, own_golds, self.decoding, answering)
                    with self.hook("using", self.position), answering():
                        stack.close()
                results |= zip(group, zip(*of_group, strict=True), strict=True)
        answers, likelihoods = zip(*(results[i] for i in range(len(prompts))), strict=True)
        return list(answers), list(likelihoods)

    def _mean_nll(self, documents: Sequence[Document]) -> float | None:
        batches = list(map(self.lm.tokens, documents))
        if not (tokens := sum(map(len, batches))):
            return None
        with self.lm.mixing(self._mix):
            return _finite(self.lm.total_nll(batches) / tokens, "likelihood of the anchor set")

    def summary(self) -> Summary:
        """Means at the last probe, and over all documents."""
        before, after = self.anchor_nll.get(0.0), self.anchor_nll.get(max(self.probes))
        return summarize(self.document_events, self.answer_events, before, after)


def _score(windows: Sequence[torch.Tensor]) -> Score:
    """The score of a segment from its tokens' log-probabilities by window.

    Raises:
        Diverged: it is NaN or infinite.
    """
    log_probs = [window.detach() for window in windows]
    nll = -sum(in_float64(window).sum().item() for window in log_probs)
    return Score(_finite(nll, "likelihood of a document"), log_probs)


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise Diverged(f"The {what} became NaN or infinite; a lower learning rate may help.")
    return value
