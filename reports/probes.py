"""Scores of a row at each probe of its streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bench.records.schema import documents_seen
from bench.records.store import read_answers
from reports.rows import Row, run_of
from reports.statistics import Estimate, Item, mean_over_streams
from reports.style import Points


def probes(row: Row) -> int:
    """The number of a row's probes after the start of the stream."""
    return sum(probe > 0 for probe in row.records[0].spec.probes) if row.records else 0


def curves_of(row: Row, scores: Sequence[str]) -> Mapping[str, Points]:
    """The means of scores of answers over streams by the number of documents seen.

    A score has no point where one of the row's streams has no question for it.
    """
    items: dict[tuple[str, int], list[Item]] = defaultdict(list)
    for record in row.records:
        documents = record.summary.documents if record.summary else 0
        for event in read_answers(row.runs, record.id):
            for name in scores:
                value = getattr(event, name)
                if event.set == "stream" and value is not None:
                    items[name, documents_seen(event.probe, documents)].append(Item.of(run_of(record), "", "", value))
    points: dict[str, list[tuple[float, Estimate]]] = {name: [] for name in scores}
    for (name, seen), values in sorted(items.items()):
        if (estimate := mean_over_streams(values)).n == row.streams:
            points[name].append((seen, estimate))
    return points
