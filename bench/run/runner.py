"""Running an experiment: tuning on validation streams, then the board's cells; only what is missing is run."""

from __future__ import annotations

import hashlib
import itertools
import json
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
from bench.records.schema import BoardRecord, CellSpec, TuningRecord, mean
from bench.records.store import read_run, sweep, write_run
from bench.run import cell
from bench.run.cell import Cell
from bench.run.executor import Executor, Task
from bench.run.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.run.inputs import Sources, material, offline_entries, train_hash, trained

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

    def __init__(
        self, experiment: Experiment, runs: Path, plugins: Sequence[str] = (), remarks: Sequence[str] = ()
    ) -> None:
        self.experiment = experiment
        self.runs = runs
        self.plugins = list(plugins)
        self.recipe = recipe.find(experiment.dataset)
        folder = checkpoint.locate(experiment.model)
        checkpoint.check(folder, experiment.device)
        self.model_hash = checkpoint.identity(folder)
        self.harness_code = hashing.code_hash(ROOT / "bench" / "harness" / "loop.py")
        self.remarks = list(remarks)
        self._tried: set[str] = set()  # a cell that failed is tried again by the next command, not by this one
        self.methods = {plan.name: registry.load_method(plan.name, self.plugins) for plan in experiment.methods}
        for streams in filter(None, (experiment.streams, experiment.tuning)):
            self._fit_to_files(streams)
        for plan in list(experiment.methods):
            self._check_training(plan, validate_config(self.methods[plan.name], plan.config))

    def _fit_to_files(self, streams: StreamPlan) -> None:
        """Plain text files are few and long: fewer than planned are one stream, in the order given."""
        files = self.experiment.data_files
        if self.recipe.format != "text" or streams.split not in files or streams.documents is None:
            return
        found = len(split_entries(self.experiment.dataset, streams.split, files))
        if found < streams.documents * streams.count:
            streams.override({"documents": None, "count": 1})
            self.remarks.append(f"The {streams.split} files ({found}) are one stream.")

    def _check_training(self, plan: MethodPlan, config: MethodConfig) -> None:
        method = self.methods[plan.name]
        if issubclass(method, MetaTrained):
            trained(method, config, self._sources(self.experiment.streams, 0), self.runs)
        elif method.learns_offline(config):
            try:
                offline_entries(method, self._sources(self.experiment.streams, 0))
            except MissingSplit as error:
                reason = f"{plan.name} learns offline from the {method.learns_from} split. {error}"
                if not plan.optional:
                    raise BenchError(reason) from None
                self.experiment.methods = [other for other in self.experiment.methods if other is not plan]
                self.remarks.append(f"Left out ({', '.join(f'{k}={v}' for k, v in plan.config.items())}): {reason}")

    def run(self, executor: Executor, progress: Progress = lambda *_: None) -> Result:
        """Run what is missing: first the trials and the cells that need none, then the tuned ones.

        Raises:
            OSError: the folder of the records cannot be written.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        sweep(self.runs)
        plans = [(plan, self.trials(plan)) for plan in self.experiment.methods]
        first = [item for plan, trials in plans if not trials for item in self.cells(plan, plan.config)]
        trial_cells = [item for _, trials in plans for trial in trials for item in trial.cells]
        self._execute(executor, trial_cells + first, "tuning and running" if trial_cells else "running", progress)
        tuned = [(plan, self.choose(plan, trials)) for plan, trials in plans if trials]
        chosen = {id(plan): record.chosen for plan, record in tuned}
        cells = [item for plan, _ in plans for item in self.cells(plan, chosen.get(id(plan), plan.config))]
        self._execute(executor, cells, "running", progress)
        board = BoardRecord(
            experiment=self.experiment.name,
            runs=list(dict.fromkeys(item.id for item in cells)),
            tuning=[record.key for _, record in tuned],
            remarks=self.remarks,
        )
        write_json(self.runs / "boards" / f"{self.experiment.name}.json", board.model_dump(mode="json"))
        failed = sum(read_run(self.runs / name).status == "failed" for name in board.runs)
        return Result(tuple(cells), tuple(self.remarks), failed)

    def _execute(self, executor: Executor, cells: Sequence[Cell], what: str, progress: Progress) -> None:
        missing = {item.id: item for item in cells if item.id not in self._tried and not item.is_done(self.runs)}
        self._tried |= missing.keys()
        if not missing:
            return
        tasks = [
            Task(key, "bench.run.cell:run", {"cell": item.model_dump(mode="json"), "runs": str(self.runs)})
            for key, item in missing.items()
        ]
        progress(what, 0, len(tasks))
        for done, outcome in enumerate(executor.run(tasks), 1):
            if outcome.error is not None:
                if outcome.error.kind != "worker_died":
                    raise RunError(f"{missing[outcome.key].id} could not be run: {outcome.error.message}")
                dead = missing[outcome.key]
                write_run(self.runs, cell.worker_died(dead, self.methods[dead.spec.method], outcome.error.message))
            progress(what, done, len(tasks))

    def trials(self, plan: MethodPlan) -> list[Trial]:
        """The candidates of a method's grid (without the keys that the user fixed), or [] where nothing is tuned."""
        tuning = self.experiment.tuning
        grid = dict(self.methods[plan.name].grid if plan.grid is None else plan.grid)
        grid = {key: values for key, values in grid.items() if key not in plan.config}
        if not grid or tuning is None:
            return []
        try:
            material(self._sources(tuning, 0), "stream")
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

    def choose(self, plan: MethodPlan, trials: Sequence[Trial]) -> TuningRecord:
        """The best candidate by its mean over the validation streams; every trial is kept in the record."""
        assert self.experiment.tuning is not None
        metric = self.experiment.tuning.metric
        scores = [self._trial_score(trial, metric) for trial in trials]
        sign = 1 if metric == "f1" else -1
        usable = [(sign * score, -i) for i, score in enumerate(scores) if score is not None]
        if failed := len(trials) - len(usable):
            self.remarks.append(f"{failed} of {len(trials)} tuning trials of {self._called(plan)} diverged or failed.")
        best = trials[-max(usable)[1]].config if usable else plan.config
        if usable:
            self._remark_edges(plan, trials, best)
        digest = hashlib.sha256(json.dumps([metric, [item.key for trial in trials for item in trial.cells]]).encode())
        record = TuningRecord(
            key=f"{plan.name}-{digest.hexdigest()[:12]}",
            method=plan.name,
            dataset=self.recipe.name,
            model=Path(self.experiment.model).name,
            model_hash=self.model_hash,
            metric=metric,
            trials=tuple(
                {"config": trial.config, "score": score, "runs": [item.id for item in trial.cells]}
                for trial, score in zip(trials, scores, strict=True)
            ),
            chosen=validate_config(self.methods[plan.name], best).model_dump(mode="json"),
        )
        write_json(self.runs / "tuning" / f"{record.key}.json", record.model_dump(mode="json"))
        return record

    def _remark_edges(self, plan: MethodPlan, trials: Sequence[Trial], best: Mapping[str, Any]) -> None:
        """Say where the best value is the lowest or highest tried, unless it is the lowest or highest there is."""
        fields = self.methods[plan.name].Config.model_fields
        for key, value in best.items():
            tried = sorted({trial.config[key] for trial in trials if isinstance(trial.config[key], int | float)})
            bounds = [getattr(bound, side, None) for bound in fields[key].metadata for side in ("ge", "le")]
            if len(tried) > 2 and value in (tried[0], tried[-1]) and value not in bounds:
                where = f"The best {key} of {self._called(plan)}, {value:g}, lies at the edge of its grid"
                self.remarks.append(f"{where}: a wider one may do better.")

    def _called(self, plan: MethodPlan) -> str:
        """The method's name, with the settings that tell this plan from others of the same method."""
        others = [other.config for other in self.experiment.methods if other.name == plan.name]
        own = [f"{k}={v}" for k, v in plan.config.items() if any(config.get(k) != v for config in others)]
        return f"{plan.name} ({', '.join(own)})" if own else plan.name

    def _trial_score(self, trial: Trial, metric: Literal["f1", "token_nll"]) -> float | None:
        records = [read_run(self.runs / item.id) for item in trial.cells]
        values = [getattr(record.summary, metric) for record in records if record.summary is not None]
        if None in values:
            asked = "questions" if metric == "f1" else "scored documents"
            raise BenchError(f"tuning.metric is {metric}, but the validation streams have no {asked}.")
        return mean(values) if len(values) == len(records) else None

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, over its arms."""
        return [item for arm in plan.arms for item in self._cells(plan, config, self.experiment.streams, arm)]

    def _cells(self, plan: MethodPlan, config: Mapping[str, Any], on: StreamPlan, arm: Arm) -> Iterator[Cell]:
        experiment, method = self.experiment, self.methods[plan.name]
        validated = validate_config(method, config)
        trial = isinstance(on, TuningPlan)
        for index in range(on.count):
            sources = self._sources(on, index)
            given = material(sources, arm)
            yield Cell(
                sources=sources,
                spec=CellSpec(
                    protocol=PROTOCOL,
                    dataset=self.recipe.name,
                    stream=given.stream.name,
                    stream_hash=given.hash,
                    anchor_hash=given.anchor_hash,
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
