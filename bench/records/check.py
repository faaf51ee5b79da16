"""The check that the scores of a board follow from the records beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.answering import metrics
from bench.records import tuning
from bench.records.schema import AnswerEvent, BoardRecord, RunRecord, TuningRecord
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
from bench.records.summary import summarize


def check_board(runs: Path, board: BoardRecord) -> None:
    """Compute all scores of a board again: of its runs, of its tuning records and of the runs of their trials.

    The runs of tuned methods must have the settings that were chosen.

    Published records have neither gold answers nor the events of trials. Their scores of single answers, and the means
    of trials, are taken as they are.

    Raises:
        BenchError: one is another than the record says, or a record is missing or damaged; the message names the file.
    """
    published = is_packed(runs)
    tuned = {record.key: record for record in read_tuning(runs, board.tuning)}
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
