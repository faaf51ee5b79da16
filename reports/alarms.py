"""Alarms: remarks on a board about what makes its scores doubtful, one sentence or two for each kind of alarm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.records.schema import TrialRecord, TuningRecord, mean
from bench.records.tuning import best
from reports.origins import costs_of, summary_of
from reports.rows import CEILING, FLOOR, Entries, Row, final_answers, find, find_arm, row_of
from reports.statistics import LEVEL, paired_difference

FAR = 3.0
"""Standard errors (SE_doc) of the difference by which a placebo arm counts as far above closed book."""
UNEVEN, SHORTEST = 2.0, 1.0
"""Ratio of seconds for the same operations, in scoring the streams of a row, above which a machine was loaded unevenly;
and the fewest seconds of scoring a stream that tell it."""
EXPLODED = 2.0
"""Multiple of the unadapted model's token NLL above which a run counts as exploded."""


def remarks(entries: Entries, tuning: Sequence[TuningRecord]) -> list[str]:
    """The alarms of a board; [] if there is no reason for any.

    Raises:
        BenchError: the answers of a run are missing or damaged.
    """
    rows = [row for row, _ in entries]
    labels = {row.tuning.key: row.label for row in reversed(rows) if row.tuning is not None}  # of the first such row
    named = [(labels.get(record.key, record.method), record) for record in tuning]
    return [
        *_ceiling(entries),
        *_empty_answers(rows),
        *_exploded(rows),
        *_placebo(entries),
        *_equal_trials(named),
        *_at_the_floor(named),
        *_anchors(rows),
        *_uneven_load(rows),
    ]


def _ceiling(entries: Entries) -> Iterator[str]:
    """Gold in prompt is not above closed book (paired by question, one-sided, over documents: two streams are few)."""
    floor, ceiling = find(entries, FLOOR), find(entries, CEILING)
    if floor is None or ceiling is None or "f1" not in floor or "f1" not in ceiling:
        return
    difference = paired_difference(ceiling["f1"], floor["f1"]).document
    two_sided = difference.p_value()
    if two_sided is not None and (difference.mean <= 0 or two_sided / 2 >= LEVEL):
        yield (
            f"{CEILING} is not significantly above {FLOOR} (F1 {difference.mean:+.3f}): the model cannot use even the "
            f"document with the answer, so nothing can be concluded about knowledge."
        )


def _empty_answers(rows: Sequence[Row]) -> Iterator[str]:
    """Over half of a row's answers are empty and wrong."""
    shares = {}
    for row in rows:
        answers = [event for record in row.records for event in final_answers(row.runs, record)]
        empty = sum(not event.prediction.strip() and event.f1 < 1 for event in answers)
        if 2 * empty > len(answers):
            shares[row.label] = f"{empty / len(answers):.0%}"
    if shares:
        yield f"Over half of the answers are empty: {_listed(shares)}. Their F1 says nothing about knowledge."


def _exploded(rows: Sequence[Row]) -> Iterator[str]:
    """The token NLL of a run is above twice that of the unadapted model on the same stream."""
    floor = row_of(rows, FLOOR)
    records = () if floor is None else floor.records
    unadapted = {record.spec.stream: nll for record in records if (nll := summary_of(record).token_nll)}
    counts = {}
    for row in rows:
        runs = [record for record in row.records if row.arm == "stream" and record.spec.stream in unadapted]
        if above := sum((summary_of(run).token_nll or 0.0) > EXPLODED * unadapted[run.spec.stream] for run in runs):
            counts[row.label] = f"{above} of {len(runs)} runs"
    if counts:
        yield (
            f"The token NLL is above twice that of the unadapted model: {_listed(counts)}. The runs are complete, but "
            f"the adapted model no longer predicts text. Where a learning rate is tuned, a lower one may help."
        )


def _listed(details: Mapping[str, str]) -> str:
    """The labels of rows, each with its detail in brackets."""
    return ", ".join(f"{label} ({detail})" for label, detail in details.items())


