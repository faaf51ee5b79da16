"""Running an experiment: tuning on validation streams, then the cells of the board. Only what is missing is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bench import PROTOCOL, hashing
from bench.answering import metrics
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.contract.method import validate_config
from bench.data import recipe
from bench.data.arms import Arm, documents_per_reset
from bench.data.reader import MissingSplit, split_data, split_entries, split_hash
from bench.errors import BenchError, RunError
from bench.harness.loop import due_questions
from bench.lm import checkpoint, coverage
from bench.lm.base_model import BaseModel
from bench.lm.probe import Abilities
from bench.paths import ROOT
from bench.records.schema import BoardRecord, CellSpec, RunRecord, TuningRecord, mean
from bench.records.store import read_run, sweep, write_board, write_run, write_tuning
from bench.run.cell import Cell, dead_worker_record
from bench.run.executor import Executor, Task
from bench.run.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.run.inputs import Sources, artifact_folder, dependencies, inputs_of, offline_entries, train_hash
from bench.run.roles import Use, overlaps, uses_of

Progress = Callable[[str, int, int], None]
"""Called with (activity, cells done, cells in total)."""

COVERAGE_DOCUMENTS = 200
"""Documents of a split, with their questions and answers, whose characters the base's tokenizer must know."""


@dataclass(frozen=True)
class Trial:
    """One candidate of a method's grid, on every validation stream."""

    config: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Result:
    """Result of an experiment: its cells, remarks for readers, and a line for each cell or tuning trial that failed."""

    cells: tuple[Cell, ...]
    remarks: tuple[str, ...]
    failures: tuple[str, ...]

    @property
    def failed(self) -> int:
        """Number of cells and tuning trials that failed; those that diverged have not failed."""
        return len(self.failures)


