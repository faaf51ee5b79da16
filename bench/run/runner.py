"""Running an experiment: tuning on validation streams, then the cells of the board. Only what is missing is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import PROTOCOL, hashing
from bench.answering import metrics
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.contract.method import validate_config
from bench.data import recipe
from bench.data.arms import Arm
from bench.data.reader import MissingSplit, split_entries
from bench.errors import BenchError, RunError
from bench.files import write_json
from bench.lm import checkpoint
from bench.paths import ROOT
from bench.records.schema import BoardRecord, CellSpec, RunRecord, TuningRecord, mean
from bench.records.store import read_run, sweep, write_run
from bench.run.cell import Cell, dead_worker_record
from bench.run.executor import Executor, Task
from bench.run.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.run.inputs import Sources, artifact_folder, inputs_of, offline_entries, train_hash

Progress = Callable[[str, int, int], None]
"""Called with (activity, cells done, cells in total)."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a method's grid, on every validation stream."""

    config: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Result:
    """Result of an experiment: its cells, remarks for readers of the board, and a line for each cell that failed."""

    cells: tuple[Cell, ...]
    remarks: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Number of cells that failed."""
        return len(self.failures)


class Runner:
    """Plans and runs one experiment, of which it makes a copy. All records go under ``runs``.

    Raises:
        BenchError: the request is wrong in any respect; raised on construction, before any work.
    """

    def __init__(
        self, experiment: Experiment, runs: Path, plugins: Sequence[str] = (), remarks: Sequence[str] = ()
    ) -> None:
        self.experiment = experiment = experiment.model_copy(deep=True)
        self.runs = runs
        self.plugins = list(plugins)
        self.recipe = recipe.find(experiment.dataset)
        folder = checkpoint.locate(experiment.model)
        checkpoint.check(folder, experiment.device)
        self.model_hash = checkpoint.identity(folder)
        self.harness_code = hashing.code_hash(ROOT / "bench" / "harness" / "loop.py")
        self.remarks = list(remarks)
        self._attempts: set[str] = set()  # cells that failed are run again by the next command, not by this one
        self.methods = {plan.name: registry.load_method(plan.name, self.plugins) for plan in experiment.methods}
        for plan in filter(None, (experiment.streams, experiment.tuning)):
            self._join_few_files(plan)
        for entry in list(experiment.methods):
            self._check_offline_data(entry, validate_config(self.methods[entry.name], entry.config))

    def _join_few_files(self, plan: StreamPlan) -> None:
        """Make one stream of plain text files, in their order, if there are fewer than planned: they are long."""
        files = self.experiment.data_files
        if self.recipe.format != "text" or plan.split not in files or plan.documents is None:
            return
        count = len(split_entries(self.experiment.dataset, plan.split, files))
        if count < plan.documents * plan.count:
            plan.override({"documents": None, "count": 1})
            self.remarks.append(f"The {plan.split} files ({count}) are one stream.")

    def _check_offline_data(self, plan: MethodPlan, config: MethodConfig) -> None:
        """Check that the method's trained weights, or the data that it learns from offline, exist."""
        method = self.methods[plan.name]
        if issubclass(method, MetaTrained):
            artifact_folder(method, config, self._sources(self.experiment.streams, 0), self.runs)
        elif method.learns_offline(config):
            try:
                offline_entries(method, self._sources(self.experiment.streams, 0))
            except MissingSplit as error:
                reason = f"{plan.name} learns offline from the {method.learns_from} split. {error}"
                if not plan.optional:
                    raise BenchError(reason) from None
                self.experiment.methods = [other for other in self.experiment.methods if other is not plan]
                settings = ", ".join(f"{key}={value}" for key, value in plan.config.items())
                self.remarks.append(f"Left out ({settings}): {reason}")

    def run(self, executor: Executor, progress: Progress = lambda *_: None) -> Result:
        """Run what is missing: first the trials and the cells that are not tuned, then the tuned cells.

        Raises:
            OSError: the folder of the records cannot be written.
            RunError: a cell could not be run at all, as when the data have changed since it was planned.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        sweep(self.runs)
        plans = [(plan, self.trials(plan)) for plan in self.experiment.methods]
        untuned = [cell for plan, trials in plans if not trials for cell in self.cells(plan, plan.config)]
        trial_cells = [cell for _, trials in plans for trial in trials for cell in trial.cells]
        self._execute(executor, trial_cells + untuned, "tuning and running" if trial_cells else "running", progress)
        tuned = [(plan, self.choose(plan, trials)) for plan, trials in plans if trials]
        configs = {id(plan): record.chosen for plan, record in tuned}
        cells = [cell for plan, _ in plans for cell in self.cells(plan, configs.get(id(plan), plan.config))]
        self._execute(executor, cells, "running", progress)
        board = BoardRecord(
            experiment=self.experiment.name,
            runs=list(dict.fromkeys(cell.id for cell in cells)),
            tuning=[record.key for _, record in tuned],
            remarks=self.remarks,
        )
        write_json(self.runs / "boards" / f"{self.experiment.name}.json", board.model_dump(mode="json"))
        records = [read_run(self.runs / run) for run in board.runs]
        failures = tuple(_failure_line(record) for record in records if record.status == "failed")
        return Result(tuple(cells), tuple(self.remarks), failures)

    def _execute(self, executor: Executor, cells: Sequence[Cell], activity: str, progress: Progress) -> None:
        missing = {cell.id: cell for cell in cells if cell.id not in self._attempts and not cell.is_done(self.runs)}
        self._attempts |= missing.keys()
        if not missing:
            return
        tasks = [
            Task(key, "bench.run.cell:run", {"cell": cell.model_dump(mode="json"), "runs": str(self.runs)})
            for key, cell in missing.items()
        ]
        progress(activity, 0, len(tasks))
        for done, outcome in enumerate(executor.run(tasks), 1):
            if outcome.error is not None:
                if outcome.error.kind != "worker_died":
                    raise RunError(f"{outcome.key} could not be run: {outcome.error.message}")
                cell = missing[outcome.key]
                method = self.methods[cell.spec.method]
                write_run(self.runs, dead_worker_record(cell, method, outcome.error.message))
            progress(activity, done, len(tasks))

    def trials(self, plan: MethodPlan) -> list[Trial]:
        """The candidates of a method's grid (without the keys that are fixed), or [] if nothing is tuned."""
        tuning = self.experiment.tuning
        grid = dict(self.methods[plan.name].grid if plan.grid is None else plan.grid)
        grid = {key: values for key, values in grid.items() if key not in plan.config}
        if not grid or tuning is None:
            return []
        try:
            inputs_of(self._sources(tuning, 0), "stream")
        except MissingSplit as error:
            remark = f"Methods run untuned, with their default settings: {error}"
            if remark not in self.remarks:
                self.remarks.append(remark)
            return []
        trials = []
        for values in itertools.product(*grid.values()):
            config = {**plan.config, **dict(zip(grid, values, strict=True))}
            trials.append(Trial(config, tuple(self._cells(plan, config, tuning, "stream"))))
        return trials

    def choose(self, plan: MethodPlan, trials: Sequence[Trial]) -> TuningRecord:
        """Choose the candidate with the best mean over the validation streams, and write a record of all trials."""
        assert self.experiment.tuning is not None
        metric = self.experiment.tuning.metric
        scores = [self._trial_score(trial, metric) for trial in trials]
        sign = 1 if metric == "f1" else -1
        ranks = [(sign * score, -i) for i, score in enumerate(scores) if score is not None]  # of equals, the earlier
        if failed := len(trials) - len(ranks):
            self.remarks.append(f"{failed} of {len(trials)} tuning trials of {self._label(plan)} diverged or failed.")
        best = trials[-max(ranks)[1]].config if ranks else plan.config
        if ranks:
            self._remark_edges(plan, trials, best)
        key = hashing.digest([metric, [cell.key for trial in trials for cell in trial.cells]])
        record = TuningRecord(
            key=f"{plan.name}-{key[:12]}",
            method=plan.name,
            dataset=self.recipe.name,
            model=Path(self.experiment.model).name,
            model_hash=self.model_hash,
            metric=metric,
            trials=tuple(
                {"config": trial.config, "score": score, "runs": [cell.id for cell in trial.cells]}
                for trial, score in zip(trials, scores, strict=True)
            ),
            chosen=validate_config(self.methods[plan.name], best).model_dump(mode="json"),
        )
        write_json(self.runs / "tuning" / f"{record.key}.json", record.model_dump(mode="json"))
        return record

    def _remark_edges(self, plan: MethodPlan, trials: Sequence[Trial], best: Mapping[str, Any]) -> None:
        """Remark on a best value at an edge of its grid, unless the setting's own bound is there."""
        fields = self.methods[plan.name].Config.model_fields
        for key, value in best.items():
            values = sorted({trial.config[key] for trial in trials if isinstance(trial.config[key], int | float)})
            bounds = [getattr(bound, side, None) for bound in fields[key].metadata for side in ("ge", "le")]
            if len(values) > 2 and value in (values[0], values[-1]) and value not in bounds:
                self.remarks.append(
                    f"The best {key} of {self._label(plan)}, {value:g}, is at the edge of its grid: "
                    f"a wider grid may do better."
                )

    def _label(self, plan: MethodPlan) -> str:
        """The method's name, with the settings in which this entry differs from others of the same method."""
        configs = [other.config for other in self.experiment.methods if other.name == plan.name]
        settings = [
            f"{key}={value}"
            for key, value in plan.config.items()
            if any(config.get(key) != value for config in configs)
        ]
        return f"{plan.name} ({', '.join(settings)})" if settings else plan.name

    def _trial_score(self, trial: Trial, metric: Literal["f1", "token_nll"]) -> float | None:
        """Mean over the validation streams; None if a cell has no results."""
        records = [read_run(self.runs / cell.id) for cell in trial.cells]
        values = [getattr(record.summary, metric) for record in records if record.summary is not None]
        if None in values:
            events = "questions" if metric == "f1" else "scored documents"
            raise BenchError(f"tuning.metric is {metric}, but the validation streams have no {events}.")
        return mean(values) if len(values) == len(records) else None

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, on each of its arms."""
        return [cell for arm in plan.arms for cell in self._cells(plan, config, self.experiment.streams, arm)]

    def _cells(self, plan: MethodPlan, config: Mapping[str, Any], on: StreamPlan, arm: Arm) -> Iterator[Cell]:
        experiment, method = self.experiment, self.methods[plan.name]
        validated = validate_config(method, config)
        trial = isinstance(on, TuningPlan)
        for index in range(on.count):
            sources = self._sources(on, index)
            inputs = inputs_of(sources, arm)
            yield Cell(
                sources=sources,
                spec=CellSpec(
                    protocol=PROTOCOL,
                    dataset=self.recipe.name,
                    stream=inputs.stream.name,
                    stream_hash=inputs.hash,
                    anchor_hash=inputs.anchor_hash,
                    train_hash=train_hash(method, validated, sources, self.runs),
                    model=Path(experiment.model).name,
                    model_hash=self.model_hash,
                    dtype=experiment.dtype,
                    device=experiment.device,
                    method=plan.name,
                    config=validated.model_dump(mode="json"),
                    seed=experiment.seed,
                    arm=arm,
                    probes=(1.0,) if trial else experiment.probes,
                    scoring=on.metric == "token_nll" if isinstance(on, TuningPlan) else experiment.scoring,
                    segment_tokens=experiment.segment_tokens,
                    decoding=experiment.decoding.model_dump(mode="json"),
                    metrics=metrics.VERSIONS,
                    harness_code=self.harness_code,
                    method_code=hashing.method_hash(method),
                ),
            )

    def _sources(self, on: StreamPlan, index: int) -> Sources:
        anchor = self.experiment.anchor
        trial = isinstance(on, TuningPlan)
        return Sources(
            dataset=self.experiment.dataset,
            data_files=self.experiment.data_files,
            model=self.experiment.model,
            plugins=self.plugins,
            split=on.split,
            documents=on.documents,
            index=index,
            anchor_questions=0 if trial else anchor.questions,
            anchor_documents=0 if trial else anchor.documents,
        )


def _failure_line(record: RunRecord) -> str:
    """The record of a failed cell on one line: method, stream, document and reason."""
    failure = record.failure
    if failure is None:
        return record.id
    where = "" if failure.position is None else f", document {failure.position + 1}"
    reason = failure.message.splitlines()[0][:300] if failure.message else failure.kind
    return f"{record.spec.method} on {record.spec.stream} ({record.spec.arm}{where}): {reason}"