def _placebo(entries: Entries) -> Iterator[str]:
    """F1 on placebo is far above closed book and not significantly below that on the stream.

    A method that has not seen the documents cannot know their answers, so it may remember an earlier stream.
    """
    floor, above = find(entries, FLOOR), {}
    for row, items in entries:
        stream = find_arm(entries, row, "stream")
        if (row.arm, row.status) != ("placebo", "complete") or not floor or not stream or "f1" not in items:
            continue
        gain = paired_difference(items["f1"], floor["f1"]).document
        lost = paired_difference(stream["f1"], items["f1"]).document.interval()
        if gain.se is not None and gain.mean > FAR * gain.se and lost is not None and lost[0] <= 0:
            above[row.label] = f"F1 {gain.mean:+.3f}"
    if above:
        yield (
            f"As good as on the stream, and far above closed book: {_listed(above)}. What is gained is not from the "
            f"documents; the method may remember earlier streams (docs/rules.md, section 15)."
        )


def _equal_trials(tuning: Sequence[tuple[str, TuningRecord]]) -> Iterator[str]:
    """All trials of a method that ran on equally many documents have the same score, and there are several."""
    idle: list[str] = []
    undecided: list[str] = []
    for label, record in tuning:
        scored = [trial for trial in record.trials if trial["score"] is not None]
        alike = [[a for a in scored if a["documents"] == n] for n in sorted({b["documents"] for b in scored})]
        if max(map(len, alike), default=0) < 2 or not all(_is_one([t["score"] for t in group]) for group in alike):
            continue
        same_nll = all(_is_one([trial["answer_nll"] for trial in group]) for group in alike)
        if same_nll and len(scored) < len(record.trials):
            continue  # what failed had other settings
        (idle if same_nll else undecided).append(f"{label} ({_score(record, alike[-1])})")
    if idle:
        yield f"Every trial has the same score: {', '.join(dict.fromkeys(idle))}. The tuned settings change nothing."
    if undecided:
        yield (
            f"All trials with results have the same score: {', '.join(dict.fromkeys(undecided))}. It does not tell the "
            f"settings apart, and only the answers' NLL has decided."
        )


def _at_the_floor(tuning: Sequence[tuple[str, TuningRecord]]) -> Iterator[str]:
    """The chosen settings score no more on validation than the method without documents."""
    found = {}
    for label, record in tuning:
        index = best(record.metric, record.floor, record.trials)
        score = None if index is None else record.trials[index]["score"]
        if record.metric == "f1" and record.floor is not None and score is not None and score <= record.floor:
            found[label] = f"F1 {score:.3f} against {record.floor:.3f}"
    if found:
        yield f"No settings that were tried score above the method without documents on validation: {_listed(found)}."


def _uneven_load(rows: Sequence[Row]) -> Iterator[str]:
    """Scoring the streams of a row took very different seconds for each operation."""
    ratios = {}
    for row in rows:
        by_machine: dict[str, list[float]] = {}
        for record in row.records:
            tally, origin = costs_of(record).score, record.provenance
            if tally.seconds >= SHORTEST and tally.flops:
                machine = str(origin.get("gpu") or origin.get("cpu"))
                by_machine.setdefault(machine, []).append(tally.seconds / tally.flops)
        ratio = max((max(rates) / min(rates) for rates in by_machine.values()), default=0)
        if ratio > UNEVEN:
            ratios[row.label] = ratio
    if ratios:
        label = max(ratios, key=ratios.__getitem__)
        yield (
            f"The machine was loaded unevenly: scoring took up to {ratios[label]:.1f} times as long for the same "
            f"operations ({label}). Compare operations, not seconds."
        )


def _is_one(values: Sequence[float | None]) -> bool:
    return len(set(values)) == 1


def _score(record: TuningRecord, trials: Sequence[TrialRecord]) -> str:
    name = {"f1": "F1", "token_nll": "token NLL"}[record.metric]
    return f"{name} {mean([trial['score'] or 0.0 for trial in trials]):.3f}"


def _anchors(rows: Sequence[Row]) -> Iterator[str]:
    """A row has no anchor scores, although others have. Arms that reset the method have no anchor set."""
    streams = [row for row in rows if row.arm == "stream" and row.records]
    missing = [row.label for row in streams if not row.scores.keys() & {"forgetting", "anchor_nll"}]
    if 0 < len(missing) < len(streams):
        yield f"No anchor scores, so forgetting is unknown: {', '.join(missing)}."
