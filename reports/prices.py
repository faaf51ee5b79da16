"""Prices of a row: what is paid once offline, for each document, for each question, and in total for one stream."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bench.records.schema import Costs, RunRecord, Tally, TuningRecord
from bench.records.store import read_answers, read_run
from reports.origins import costs_of, summary_of
from reports.statistics import stream_error

COSTS = (
    "training_seconds",
    "training_flops",
    "fit_seconds",
    "fit_flops",
    "tuning_seconds",
    "tuning_flops",
    "offline_seconds",
    "offline_flops",
    "seconds_per_document",
    "flops_per_document",
    "seconds_per_question",
    "flops_per_question",
    "total_seconds",
    "total_flops",
    "marginal_seconds",
    "break_even_documents",
    "break_even_until",
    "state_bytes",
    "peak_bytes",
)
"""All prices that a row can have; missing ones are null in the tables."""
UNITS = ("seconds", "flops")
OfDocument = Mapping[str, Mapping[str, float]]
"""Prices of a document by unit and stream."""


def prices(runs: Path, records: Sequence[RunRecord], tuning: TuningRecord | None) -> dict[str, float]:
    """The prices of a row by their names in :data:`COSTS`, from its runs, all complete; {} without any.

    - ``training``: making the weights that the method loads, once, as their card says; the mean over seeds.
    - ``fit``: learning from the train split in a run; the mean over runs.
    - ``tuning``: all runs of all trials, and those of the score without documents. Runs that have no results have no
      cost on record. Training is not paid again.
    - ``offline``: the sum of these three.
    - per document: observing, without scoring, which is the same for every method; per question: answering.
    - ``total``: offline, and the documents and questions of one stream at its last probe, without anchors.
    - ``marginal_seconds``: a further document of the stream with its questions.

    The break-even needs another row and is left to :func:`break_even`.

    Raises:
        BenchError: a run of the tuning record is missing or unreadable.
    """
    if not records:
        return {}
    costs = [costs_of(record) for record in records]
    trained = {record.spec.seed: cost.training for record, cost in zip(records, costs, strict=True)}
    parts = {
        "training": _mean(list(trained.values())),
        "fit": _mean([cost.fit for cost in costs]),
        "tuning": _sum(_tallies(runs, tuning) if tuning else ()),
    }
    by_name = {f"{name}_{unit}": getattr(part, unit) for name, part in parts.items() for unit in UNITS}
    documents = [summary_of(record).documents for record in records]
    questions = [summary_of(record).questions for record in records]
    answered = sum(len(read_answers(runs, record.id)) for record in records)
    for unit in UNITS:
        offline = sum(by_name[f"{name}_{unit}"] for name in parts)
        by_name[f"offline_{unit}"] = offline
        online = 0.0
        for name, phase, count, of_stream in (
            ("document", "observe", sum(documents), documents),
            ("question", "answer", answered, questions),
        ):
            if count:
                price = sum(getattr(getattr(cost, phase), unit) for cost in costs) / count
                by_name[f"{unit}_per_{name}"] = price
                online += price * sum(of_stream) / len(of_stream)
        by_name[f"total_{unit}"] = offline + online
    if sum(documents):
        online_seconds = by_name["total_seconds"] - by_name["offline_seconds"]
        by_name["marginal_seconds"] = online_seconds * len(documents) / sum(documents)
    by_name["state_bytes"] = max(cost.state_bytes for cost in costs)
    by_name["peak_bytes"] = max(tally.peak_bytes for cost in costs for tally in (cost.fit, *_online(cost)))
    return by_name


def break_even(costs: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """The numbers of documents with which the total seconds are at most those of the reference.

    Each document comes with as many questions as on the board's streams.

    - ``break_even_documents``: from so many on; 0: from the start.
    - ``break_even_until``: only up to so many, at least one, because each further document costs more.

    {}: never, or one of the two has no price of a document. :func:`is_resolved` says whether to believe it.
    """
    names = ("offline_seconds", "marginal_seconds")
    if any(name not in prices for name in names for prices in (costs, reference)):
        return {}
    more, saved = (costs[names[0]] - reference[names[0]], reference[names[1]] - costs[names[1]])
    if saved > 0:
        return {"break_even_documents": float(max(0, math.ceil(more / saved)))}
    if saved == 0:
        return {"break_even_documents": 0.0} if more <= 0 else {}
    last = math.floor(more / saved)
    return {"break_even_until": float(last)} if last > 0 else {}


def is_resolved(one: OfDocument, other: OfDocument) -> bool:
    """True if it is clear which of two rows costs more for a document: observing it, and answering its questions.

    The 95 % interval of the difference in seconds over the streams of both excludes 0, and the operations have the same
    sign: seconds depend on what else the machine does. On a single stream the operations do not matter either.
    """
    seconds, flops = ([of[unit] for of in (one, other)] for unit in UNITS)
    both = sorted(seconds[0].keys() & seconds[1].keys())
    if len(both) < 2:
        return True
    interval = stream_error([seconds[0][stream] - seconds[1][stream] for stream in both]).interval()
    more = sum(flops[0][stream] - flops[1][stream] for stream in both)
    return interval is not None and (interval[0] > 0 < more or interval[1] < 0 > more)


def of_document(runs: Path, records: Sequence[RunRecord]) -> OfDocument:
    """What a further document of each stream costs with its questions, as ``marginal_seconds`` counts them."""
    found: dict[str, dict[str, list[float]]] = {unit: defaultdict(list) for unit in UNITS}
    for record in records:
        summary, cost = summary_of(record), costs_of(record)
        if summary.documents:
            answers = len(read_answers(runs, record.id))  # to all probes and anchors
            share = summary.questions / answers if answers else 0.0
            for unit, prices_of in found.items():
                price = getattr(cost.observe, unit) + getattr(cost.answer, unit) * share
                prices_of[record.spec.stream].append(price / summary.documents)
    return {unit: {stream: sum(of) / len(of) for stream, of in streams.items()} for unit, streams in found.items()}


def _tallies(runs: Path, tuning: TuningRecord) -> Iterable[Tally]:
    """The phases of every run that tuning needed, each run once."""
    ids = dict.fromkeys([*(run for trial in tuning.trials for run in trial["runs"]), *tuning.runs])
    for run_id in ids:
        if (cost := read_run(runs / run_id).costs) is not None:
            yield from (cost.fit, *_online(cost))


def _online(cost: Costs) -> tuple[Tally, Tally, Tally]:
    return cost.score, cost.observe, cost.answer


def _sum(tallies: Iterable[Tally]) -> Tally:
    of = list(tallies)
    seconds, flops = sum(tally.seconds for tally in of), sum(tally.flops for tally in of)
    return Tally(seconds=seconds, flops=flops, peak_bytes=max((tally.peak_bytes for tally in of), default=0))


def _mean(tallies: Sequence[Tally]) -> Tally:
    total = _sum(tallies)
    return total.model_copy(update={unit: getattr(total, unit) / len(tallies) for unit in UNITS})
