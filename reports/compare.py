"""Paired comparison of two rows on the same questions: of one board, of two folders of records, or of two commits.

Only comparable cells are paired. Errors and tests are those of :mod:`reports.statistics`; :mod:`reports.compare_tables`
shows them on a terminal, and :mod:`reports.compare_plot` draws them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bench.errors import BenchError
from bench.hashing import content
from bench.records.schema import AnswerEvent
from bench.settings import dotted
from reports import sides
from reports.board import load, named
from reports.ranks import holm
from reports.rows import ANSWER_SCORES, TEXT_SCORES, Group, final_answers, read_items
from reports.statistics import (
    ErrorKind,
    Estimate,
    Item,
    Pairs,
    Plan,
    Sample,
    bootstrap_interval,
    difference,
    error_kind,
    is_exact,
    mean_of,
    pairs,
    permutation_p_value,
    plan,
)

SCORES = (*ANSWER_SCORES, *TEXT_SCORES)
"""Scores that can be compared."""
LOWER_IS_BETTER = ("answer_nll", "stale", *TEXT_SCORES)


class Inference(NamedTuple):
    """One way to infer the true difference from the paired ones."""

    method: str
    kind: ErrorKind
    """What the independent units are."""
    units: int
    mean: float
    interval: tuple[float, float] | None
    """At 95 %; None for a test without an interval, or for one unit."""
    p_value: float | None


class Answered(NamedTuple):
    """One question with the answers of both rows: one for each seed and order, in the order of these."""

    stream: str
    question_id: str
    document_id: str
    gold: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]
    score_a: float
    """Mean over seeds and orders."""
    score_b: float


@dataclass(frozen=True)
class Pair:
    """Two rows on the same streams; differences are ``a`` minus ``b``."""

    title: str
    """The board, or the row that both sides have."""
    a: Group
    b: Group
    score: str
    streams: tuple[str, ...]
    left_out: int
    """Streams on which not both of the two have results."""
    items: tuple[Sequence[Item], Sequence[Item]]

    @property
    def is_same(self) -> bool:
        """True if both have the same cells."""
        return {record.id for record in self.a.records} == {record.id for record in self.b.records}

    @cached_property
    def samples(self) -> tuple[Sample, Sample]:
        """The scores of both."""
        return Sample.of(self.items[0]), Sample.of(self.items[1])

    @property
    def error(self) -> ErrorKind:
        """The error to show, as on boards: over streams if there are several."""
        return error_kind(len(self.streams))

    @cached_property
    def estimate(self) -> Estimate:
        """The paired difference."""
        return difference(*self.samples, self.error)

    @property
    def sign(self) -> int:
        """1 if a higher score is better, else -1."""
        return -1 if self.score in LOWER_IS_BETTER else 1

    def by_stream(self) -> dict[str, Estimate]:
        """The paired difference within each stream, with SE_doc."""
        of = {stream: [[i for i in items if i.stream == stream] for items in self.items] for stream in self.streams}
        return {stream: difference(Sample.of(a), Sample.of(b), "SE_doc") for stream, (a, b) in of.items()}

    def counts(self) -> tuple[int, int, int]:
        """Units on which ``a`` is better, ``b`` is better, and both are equal."""
        a, b = self.samples
        gains = [self.sign * (item.value - b.units[key].value) for key, item in a.units.items()]
        better, worse = sum(gain > 1e-12 for gain in gains), sum(gain < -1e-12 for gain in gains)
        return better, worse, len(gains) - better - worse

    def settings(self) -> list[tuple[str, str | None, str | None]]:
        """What differs in the specs and the provenance of the two: name, and the values of both; None for no value."""
        a, b = _facts(self.a), _facts(self.b)
        return [(name, a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)]

    def plans(self, gap: float) -> list[Plan]:
        """How many streams, and how many documents, would resolve a gap."""
        return [found for kind in _KINDS if (found := plan(*self.samples, gap, kind)) is not None]

    def answered(self) -> list[Answered]:
        """The questions, in the order of the streams.

        Raises:
            BenchError: the score is not one of answers.
        """
        if self.score not in ANSWER_SCORES:
            raise BenchError(
                f"{self.score} is not a score of answers: --questions shows those of {', '.join(ANSWER_SCORES)}."
            )
        answers_a, answers_b = (_answers(group, self.streams) for group in (self.a, self.b))
        a, b = self.samples
        found = []
        for key, item in a.units.items():
            events = answers_a[key], answers_b[key]
            first = events[0][0]
            text_a, text_b = (tuple(event.prediction for event in of) for of in events)
            score_b = b.units[key].value
            found.append(
                Answered(
                    item.stream, first.question_id, item.document, first.answers, text_a, text_b, item.value, score_b
                )
            )
        return found


_KINDS: tuple[ErrorKind, ErrorKind] = ("SE_stream", "SE_doc")


@dataclass(frozen=True)
class Comparison:
    """What two sides have in common: one row each on one or several boards, or the rows of two boards."""

    a: str
    b: str
    pairs: tuple[Pair, ...]
    of_rows: bool
    """True if each side is one row, on one or several boards; False for the rows of two boards."""
    remarks: tuple[str, ...]

    @property
    def pooled(self) -> bool:
        """True if the mean over the boards is shown: they are several, ask alike, and are independent of each other.

        They have no document in common, nor, with several seeds, trained weights.
        """
        documents = [{item.document for item in pair.items[0]} for pair in self.pairs]
        is_alike = len({_questioning(pair) for pair in self.pairs}) == 1
        trained = [{*a.trainings.values(), *b.trainings.values()} for a, b in (pair.samples for pair in self.pairs)]
        is_disjoint = all(len(set().union(*of)) == sum(map(len, of)) for of in (documents, trained))
        return self.of_rows and len(self.pairs) > 1 and is_alike and is_disjoint

    def adjusted(self) -> list[float | None]:
        """For the rows of two boards: the p-value of each by the t test, adjusted for their number (Holm).

        Rows with the same cells and scores on both sides are no tests, and have none.
        """
        p_values = {
            place: p
            for place, pair in enumerate(self.pairs)
            if not (pair.is_same and pair.counts()[:2] == (0, 0)) and (p := pair.estimate.p_value()) is not None
        }
        corrected = holm(p_values)
        return [corrected.get(place) for place in range(len(self.pairs))]


def inferences(of: Sequence[Pair]) -> list[Inference]:
    """Intervals and p-values of the difference, or of the mean difference over several boards.

    t intervals include what the seeds add; the bootstrap and the permutation tests are about the seeds that ran.
    """
    found = []
    for kind in _KINDS:
        if kind == "SE_stream" and min(len(pair.streams) for pair in of) == 1:
            continue
        found.append(t_test(of, kind))
        if kind == "SE_doc":
            found.append(bootstrap(of, kind))
        found.append(permutation(of, kind))
    return found


def t_test(of: Sequence[Pair], kind: ErrorKind) -> Inference:
    """The t interval and test."""
    estimates = [difference(*pair.samples, kind) for pair in of]
    estimate = mean_of(estimates) if len(of) > 1 else estimates[0]
    return Inference("t", kind, estimate.n, estimate.mean, estimate.interval(), estimate.p_value())


def bootstrap(of: Sequence[Pair], kind: ErrorKind) -> Inference:
    """The bootstrap interval."""
    return t_test(of, kind)._replace(method="bootstrap", interval=bootstrap_interval(_parts(of, kind)), p_value=None)


def permutation(of: Sequence[Pair], kind: ErrorKind) -> Inference:
    """The permutation test."""
    test = t_test(of, kind)
    name = "permutation (exact)" if is_exact(test.units) else "permutation"
    return test._replace(method=name, interval=None, p_value=permutation_p_value(_parts(of, kind)))


def _parts(of: Sequence[Pair], kind: ErrorKind) -> list[Pairs]:
    return [pairs(*pair.samples, kind) for pair in of]


def compare(a: str, b: str, runs: Path, experiments: Sequence[str] = (), score: str | None = None) -> Comparison:
    """Compare two rows, or the rows that two boards have in common (:mod:`reports.sides` says what a side can be).

    Rows are looked for on the boards of ``experiments`` under ``runs`` (default: the newest). The score is by default
    F1 or, without questions, the NLL per token.

    Raises:
        BenchError: a side is not found, the two have nothing in common, or their cells are not comparable; the message
            says in what they differ.
    """
    if score is not None and score not in SCORES:
        raise BenchError(f"There is no score {score!r} to compare. Known: {', '.join(SCORES)}.")
    if sides.are_rows(a, b, runs):
        return _of_rows(a, b, runs, experiments or [None], score)
    return _of_boards(a, b, runs, experiments or [None], score)


def _of_rows(a: str, b: str, runs: Path, experiments: Sequence[str | None], score: str | None) -> Comparison:
    found = []
    for experiment in experiments:
        groups, board = load(runs, experiment)
        left, right = (named(groups, side, board.experiment) for side in (a, b))
        if left is right:
            raise BenchError(f"{a} and {b} are the same row of the board {board.experiment}.")
        spec = left.records[0].spec
        found.append(_pair(f"{board.experiment}: {spec.dataset}, {spec.model}", left, right, score))
    _check_alike(found)
    comparison = Comparison(a, b, tuple(found), True, ())
    if len(found) > 1 and not comparison.pooled:
        remark = (
            "There is no mean over the boards: some have documents in common, or ask or answer in another way, so they "
            "are not independent measurements of one thing."
        )
        return replace(comparison, remarks=(remark,))
    return comparison


def _of_boards(a: str, b: str, runs: Path, experiments: Sequence[str | None], score: str | None) -> Comparison:
    """Compare the rows that two boards have in common, by their labels."""
    found: list[Pair] = []
    remarks = []
    for experiment in experiments:
        rows_a, rows_b = ({row.label: row for row in rows} for rows in sides.boards_of(a, b, runs, experiment))
        prefix = f"{experiment}: " if len(experiments) > 1 else ""
        common = {label: (row, rows_b[label]) for label, row in rows_a.items() if label in rows_b}
        if failed := [label for label, both in common.items() if not all(row.complete() for row in both)]:
            remarks.append(f"Without results on both sides: {', '.join(failed)}.")
        found += [_pair(prefix + label, *both, score) for label, both in common.items() if label not in failed]
        for side, only in ((a, rows_a.keys() - rows_b.keys()), (b, rows_b.keys() - rows_a.keys())):
            if only:
                remarks.append(f"Only in {side}: {', '.join(sorted(only))}.")
    if not found:
        raise BenchError(f"{a} and {b} have no row with results in common. {' '.join(remarks)}")
    _check_alike(found)
    if same := sum(pair.is_same for pair in found):
        remarks.append(
            f"{same} of {len(found)} rows have the same cells in both: only machines and packages can differ."
        )
    return Comparison(a, b, tuple(found), False, tuple(remarks))


def _check_alike(found: Sequence[Pair]) -> None:
    """Refuse boards of different protocols, scores or metrics side by side."""
    first = found[0]
    for other in found[1:]:
        facts = [_conditions(pair) for pair in (first, other)]
        if names := [name for name in facts[0] if facts[0][name] != facts[1].get(name)]:
            raise BenchError(
                f"{first.title} and {other.title} cannot be put together; they differ in {', '.join(names)}."
            )


def _questioning(pair: Pair) -> str:
    """Which questions are asked, and how they are answered."""
    spec = pair.a.records[0].spec
    return content([spec.questions, spec.decoding, spec.retune, spec.prompt])


def _conditions(pair: Pair) -> Mapping[str, str]:
    """What the scores of several boards must have in common before they are shown together."""
    spec = pair.a.records[0].spec
    return {"score": pair.score, "protocol": spec.protocol, "segment": spec.segment, **spec.metrics}


def _pair(title: str, a: Group, b: Group, score: str | None) -> Pair:
    """Pair two rows on the streams that both have."""
    scored = read_items(a), read_items(b)
    both = [name for name in SCORES if all(items.get(name) for items in scored)]
    if score is None:
        score = next((name for name in ("f1", "token_nll") if name in both), None)
    if score not in both:
        problem = f"no {score}" if score else "no score"
        raise BenchError(f"{a.label} and {b.label} have {problem} in common on {title}: {', '.join(both) or 'none'}.")
    streams = [{item.stream for item in items[score]} for items in scored]
    common = streams[0] & streams[1]
    if not common:
        raise BenchError(f"{a.label} and {b.label} have no stream in common on {title}.")
    of = [[item for item in items[score] if item.stream in common] for items in scored]
    planned = {record.spec.stream for group in (a, b) for record in group.records}
    return Pair(title, a, b, score, tuple(sorted(common)), len(planned - common), (of[0], of[1]))


def _facts(group: Group) -> Mapping[str, str]:
    """What a row was made with, as texts: of several values all, separated by commas."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for record in group.records:
        spec, of = record.spec, record.provenance
        commit = of.get("commit")
        facts: dict[str, Any] = {
            "method": spec.method,
            "arm": spec.arm,
            "seed": spec.seed,
            "order": spec.order,
            "code of the method": spec.method_code[:8],
            **{f"dependency {name}": value[:8] for name, value in spec.dependencies.items()},
            "trained weights": spec.train_hash[:8],
            "device": spec.device,
            "processor": of.get("gpu") or of.get("cpu"),
            "threads": of.get("threads"),
            "commit": commit and f"{commit[:8]}{' with changes' * bool(of.get('dirty'))}",
            **{f"package {name}": version for name, version in (of.get("packages") or {}).items()},
        }
        settings = dotted(spec.config).items()
        named = {f"{name} (setting)" if name in facts else name: value for name, value in settings}
        for name, value in {"method": spec.method, **named, **facts}.items():
            if value not in (None, ""):
                values[name][str(value)] = None
    return {name: ", ".join(sorted(of)) for name, of in values.items()}


def _answers(group: Group, streams: Sequence[str]) -> Mapping[tuple[str, str], list[AnswerEvent]]:
    """The final answers to each question, by stream and unit (:class:`reports.statistics.Item`)."""
    found: dict[tuple[str, str], list[AnswerEvent]] = defaultdict(list)
    for record in sorted(group.complete(), key=lambda record: (record.spec.seed, record.spec.order)):
        if record.spec.stream in streams:
            for event in final_answers(group.runs, record):
                found[record.spec.stream, f"question {event.question_id}"].append(event)
    return found
