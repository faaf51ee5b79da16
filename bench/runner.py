"""Running an experiment: tuning on validation streams, then the board's cells; only what is missing is run."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench import PROTOCOL, cell, metrics, models, recipe, registry, source_hash
from bench.cell import Cell, Sources
from bench.data import MissingSplit
from bench.errors import BenchError, RunError
from bench.executor import Executor, Task
from bench.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.record_files import read_run, write_json, write_run
from bench.records import BoardRecord, CellSpec, TuningRecord, mean

Arm = Literal["stream", "placebo"]
Progress = Callable[[str, int, int], None]
"""Called with (what is going on, cells done, cells in all)."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a method's grid, on every validation stream."""

    config: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Result:
    """What an experiment came to: its cells, and messages that a reader of the board should see."""

    cells: tuple[Cell, ...]
    remarks: tuple[str, ...]
    failed: int


class Runner:
    """Plans and runs one experiment; all its records go under ``runs``.

    Raises:
        BenchError: already on construction, for anything about the request that is wrong.
    """

    def __init__(self, experiment: Experiment, runs: Path, plugins: Sequence[str] = ()) -> None:
        self.experiment = experiment
        self.runs = runs
        self.plugins = list(plugins)
        self.recipe = recipe.find(experiment.dataset)
        self.model_hash = models.identity(models.locate(experiment.model))
        self.harness_code = source_hash.code_hash(Path(__file__).with_name("harness.py"))
        self.remarks: list[str] = []
        self._tried: set[str] = set()  # a cell that failed is tried again by the next command, not by this one
        self.methods = {plan.name: registry.load_method(plan.name, self.plugins) for plan in experiment.methods}
        for plan in experiment.methods:
            cell.validate_config(self.methods[plan.name], plan.config)
            self._check_training(plan)

    def _check_training(self, plan: MethodPlan) -> None:
        if cell.needs_training(self.methods[plan.name]):
            try:
                cell.split_entries(self.experiment.dataset, "train", self.experiment.data_files)
            except MissingSplit as error:
                raise BenchError(f"{plan.name} learns offline from the train split. {error}") from None

    def run(self, executor: Executor, progress: Progress = lambda *_: None) -> Result:
        """Run what is missing: first the trials and the cells that need none, then the tuned ones."""
        trials = {plan.name: self.trials(plan) for plan in self.experiment.methods}
        ready = [plan for plan in self.experiment.methods if not trials[plan.name]]
        first = [item for plan in ready for item in self.cells(plan, plan.config)]
        trial_cells = [item for found in trials.values() for trial in found for item in trial.cells]
        self._execute(executor, trial_cells + first, "tuning and running" if trial_cells else "running", progress)
        chosen = {plan.name: self.choose(plan, trials[plan.name]) for plan in self.experiment.methods}
        cells = [item for plan in self.experiment.methods for item in self.cells(plan, chosen[plan.name])]
        self._execute(executor, cells, "running", progress)
        write_json(
            self.runs / "boards" / f"{self.experiment.name}.json",
            BoardRecord(
                experiment=self.experiment.name, runs=[item.id for item in cells], remarks=self.remarks
            ).model_dump(mode="json"),
        )
        failed = sum(read_run(self.runs / item.id).status == "failed" for item in cells)
        return Result(tuple(cells), tuple(self.remarks), failed)

    def _execute(self, executor: Executor, cells: Sequence[Cell], what: str, progress: Progress) -> None:
        missing = {item.id: item for item in cells if item.id not in self._tried and not item.is_done(self.runs)}
        self._tried |= missing.keys()
        if not missing:
            return
        tasks = [
            Task(key, "bench.cell:run", {"cell": item.model_dump(mode="json"), "runs": str(self.runs)})
            for key, item in missing.items()
        ]
        progress(what, 0, len(tasks))
        for done, outcome in enumerate(executor.run(tasks), 1):
            if outcome.error is not None:
                if outcome.error.kind != "worker_died":
                    raise RunError(f"{missing[outcome.key].id} could not be run: {outcome.error.message}")
                write_run(self.runs, cell.worker_died(missing[outcome.key], outcome.error.message))
            progress(what, done, len(tasks))

    def trials(self, plan: MethodPlan) -> list[Trial]:
        """The candidates of a method's grid (without the keys that the user fixed), or [] where nothing is tuned."""
        tuning = self.experiment.tuning
        grid = dict(self.methods[plan.name].grid if plan.grid is None else plan.grid)
        grid = {key: values for key, values in grid.items() if key not in plan.config}
        if not grid or tuning is None:
            return []
        try:
            cell.material(self._sources(tuning, 0), "stream")
        except MissingSplit as error:
            remark = f"Methods run untuned, with their default settings: {error}"
            if remark not in self.remarks:
                self.remarks.append(remark)
            return []
        found = []
        for values in itertools.product(*grid.values()):
            config = {**plan.config, **dict(zip(grid, values, strict=True))}
            found.append(Trial(config, tuple(self._cells(plan, config, tuning, "stream"))))
        return found

    def choose(self, plan: MethodPlan, trials: Sequence[Trial]) -> dict[str, Any]:
        """The best candidate by its mean over the validation streams; every trial is kept in a tuning record."""
        tuning = self.experiment.tuning
        if not trials or tuning is None:
            return plan.config
        scores = [self._trial_score(trial, tuning.metric) for trial in trials]
        sign = 1 if tuning.metric == "f1" else -1
        usable = [(sign * score, -i) for i, score in enumerate(scores) if score is not None]
        if not usable:
            self.remarks.append(f"Every tuning trial of {plan.name} diverged or failed; it runs with its defaults.")
        chosen = trials[-max(usable)[1]].config if usable else plan.config
        cells = [item.key for trial in trials for item in trial.cells]
        key = hashlib.sha256(json.dumps([tuning.metric, cells]).encode()).hexdigest()
        record = TuningRecord(
            key=key,
            method=plan.name,
            dataset=self.recipe.name,
            model=Path(self.experiment.model).name,
            model_hash=self.model_hash,
            metric=tuning.metric,
            trials=tuple(
                {"config": trial.config, "score": score, "runs": [item.id for item in trial.cells]}
                for trial, score in zip(trials, scores, strict=True)
            ),
            chosen=self._full_config(plan.name, chosen),
        )
        path = self.runs / "tuning" / f"{plan.name}-{key[:12]}.json"
        if not path.exists():
            write_json(path, record.model_dump(mode="json"))
        return chosen

    def _trial_score(self, trial: Trial, metric: Literal["f1", "token_nll"]) -> float | None:
        records = [read_run(self.runs / item.id) for item in trial.cells]
        values = [getattr(record.summary, metric) for record in records if record.summary is not None]
        return mean(values) if len(values) == len(records) else None

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, over its arms."""
        return [item for arm in plan.arms for item in self._cells(plan, config, self.experiment.streams, arm)]

    def _cells(self, plan: MethodPlan, config: Mapping[str, Any], on: StreamPlan, arm: Arm) -> Iterator[Cell]:
        experiment, method = self.experiment, self.methods[plan.name]
        trial = isinstance(on, TuningPlan)
        for index in range(on.count):
            sources = self._sources(on, index)
            given = cell.material(sources, arm)
            yield Cell(
                sources=sources,
                spec=CellSpec(
                    protocol=PROTOCOL,
                    dataset=self.recipe.name,
                    stream=given.stream.name,
                    stream_hash=given.hash,
                    anchor_hash=given.anchor_hash,
                    model=Path(experiment.model).name,
                    model_hash=self.model_hash,
                    dtype=experiment.dtype,
                    device=experiment.device,
                    method=plan.name,
                    config=self._full_config(plan.name, config),
                    seed=experiment.seed,
                    arm=arm,
                    probes=(1.0,) if trial else experiment.probes,
                    scoring=on.metric == "token_nll" if isinstance(on, TuningPlan) else experiment.scoring,
                    segment_tokens=experiment.segment_tokens,
                    decoding=experiment.decoding.model_dump(mode="json"),
                    metrics=metrics.VERSIONS,
                    harness_code=self.harness_code,
                    method_code=source_hash.code_hash(Path(inspect.getfile(method))),
                ),
            )

    def _full_config(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        full: dict[str, Any] = cell.validate_config(self.methods[name], config).model_dump(mode="json")
        return full

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
