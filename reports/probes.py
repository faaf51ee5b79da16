"""Answers and scores of a row at each probe of its streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.records.schema import AnswerEvent, documents_seen
from bench.records.store import read_answers
from reports.origins import summary_of
from reports.rows import Row, run_of
from reports.spread import Run, Runs
from reports.statistics import Estimate, Item, mean_over_streams, run_means
from reports.style import Points


class ProbeAnswer(NamedTuple):
    """A question of the stream, answered at one probe of one run."""

    run: Run
    seen: int
    """Documents observed before the probe."""
    event: AnswerEvent

    @property
    def lag(self) -> int:
        """Documents observed after the question's own."""
        return self.seen - 1 - self.event.position


def probes(row: Row) -> int:
    """The number of a row's probes after the start of the stream."""
    return sum(probe > 0 for probe in row.records[0].spec.probes) if row.records else 0


def answers_of(row: Row) -> Iterator[ProbeAnswer]:
    """The answers of a row at all probes, run by run."""
    for record in row.records:
        documents = summary_of(record).documents
        for event in read_answers(row.runs, record.id):
            if event.set == "stream":
                yield ProbeAnswer(run_of(record), documents_seen(event.probe, documents), event)


def curves_of(
    row: Row, scores: Sequence[str], x: Callable[[ProbeAnswer], float] = lambda answer: answer.seen
) -> Mapping[str, Points]:
    """The means of scores of answers over streams by ``x``, the number of documents seen.

    A score has no point where one of the row's streams has no question for it.
    """
    points: dict[str, list[tuple[float, Estimate]]] = {name: [] for name in scores}
    for (name, place), items in _items(row, scores, x).items():
        if (estimate := mean_over_streams(items)).n == row.streams:
            points[name].append((place, estimate))
    return points


def f1_by_documents(row: Row) -> dict[float, Runs]:
    """Mean F1 of each run by the number of documents seen, in ascending order; {} unless there are several probes."""
    items = _items(row, ("f1",), lambda answer: answer.seen) if probes(row) > 1 else {}
    return {seen: run_means(of) for (_, seen), of in items.items()}


def _items(
    row: Row, scores: Sequence[str], x: Callable[[ProbeAnswer], float]
) -> Mapping[tuple[str, float], Sequence[Item]]:
    """The scored answers by score and ``x``, in ascending order."""
    items: dict[tuple[str, float], list[Item]] = defaultdict(list)
    for answer in answers_of(row):
        for name in scores:
            if (value := getattr(answer.event, name)) is not None:
                items[name, x(answer)].append(Item.of(answer.run, "", "", value))
    return dict(sorted(items.items()))
