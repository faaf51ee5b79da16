"""The summary of a run from its events, and the check that the scores in records follow from what is beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.answering import metrics
from bench.records import tuning
from bench.records.schema import (
    CHANGE_SCORES,
    AnswerEvent,
    BoardRecord,
    DocumentEvent,
    RunRecord,
    Summary,
    TuningRecord,
    mean,
)
from bench.records.store import (
    MANIFEST,
    board_path,
    is_packed,
    read_answers,
    read_documents,
    read_run,
    read_tuning,
    refuse,
    tuning_path,
)


def summarize(
    documents: Sequence[DocumentEvent],
    answers: Sequence[AnswerEvent],
    anchor_nll_before: float | None = None,
    anchor_nll: float | None = None,
) -> Summary:
    """Means over the answers at the last probe, and over all documents.

    The NLL of the anchor documents is not among the events and is taken as it is.
    """
    last = max((event.probe for event in answers), default=1.0)
    final = [event for event in answers if event.set == "stream" and event.probe == last]
    anchors = {
        probe: mean([event.f1 for event in answers if event.set == "anchor" and event.probe == probe])
        for probe in (0.0, last)
    }
    scored = [event for event in documents if event.nll is not None]
    nll = sum(event.nll or 0.0 for event in scored)
    again = [event for event in documents if event.nll_after is not None]
    tokens_again = sum(event.tokens for event in again)
    tokens, utf8_bytes = sum(event.tokens for event in scored), sum(event.bytes for event in scored)
    return Summary(
        documents=len({event.position for event in documents}),
        questions=len(final),
        unanswered=sum(event.unanswered is not None for event in final),
        **{name: _mean_of(final, name) for name in (*metrics.ANSWER_SCORES, "ended", "recall", *CHANGE_SCORES)},
        answer_nll=_mean_of(final, "nll"),
        token_nll=nll / tokens if tokens else None,
        token_nll_after=sum(event.nll_after or 0.0 for event in again) / tokens_again if tokens_again else None,
        bits_per_byte=metrics.bits_per_byte(nll, utf8_bytes) if utf8_bytes else None,
        anchor_f1_before=anchors[0.0],
        anchor_f1=anchors[last],
        anchor_nll_before=anchor_nll_before,
        anchor_nll=anchor_nll,
        changed=sum(event.stale is not None for event in final),
    )


def _mean_of(events: Sequence[AnswerEvent], score: str) -> float | None:
    """Mean of a score over the events that have it."""
    return mean([value for event in events if (value := getattr(event, score)) is not None])


def check_board(runs: Path, board: BoardRecord) -> None:
    """Compute all scores of a board again: of its runs, of its tuning records and of the runs of their trials.

    The runs of tuned methods must have the settings that were chosen.

    Published records have neither gold answers nor the events of trials. Their scores of single answers, and the means
    of trials, are taken as they are.

    Raises:
        BenchError: one is another than the record says, or a record is missing or damaged; the message names the file.
    """
    published = is_packed(runs)
    tuned = {record.key: record for record in read_tuning(runs, dict.fromkeys(board.tuning))}
    trials = [run for record in tuned.values() for run in _check_tuning(runs, record)]
    for entry in board.entries:
        if entry.tuning is not None:
            _check_choice(runs, board.experiment, entry.runs, tuned[entry.tuning])
    for record in [*(read_run(runs / run_id) for run_id in board.runs), *([] if published else trials)]:
        answers = read_answers(runs, record.id)
        if not published:
            _check_answers(runs, record, answers)
        _check_summary(runs, record, answers)


def _check_answers(runs: Path, record: RunRecord, answers: Sequence[AnswerEvent]) -> None:
    """Compute the scores of a run's answers from the predictions and the gold answers.

    A score is left out if it is from another version of its metric than the present one; ``stale`` is an exact match.
    """
    segment = record.spec.segment
    for number, event in enumerate(answers, 1):
        where = f"is wrong in line {number} (question {event.question_id})"
        if not event.answers:
            refuse(runs / record.id / "answers.jsonl", f"{where}: it has no gold answers.")
        scores: dict[str, float | None] = {**metrics.score(event.prediction, event.answers, segment)}
        scores["stale"] = metrics.stale(event.prediction, event.answers, event.earlier, segment)
        for name, value in scores.items():
            recorded, version = getattr(event, name), "em" if name == "stale" else name
            if recorded != value and record.spec.metrics.get(version) == metrics.VERSIONS[version]:
                problem = f"its {name} is {_shown(recorded)}, but prediction and answers give {_shown(value)}."
                refuse(runs / record.id / "answers.jsonl", f"{where}: {problem}")


def _check_summary(runs: Path, record: RunRecord, answers: Sequence[AnswerEvent]) -> None:
    """Compute the summary of a run from its events."""
    if (summary := record.summary) is None:
        return
    expected = summarize(read_documents(runs, record.id), answers, summary.anchor_nll_before, summary.anchor_nll)
    for name, value in expected.model_dump().items():
        if (recorded := getattr(summary, name)) != value:
            refuse(runs / record.id / MANIFEST, f"is wrong: its {name} is {recorded}, but its events give {value}.")


def _shown(value: float | None) -> str:
    return "None" if value is None else f"{value:g}"


def _check_choice(runs: Path, experiment: str, run_ids: Sequence[str], record: TuningRecord) -> None:
    """Check that runs which a board lists as tuned have the method and the settings that were chosen."""
    for run_id in run_ids:
        spec = read_run(runs / run_id).spec
        if (spec.method, spec.config) != (record.method, record.chosen):
            problem = f"is wrong: it lists {run_id} as tuned, whose settings are not those that {record.key} chose."
            refuse(board_path(runs, experiment), problem)


def _check_tuning(runs: Path, record: TuningRecord) -> list[RunRecord]:
    """Compute the scores of the trials from their runs, and the choice from the scores; returns the runs."""
    path = tuning_path(runs, record.key)
    checked = [read_run(runs / run_id) for run_id in record.runs]
    floor = tuning.floor(checked)
    if floor != record.floor:
        refuse(path, f"is wrong: its floor is {record.floor}, but its runs give {floor}.")
    configs = []
    for number, trial in enumerate(record.trials, 1):
        of_trial = [read_run(runs / run_id) for run_id in trial["runs"]]
        config = of_trial[0].spec.config if of_trial else {}
        if not of_trial or any((run.spec.method, run.spec.config) != (record.method, config) for run in of_trial):
            refuse(path, f"is wrong: the runs of trial {number} are not of one config of {record.method}.")
        if any(trial["config"].get(key) != config.get(key) for key in record.space):
            refuse(path, f"is wrong: the config of trial {number} is not that of its runs.")
        scores = tuning.measure(of_trial, record.metric)
        stated: Mapping[str, object] = {**trial}
        for name, value in scores._asdict().items():
            if value != stated[name]:
                refuse(path, f"is wrong: the {name} of trial {number} is {stated[name]}, but its runs give {value}.")
        configs.append(config)
        checked += of_trial
    best = tuning.best(record.metric, floor, record.trials)
    if best is not None and configs[best] != record.chosen:
        refuse(path, "is wrong: the chosen config is not that of the best trial.")
    return checked