class Runner:
    """Plans and runs one experiment, of which it makes a copy. All records go under ``runs``.

    A cell fails if a hook of its method runs for more than ``hook_timeout`` seconds, which a pool of workers enforces.

    Raises:
        BenchError: the request is wrong in any respect; raised on construction, before any work.
    """

    def __init__(
        self,
        experiment: Experiment,
        runs: Path,
        plugins: Sequence[str] = (),
        remarks: Sequence[str] = (),
        hook_timeout: float | None = None,
    ) -> None:
        self.experiment = experiment = experiment.model_copy(deep=True)
        for cache in (split_data, split_hash, inputs_of):
            cache.cache_clear()  # the data may have changed since this process read them for another experiment
        self.runs = runs
        self.plugins = list(plugins)
        self.hook_timeout = hook_timeout
        self.recipe = recipe.find(experiment.dataset)
        folder = checkpoint.locate(experiment.model)
        checkpoint.check(folder, experiment.device)
        self.model_hash = checkpoint.identity(folder)
        self.harness_code = hashing.code_hash(ROOT / "bench" / "harness" / "loop.py")
        self.remarks = list(remarks)
        self._attempts: set[str] = set()  # cells that failed are run again by the next command, not by this one
        self.methods = {plan.name: registry.load_method(plan.name, self.plugins) for plan in experiment.methods}
        self._check_plugins()
        for plan in filter(None, (experiment.streams, experiment.tuning)):
            self._join_few_files(plan)
        self.overlaps = self._overlaps()
        for entry in list(experiment.methods):
            self._check_offline_data(entry, validate_config(self.methods[entry.name], entry.config))
        self.plans = [(entry, self.trials(entry)) for entry in experiment.methods]
        self._check_base(folder)
        self.remarks += self._remarks_on_data()
        for arm in dict.fromkeys(arm for entry in experiment.methods for arm in entry.arms):
            self._check_arm(arm)

    def _check_base(self, folder: Path) -> None:
        """Load the base, and check that it knows the texts and that every method can run on it."""
        experiment = self.experiment
        tokenizer, self.abilities = _base(folder, self.model_hash, experiment.device, experiment.dtype)
        for streams in filter(None, (experiment.streams, experiment.tuning)):
            self._check_coverage(tokenizer, streams)
        for plan, trials in self.plans:
            for settings in (plan.config, *(trial.config for trial in trials)):
                needs = self.methods[plan.name].needs(validate_config(self.methods[plan.name], settings))
                self.abilities.require(needs, Path(experiment.model).name, plan.name)

    def _check_coverage(self, tokenizer: Any, streams: StreamPlan) -> None:
        """Check that the tokenizer knows the characters of the first documents and questions of a split."""
        try:
            entries = inputs_of(self._sources(streams, 0), "stream").stream.entries[:COVERAGE_DOCUMENTS]
        except MissingSplit:  # of validation: methods run untuned
            return
        golds = [gold for entry in entries for gold in entry.questions]
        texts = [entry.document.text for entry in entries] + [gold.question.text for gold in golds]
        known = coverage.coverage(tokenizer, [*texts, *(answer for gold in golds for answer in gold.answers)])
        sentence = known.sentence(Path(self.experiment.model).name, streams.split)
        if known.unknown > coverage.MOST_UNKNOWN:
            raise BenchError(f"{sentence}: scores would be about other texts. Use a base for this language.")
        if known.unknown >= coverage.REMARKED:
            self.remarks.append(f"{sentence}.")

    def _check_plugins(self) -> None:
        for plugin in self.plugins:
            names = [info.name for info in registry.methods_in(plugin)]
            if not self.methods.keys() & set(names):
                raise BenchError(
                    f"No method of --plugin {plugin} is in the experiment: name {' or '.join(names)} in --methods, or "
                    f"leave the plug-in out."
                )

    def _join_few_files(self, plan: StreamPlan) -> None:
        """Make one stream of plain text files, in their order, if there are fewer than planned: they are long."""
        files = self.experiment.data_files
        if self.recipe.format != "text" or plan.split not in files or plan.documents is None:
            return
        count = len(split_entries(self.experiment.dataset, plan.split, files))
        if count < plan.documents * plan.count:
            plan.override({"documents": None, "count": 1})
            self.remarks.append(f"The {plan.split} files ({count}) are one stream.")

    def _overlaps(self) -> list[str]:
        """What the splits of the experiment share although their roles must be disjoint, if the experiment allows it.

        Raises:
            BenchError: they share documents, and the experiment does not allow it.
        """
        experiment = self.experiment
        uses = [Use(experiment.streams.split, "streams", "of the streams")]
        for plan in experiment.methods:
            uses += uses_of(self.methods[plan.name], validate_config(self.methods[plan.name], plan.config))
        if experiment.tuning and any(map(self._grid, experiment.methods)):
            uses.append(Use(experiment.tuning.split, "selected", "on which methods are tuned"))
        if self.recipe.anchor and (experiment.anchor.questions or experiment.anchor.documents):
            uses.append(Use(self.recipe.anchor.split, "anchor", "of the anchor set"))
        return overlaps(experiment.dataset, experiment.data_files, uses, experiment.allow_overlap)

    def _remarks_on_data(self) -> list[str]:
        """Remarks of the reader on the splits of the board and of tuning."""
        experiment = self.experiment
        tuned = [experiment.tuning.split] if experiment.tuning and any(trials for _, trials in self.plans) else []
        splits = dict.fromkeys([experiment.streams.split, *tuned])
        data = (split_data(experiment.dataset, split, experiment.data_files) for split in splits)
        return list(dict.fromkeys(remark for one in data for remark in one.remarks))

    def _check_arm(self, arm: Arm) -> None:
        """Check that an arm exists on every test stream."""
        for index in range(self.experiment.streams.count):
            inputs = inputs_of(self._sources(self.experiment.streams, index), arm)
            name, count = inputs.stream.name, len(inputs.stream.entries)
            if not due_questions(inputs.stream.entries) and not (self.experiment.scoring and inputs.documents):
                raise BenchError(
                    f"The {arm} arm of {self.recipe.name} {name} has nothing to score: no question is asked."
                )
            if arm == "shuffled" and count == 1:
                raise BenchError(f"The shuffled arm needs two documents, but {self.recipe.name} {name} has one.")
            remark = f"On the {arm} arm of streams of {count} documents, methods are never reset."
            if arm.startswith("every_") and (documents_per_reset(arm) or 0) >= count and remark not in self.remarks:
                self.remarks.append(remark)

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
                if not plan.optional or len(self.experiment.methods) == 1:
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
        untuned = [cell for plan, trials in self.plans if not trials for cell in self.cells(plan, plan.config)]
        trial_cells = [cell for _, trials in self.plans for trial in trials for cell in trial.cells]
        self._execute(executor, trial_cells + untuned, "tuning and running" if trial_cells else "running", progress)
        tuned = [(plan, self.choose(plan, trials)) for plan, trials in self.plans if trials]
        configs = {id(plan): record.chosen for plan, record in tuned}
        cells = [cell for plan, _ in self.plans for cell in self.cells(plan, configs.get(id(plan), plan.config))]
        self._execute(executor, cells, "running", progress)
        board = BoardRecord(
            experiment=self.experiment.name,
            runs=list(dict.fromkeys(cell.id for cell in cells)),
            tuning=[record.key for _, record in tuned],
            overlaps=self.overlaps,
            remarks=self.remarks,
        )
        write_board(self.runs, board)
        trial_ids = [cell.id for cell in trial_cells]  # a failed trial may have changed the choice
        records = [read_run(self.runs / run) for run in dict.fromkeys([*trial_ids, *board.runs])]
        failures = tuple(_failure_line(record) for record in records if record.status == "failed")
        return Result(tuple(cells), tuple(self.remarks), failures)

    def _execute(self, executor: Executor, cells: Sequence[Cell], activity: str, progress: Progress) -> None:
        missing = {cell.id: cell for cell in cells if cell.id not in self._attempts and not cell.is_done(self.runs)}
        self._attempts |= missing.keys()
        if not missing:
            return
        tasks = [
            Task(
                key,
                "bench.run.cell:run",
                {
                    "cell": cell.model_dump(mode="json"),
                    "runs": str(self.runs.resolve()),
                    "hook_timeout": self.hook_timeout,
                    "abilities": self.abilities,
                },
                cell.group,
            )
            for key, cell in missing.items()
        ]
        progress(activity, 0, len(tasks))
        for done, outcome in enumerate(executor.run(tasks), 1):
            if outcome.error is not None:
                if outcome.error.kind == "raised":
                    raise RunError(f"{outcome.key} could not be run: {outcome.error.message}")
                cell = missing[outcome.key]
                method = self.methods[cell.spec.method]
                write_run(self.runs, dead_worker_record(cell, method, outcome.error))
            progress(activity, done, len(tasks))

    def _grid(self, plan: MethodPlan) -> dict[str, Sequence[Any]]:
        """The method's grid, without the keys that are fixed."""
        grid = self.methods[plan.name].grid if plan.grid is None else plan.grid
        return {key: values for key, values in grid.items() if key not in plan.config}

    def trials(self, plan: MethodPlan) -> list[Trial]:
        """The candidates of a method's grid, or [] if nothing is tuned."""
        tuning, grid = self.experiment.tuning, self._grid(plan)
        if not grid or tuning is None:
            return []
        try:
            entries = inputs_of(self._sources(tuning, 0), "stream").stream.entries
        except MissingSplit as error:
            remark = f"Methods run untuned, with their default settings: {error}"
            if remark not in self.remarks:
                self.remarks.append(remark)
            return []
        if tuning.metric == "f1" and not due_questions(entries):
            raise BenchError("tuning.metric is f1, but the validation streams have no questions: tune by token_nll.")
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
        write_tuning(self.runs, record)
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
        return mean(values) if len(values) == len(records) else None

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, on each of its arms."""
        return [cell for arm in plan.arms for cell in self._cells(plan, config, self.experiment.streams, arm)]

    def _cells(self, plan: MethodPlan, config: Mapping[str, Any], on: StreamPlan, arm: Arm) -> Iterator[Cell]:
        experiment, method = self.experiment, self.methods[plan.name]
        validated = validate_config(method, config)
        depends_on = dependencies(method, validated)
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
                    segment=self.recipe.segment,
                    metrics=metrics.VERSIONS,
                    harness_code=self.harness_code,
                    method_code=hashing.method_hash(method),
                    dependencies=depends_on,
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


@lru_cache(maxsize=8)
def _base(folder: Path, model_hash: str, device: str, dtype: str) -> tuple[Any, Abilities]:
    """The tokenizer of a base, and what the base can do."""
    lm = BaseModel.load(str(folder), device, dtype)
    return lm.tokenizer, lm.abilities


def _failure_line(record: RunRecord) -> str:
    """The record of a failed cell on one line: method, stream, document and reason."""
    failure = record.failure
    if failure is None:
        return record.id
    where = "" if failure.position is None else f", document {failure.position + 1}"
    reason = failure.message.splitlines()[0][:300] if failure.message else failure.kind
    return f"{record.spec.method} on {record.spec.stream} ({record.spec.arm}{where}): {reason}"
