"""Running an experiment: tuning on validation streams, then the cells of the board. Only what is missing is run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from bench import PROTOCOL, hashing
from bench.answering import metrics
from bench.contract import registry
from bench.contract.config import MethodConfig, dotted
from bench.contract.meta_training import MetaTrained
from bench.contract.method import validate_config
from bench.contract.search import Range, SearchSpace, examples
from bench.data import recipe
from bench.data.arms import Arm, documents_per_reset
from bench.data.documents import Entry
from bench.data.reader import MissingSplit, split_data, split_entries, split_hash
from bench.errors import BenchError, RunError
from bench.harness.loop import due_questions
from bench.lm import checkpoint, coverage
from bench.lm.base_model import BaseModel
from bench.lm.probe import Abilities
from bench.paths import ROOT
from bench.records.schema import BoardEntry, BoardRecord, CellSpec, RunRecord, TuningRecord
from bench.records.store import read_run, sweep, write_board, write_run, write_tuning
from bench.run.cell import Cell, dead_worker_record
from bench.run.executor import Executor, Task
from bench.run.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.run.inputs import Sources, artifact_folder, dependencies, inputs_of, offline_entries, train_hash
from bench.run.roles import Use, overlaps, uses_of
from bench.run.search import Settings, at_edge
from bench.run.tuning import SLACK, Tuning, first_part, operations_per_token

Progress = Callable[[str, int, int], None]
"""Called with (activity, cells done, cells in total)."""

STEPS = "steps_per_document"
"""The setting that a limit on operations fixes."""
LIMIT_DOCUMENTS = 20
"""Documents on which the limit on operations is measured."""
COVERAGE_DOCUMENTS = 200
"""Documents of a split, with their questions and answers, whose characters the base's tokenizer must know."""


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
            config = validate_config(self.methods[entry.name], entry.config)
            self._check_offline_data(entry, config)
            dependencies(self.methods[entry.name], config)  # raises if one is missing
        self.spaces = {id(entry): self.search_space(entry) for entry in experiment.methods}
        self._check_limit()
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
        for plan in experiment.methods:
            choices = [[{key: value} for value in examples(values)] for key, values in self.spaces[id(plan)].items()]
            for settings in ({}, *itertools.chain.from_iterable(choices)):
                config = validate_config(self.methods[plan.name], {**plan.config, **settings})
                needs = self.methods[plan.name].needs(config)
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
        if experiment.tuning and any(map(self._stated_space, experiment.methods)):
            uses.append(Use(experiment.tuning.split, "selected", "on which methods are tuned"))
        if self.recipe.anchor and (experiment.anchor.questions or experiment.anchor.documents):
            uses.append(Use(self.recipe.anchor.split, "anchor", "of the anchor set"))
        return overlaps(experiment.dataset, experiment.data_files, uses, experiment.allow_overlap)

    def _remarks_on_data(self) -> list[str]:
        """Remarks of the reader on the splits of the board and of tuning."""
        experiment = self.experiment
        tuned = [experiment.tuning.split] if experiment.tuning and any(self.spaces.values()) else []
        splits = dict.fromkeys([experiment.streams.split, *tuned])
        data = (split_data(experiment.dataset, split, experiment.data_files) for split in splits)
        remarks = list(dict.fromkeys(remark for one in data for remark in one.remarks))
        if self.recipe.anchor and not (experiment.anchor.questions or experiment.anchor.documents):
            remarks.append(
                "No questions on old knowledge are asked, although the dataset has some: forgetting is unknown."
            )
        return remarks

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
            for seed in self._seeds(plan):
                artifact_folder(method, config, seed, self._sources(self.experiment.streams, 0), self.runs)
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
        plans = self.experiment.methods
        limit = self._limit(executor, progress)
        tunings = {id(plan): self._tuning(plan, limit) for plan in plans if self.spaces[id(plan)]}
        waiting = [cell for plan in plans if id(plan) not in tunings for cell in self.cells(plan, plan.config)]
        rounds = [tuning.rounds() for tuning in tunings.values()]
        while rounds:
            batches = [next(one, None) for one in rounds]
            rounds = [one for one, batch in zip(rounds, batches, strict=True) if batch is not None]
            trials = [cell for batch in batches for cell in batch or ()]
            self._execute(executor, trials + waiting, "tuning and running", progress)
        records = {id(plan): self._choose(plan, tunings[id(plan)]) for plan in plans if id(plan) in tunings}
        chosen = {key: record.chosen for key, record in records.items()}
        cells = {id(plan): self.cells(plan, chosen.get(id(plan), plan.config)) for plan in plans}
        self._execute(executor, [cell for some in cells.values() for cell in some], "running", progress)
        board = BoardRecord(
            experiment=self.experiment.name,
            entries=[
                BoardEntry(
                    method=plan.name,
                    runs=list(dict.fromkeys(cell.id for cell in cells[id(plan)])),
                    tuning=records[id(plan)].key if id(plan) in records else None,
                    hand_set=list(dotted(plan.config)),
                )
                for plan in plans
            ],
            overlaps=self.overlaps,
            bases=[further.name for further in self.experiment.on_each_base()[1:]],
            remarks=self.remarks + self._over_limit(cells, limit),
        )
        write_board(self.runs, board)
        trial_ids = [  # a failed trial may have changed the choice
            run for record in records.values() for run in (*record.runs, *(r for t in record.trials for r in t["runs"]))
        ]
        runs = [read_run(self.runs / run) for run in dict.fromkeys([*trial_ids, *board.runs])]
        failures = tuple(_failure_line(record) for record in runs if record.status == "failed")
        everything = tuple(cell for some in cells.values() for cell in some)
        return Result(everything, tuple(board.remarks), failures)

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

    def _stated_space(self, plan: MethodPlan) -> SearchSpace:
        """The search space of the plan, else of the method, without the settings that are fixed."""
        method = self.methods[plan.name]
        space = method.search_space(validate_config(method, plan.config)) if plan.space is None else plan.space
        return {key: values for key, values in space.items() if key not in plan.config}

    def search_space(self, plan: MethodPlan) -> SearchSpace:
        """The settings of a method to tune, with their choices as its config has them, or {} if nothing is tuned.

        Raises:
            BenchError: a setting does not exist, or a value of it is out of bounds.
        """
        tuning, space = self.experiment.tuning, self._stated_space(plan)
        if not space or tuning is None:
            return {}
        method = self.methods[plan.name]
        valid = {}
        for key, values in space.items():
            configs = [validate_config(method, {**plan.config, key: value}) for value in examples(values)]
            choices = [config.model_dump(mode="json")[key] for config in configs]
            valid[key] = values if isinstance(values, Range) else choices
        try:
            streams = self._validation_streams(tuning)
        except MissingSplit as error:
            remark = f"Methods run untuned, with their default settings: {error}"
            if remark not in self.remarks:
                self.remarks.append(remark)
            return {}
        if tuning.metric == "f1" and not all(map(due_questions, streams)):
            raise BenchError("tuning.metric is f1, but the validation streams have no questions: tune by token_nll.")
        return valid

    def _tuning(self, plan: MethodPlan, limit: float | None) -> Tuning:
        """The search for a method's settings, not begun."""
        on, method = self.experiment.tuning, self.methods[plan.name]
        assert on is not None

        def make_cells(settings: Settings, arm: str, prefix: int | None) -> list[Cell]:
            return list(self._cells(plan, {**plan.config, **settings}, on, arm, prefix=prefix))

        def is_valid(settings: Settings) -> bool:
            try:
                method.Config(**{**plan.config, **settings})
            except pydantic.ValidationError:
                return False
            return True

        return Tuning(
            space=self.spaces[id(plan)],
            defaults=validate_config(method, plan.config).model_dump(mode="json"),
            trials=on.trials,
            metric=on.metric,
            prefix=self._prefix(on),
            make_cells=make_cells,
            runs=self.runs,
            is_valid=is_valid,
            limit=limit,
        )

    def _validation_streams(self, on: TuningPlan) -> list[Sequence[Entry]]:
        return [inputs_of(self._sources(on, index), "stream").stream.entries for index in range(on.count)]

    def _prefix(self, on: TuningPlan) -> int | None:
        """The first third of the shortest validation stream; None if on any stream it has no questions to tune by."""
        streams = self._validation_streams(on)
        part = first_part(min(map(len, streams)))
        has_questions = on.metric != "f1" or all(due_questions(entries[:part]) for entries in streams)
        return part if has_questions else None

    def _check_limit(self) -> None:
        """Check that the method whose operations are the limit is in the experiment, and that trials can be limited."""
        equal, on = self.experiment.equal_compute, self.experiment.tuning
        if equal is None:
            return
        if on is None or on.metric != "f1":
            raise BenchError("equal_compute limits what trials spend: give the experiment a tuning plan by F1.")
        plan = self._limiting_plan()
        if plan is None:
            raise BenchError(f"equal_compute names {equal.method}, which is not in the experiment: add it.")
        validate_config(self.methods[plan.name], {**plan.config, STEPS: equal.steps})

    def _limiting_plan(self) -> MethodPlan | None:
        equal = self.experiment.equal_compute
        return next((plan for plan in self.experiment.methods if equal and plan.name == equal.method), None)

    def _limit(self, executor: Executor, progress: Progress) -> float | None:
        """The most operations per token in observing, if the experiment limits them: those of a method it names."""
        equal, on, plan = self.experiment.equal_compute, self.experiment.tuning, self._limiting_plan()
        if equal is None or on is None or plan is None:
            return None
        config = {**plan.config, STEPS: equal.steps}
        (cell, *_) = self._cells(plan, config, on, "stream", prefix=LIMIT_DOCUMENTS)
        self._execute(executor, [cell], "measuring the limit on operations", progress)
        limit = operations_per_token(self.runs, cell)
        if limit is None:
            raise RunError(
                f"The limit on operations could not be measured: {_failure_line(read_run(self.runs / cell.id))}"
            )
        return limit

    def _over_limit(self, cells: Mapping[int, Sequence[Cell]], limit: float | None) -> list[str]:
        """A remark on the limit on operations, and one on the methods that exceed it."""
        equal = self.experiment.equal_compute
        if limit is None or equal is None:
            return []
        names = []
        for some in cells.values():
            spent = [operations_per_token(self.runs, cell) or 0.0 for cell in some]
            if max(spent, default=0.0) > SLACK * limit:
                names.append(some[0].spec.method)
        remark = f"Methods may observe a token with {limit:.3g} operations, as {equal.method} at {equal.steps} steps."
        return [remark, *([f"Over this limit: {', '.join(dict.fromkeys(names))}."] if names else [])]

    def _choose(self, plan: MethodPlan, tuning: Tuning) -> TuningRecord:
        """Write the record of a search that has ended, with its choice."""
        assert self.experiment.tuning is not None
        trials = [tuning.record(trial, plan.config) for trial in tuning.done]
        if failed := sum(trial["score"] is None for trial in trials):
            self.remarks.append(f"{failed} of {len(trials)} tuning trials of {self._label(plan)} diverged or failed.")
        if len(trials) < tuning.trials:
            self.remarks.append(
                f"{self._label(plan)} was tuned with {len(trials)} of {tuning.trials} trials: there are no other "
                f"settings to try{' within the limit on operations' if tuning.limit is not None else ''}."
            )
        best = tuning.best()
        settings = {} if best is None else best.settings
        if best is not None:
            self._remark_edges(plan, tuning, settings)
        cells = [*tuning.others, *(cell for trial in tuning.done for cell in trial.cells)]
        key = hashing.digest([tuning.metric, [cell.key for cell in cells]])
        record = TuningRecord(
            key=f"{plan.name}-{key[:12]}",
            method=plan.name,
            dataset=self.recipe.name,
            model=Path(self.experiment.model).name,
            model_hash=self.model_hash,
            metric=tuning.metric,
            space={
                key: values.model_dump() if isinstance(values, Range) else list(values)
                for key, values in tuning.space.items()
            },
            floor=tuning.floor(),
            trials=tuple(trials),
            chosen=validate_config(self.methods[plan.name], {**plan.config, **settings}).model_dump(mode="json"),
            runs=list(dict.fromkeys(cell.id for cell in tuning.others)),
        )
        write_tuning(self.runs, record)
        return record

    def _remark_edges(self, plan: MethodPlan, tuning: Tuning, best: Settings) -> None:
        """Remark on a best value at an edge of its range, unless the setting's own bound is there."""
        fields = self.methods[plan.name].Config.model_fields
        tried = [trial.settings for trial in tuning.done]
        for key in at_edge(tuning.space, tried, best, 1 / max(2, tuning.trials)):
            bounds = [getattr(bound, side, None) for bound in fields[key].metadata for side in ("ge", "le")]
            if best[key] not in bounds:
                self.remarks.append(
                    f"The best {key} of {self._label(plan)}, {best[key]:g}, is at the edge of what was tried: "
                    f"a wider range may do better."
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

    def _seeds(self, plan: MethodPlan) -> Sequence[int]:
        return plan.seeds or self.experiment.seeds

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, on each of its arms, with each seed, in each order."""
        on, orders = self.experiment.streams, range(self.experiment.orders)
        return [
            cell
            for arm, seed, order in itertools.product(plan.arms, self._seeds(plan), orders)
            for cell in self._cells(plan, config, on, arm, seed, order)
        ]

    def _cells(
        self,
        plan: MethodPlan,
        config: Mapping[str, Any],
        on: StreamPlan,
        arm: Arm,
        seed: int | None = None,
        order: int = 0,
        prefix: int | None = None,
    ) -> Iterator[Cell]:
        """The cells on all streams of a plan, by default with the method's first seed."""
        experiment, method = self.experiment, self.methods[plan.name]
        seed = self._seeds(plan)[0] if seed is None else seed
        validated = validate_config(method, config)
        depends_on = dependencies(method, validated)
        trial = isinstance(on, TuningPlan)
        for index in range(on.count):
            sources = self._sources(on, index).model_copy(update={"order": order, "prefix": prefix})
            inputs = inputs_of(sources, arm)
            yield Cell(
                sources=sources,
                spec=CellSpec(
                    protocol=PROTOCOL,
                    dataset=self.recipe.name,
                    stream=inputs.stream.name,
                    stream_hash=inputs.hash,
                    anchor_hash=inputs.anchor_hash,
                    train_hash=train_hash(method, validated, seed, sources, self.runs),
                    model=Path(experiment.model).name,
                    model_hash=self.model_hash,
                    dtype=experiment.dtype,
                    device=experiment.device,
                    method=plan.name,
                    config=validated.model_dump(mode="json"),
                    seed=seed,
                    order=order,
                    prefix=prefix,
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
