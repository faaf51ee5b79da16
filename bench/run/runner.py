"""Running an experiment: tuning on validation streams, then the cells of the board. Only what is missing is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import machine
from bench.answering.retune import Retune
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, training_of
from bench.contract.method import validate_config
from bench.contract.search import examples
from bench.data.arms import Arm, documents_per_reset, irrelevant_percent
from bench.data.reader import MissingSplit, split_data, split_entries, split_hash
from bench.errors import BenchError, RunError
from bench.harness.loop import due_questions
from bench.lm import checkpoint, coverage
from bench.lm.base_model import BaseModel
from bench.lm.probe import Abilities
from bench.records.schema import BoardEntry, BoardRecord, TuningRecord, documents_seen, first_probe
from bench.records.store import read_run, sweep, write_board, write_run
from bench.run import lengths
from bench.run.artifacts import MissingWeights
from bench.run.cell import ELSEWHERE, Cell, Moment, dead_worker_record, failure_line, written
from bench.run.executor import Executor, Note, Task, TaskError, affordable_jobs
from bench.run.experiment import Experiment, MethodPlan, StreamPlan
from bench.run.inputs import artifact_folder, dependencies, inputs_of, offline_entries
from bench.run.outlook import Forecaster, Outlook, load
from bench.run.pace import Load, Pace
from bench.run.places import place
from bench.run.planner import Planner, plugins_of
from bench.run.progress import Job, Progress, Purpose
from bench.run.roles import overlaps, uses_in
from bench.run.tuner import Tuner
from bench.run.tuning import Tuning
from bench.settings import dotted

COVERAGE_DOCUMENTS = 200
"""Documents of a split, with their questions and answers, whose characters the base's tokenizer must know."""

WAIT_SECONDS = 1.0
"""Least seconds between two looks at the cells that other processes run."""
LOOKS_A_SECOND = 4
"""Most cells of other processes that a waiting run looks at: a file server may have many such runs."""


@dataclass(frozen=True)
class Result:
    """Result of an experiment: its cells, and what failed of them."""

    cells: tuple[Cell, ...]
    failures: tuple[str, ...]
    """A line for each cell or tuning trial that failed; those that diverged have not failed."""
    missing: int = 0
    """Cells of other shards that have not run; the board is made when there are none."""


class Runner:
    """Plans and runs one experiment, of which it makes a copy. All records go under ``runs``.

    Of several datasets and base models it takes the first ones; the board names those of the other pairs
    (:meth:`Experiment.on_each_pair`), each of which is run like an experiment of its own.

    A cell fails if a hook of its method runs for more than ``hook_timeout`` seconds, which a pool of workers enforces.
    With ``look_only`` it can only look ahead, and uses no GPU. Methods may then lack trained weights, which
    :meth:`look_ahead` says.
    ``shard`` = (k, n) is the k-th of n runs that share the cells: each runs every n-th cell that a method has on the
    board, and of the trials, which all of them need, whatever no other process runs.

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
        look_only: bool = False,
        shard: tuple[int, int] = (1, 1),
    ) -> None:
        experiment, *others = experiment.on_each_pair()
        self.experiment, self._others = experiment, [other.name for other in others]
        for cache in (split_data, split_hash, inputs_of):
            cache.cache_clear()  # the data may have changed since this process read them for another experiment
        self.place, self.runs, self.wait = place(runs), runs, WAIT_SECONDS
        self.hook_timeout, self.remarks, self.shard = hook_timeout, list(remarks), shard
        self._outlooks: dict[int, Outlook] = {}
        self._attempts: set[str] = set()  # cells that failed are run again by the next command, not by this one
        self._running: dict[str, tuple[Cell, str]] = {}  # those that have not ended, and their records before
        self._deaths: dict[str, TaskError] = {}  # of those of them whose worker died
        self.planner = Planner(experiment, runs, plugins)
        self.tuner = Tuner(self.planner, self.remarks)
        self.recipe, self.methods = self.planner.recipe, self.planner.methods
        self._check_plugins()
        for plan in filter(None, (experiment.streams, experiment.tuning if self.tuner.has_spaces else None)):
            self._join_few_files(plan)
        self._state_arms_in_documents()
        self.spaces = {id(entry): self.tuner.search_space(entry) for entry in experiment.methods}
        self._check_retuning()
        self._planned = experiment.methods
        self._untrained: dict[int, str] = {}
        for entry in [one for one in experiment.methods if one.optional]:
            self._check_method(entry, look_only)
        self.overlaps = self._overlaps()  # of those that are not left out, before anybody trains the others
        for entry in [one for one in experiment.methods if not one.optional]:
            self._check_method(entry, look_only)
        self.tuner.check_limit()
        self._check_base(look_only)
        self.remarks += self._remarks_on_data()
        for arm in dict.fromkeys(arm for entry in experiment.methods for arm in entry.arms):
            self._check_arm(arm)

    def _state_arms_in_documents(self) -> None:
        """Replace arms that are stated in tokens, with a remark, as the base and the test streams are known now."""
        stated = [arm for plan in self.experiment.methods for arm in plan.arms if arm.startswith(lengths.TOKENS)]
        if not stated:
            return
        on = self.experiment.streams
        sources = [self.planner.sources(on, index) for index in range(on.count)]
        streams = [inputs_of(one, "stream").documents for one in sources]
        arms = {arm: lengths.in_documents(arm, sources[0].model, streams) for arm in dict.fromkeys(stated)}
        for plan in self.experiment.methods:
            plan.arms = list(dict.fromkeys(arms.get(arm, arm) for arm in plan.arms))
        self.remarks.append(f"In documents: {', '.join(f'{arm} is {meant}' for arm, meant in arms.items())}.")

    @property
    def _is_tuned(self) -> bool:
        """True if a method is tuned. Those that are left out do not count."""
        return any(self.spaces[id(plan)] for plan in self.experiment.methods)

    def _check_base(self, look_only: bool) -> None:
        """Load the base, and check that it knows the texts and that every method can run on it."""
        experiment = self.experiment
        # who only looks leaves a GPU to those that run; where jobs are submitted there may be none
        device = experiment.device if checkpoint.has_device(experiment.device) and not look_only else "cpu"
        tokenizer, self.abilities, self.weights = _base(
            self.planner.base,
            self.planner.model_hash,
            device,
            experiment.dtype,
            experiment.offload,
            device != experiment.device,
        )
        # what is not tuned may have a validation split that is too small for its streams
        for streams in filter(None, (experiment.streams, experiment.tuning if self._is_tuned else None)):
            self._check_coverage(tokenizer, streams)
        if self.abilities is None:  # the workers try them, and refuse then
            return
        if experiment.retune is not None:
            self.abilities.require(["float_weights"], Path(experiment.model).name, "retune")
        for plan in experiment.methods:
            for config in self._configs(plan):
                needs = self.methods[plan.name].needs(config)
                self.abilities.require(needs, Path(experiment.model).name, plan.name)

    def _configs(self, plan: MethodPlan) -> Iterator[MethodConfig]:
        """A method's configs with no setting tuned, and with each choice of one."""
        choices = [{key: value} for key, values in self.spaces[id(plan)].items() for value in examples(values)]
        for settings in ({}, *choices):
            yield validate_config(self.methods[plan.name], {**plan.config, **settings})

    def _check_coverage(self, tokenizer: Any, streams: StreamPlan) -> None:
        """Check that the tokenizer knows the characters of the first documents and questions of a split."""
        entries = inputs_of(self.planner.sources(streams, 0), "stream").stream.entries[:COVERAGE_DOCUMENTS]
        golds = [gold for entry in entries for gold in entry.questions]
        texts = [entry.document.text for entry in entries] + [gold.question.text for gold in golds]
        known = coverage.coverage(tokenizer, [*texts, *(answer for gold in golds for answer in gold.answers)])
        sentence = known.sentence(Path(self.experiment.model).name, streams.split)
        if known.unknown > coverage.MOST_UNKNOWN:
            raise BenchError(f"{sentence}: scores would be about other texts. Use a base for this language.")
        if known.unknown >= coverage.REMARKED:
            self.remarks.append(f"{sentence}.")

    def _check_plugins(self) -> None:
        for plugin in self.planner.plugins:
            if not plugins_of(self.methods, [plugin]):
                names = " or ".join(info.name for info in registry.methods_in(plugin))
                raise BenchError(
                    f"No method of --plugin {plugin} is in the experiment: name {names} in --methods, or leave the "
                    f"plug-in out."
                )

    def _join_few_files(self, plan: StreamPlan) -> None:
        """Make one stream of plain text files, in their order, if there are fewer than planned: they are long."""
        files = self.experiment.data_files
        if self.recipe.format != "text" or plan.split not in files or plan.documents is None:
            return
        count = len(split_entries(self.experiment.dataset, plan.split, files))
        used = plan.documents * plan.count
        if count < used:
            plan.override({"documents": None, "count": 1})
            self.remarks.append(f"The {plan.split} files ({count}) are one stream.")
        elif count > used:
            self.remarks.append(f"{used} of the {count} {plan.split} files are used (--streams, --documents).")

    def _overlaps(self) -> list[str]:
        """What the splits of the experiment share although their roles must be disjoint, if the experiment allows it.

        Raises:
            BenchError: they share documents, and the experiment does not allow it.
        """
        experiment = self.experiment
        methods = ((self.methods[plan.name], one) for plan in experiment.methods for one in self._configs(plan))
        anchor = self.recipe.anchor.split if self.recipe.anchor else None
        uses = uses_in(experiment, methods, anchor, self.tuner.has_spaces)
        return overlaps(experiment.dataset, experiment.data_files, uses, experiment.allow_overlap)

    def _remarks_on_data(self) -> list[str]:
        """Remarks of the reader on the splits of the board and of tuning, and on what is not measured, or badly."""
        experiment = self.experiment
        tuned = [experiment.tuning.split] if experiment.tuning and self._is_tuned else []
        splits = dict.fromkeys([experiment.streams.split, *tuned])
        data = (split_data(experiment.dataset, split, experiment.data_files) for split in splits)
        remarks = list(dict.fromkeys(remark for one in data for remark in one.remarks))
        if experiment.dtype == "float16":
            remarks.append(
                "Gradients are not scaled in float16, so that small ones are lost: bfloat16 is safer for what learns."
            )
        asks_old = bool(experiment.anchor.questions or experiment.anchor.documents)
        if self.recipe.anchor and not asks_old:
            remarks.append(
                "No questions on old knowledge are asked, although the dataset has some: forgetting is not measured."
            )
        if self.recipe.format == "text":
            return remarks
        if asks_old and "anchor" in experiment.model_fields_set and not self.recipe.anchor:
            remarks.append(
                f"Forgetting is not measured, although the experiment has an anchor: {self.recipe.name} states no "
                f"anchor.split."
            )
        entries = split_entries(experiment.dataset, experiment.streams.split, experiment.data_files)
        if "order" not in self.recipe.stream.model_fields_set and all(entry.document.timestamp for entry in entries):
            remarks.append(
                f"Documents are dated, but come in random order: for that of time set stream.order: timestamp in the "
                f"recipe of {self.recipe.name}."
            )
        return remarks

    def _check_arm(self, arm: Arm) -> None:
        """Check that an arm exists on every test stream."""
        if irrelevant_percent(arm) and self.experiment.questions == "first":
            raise BenchError(
                f"questions: first cannot be combined with the {arm} arm, whose first documents are others than those "
                f"of the stream: leave one of them out."
            )
        if arm not in ("stream", "placebo") and 0 < max(self.experiment.probes) < 1:
            raise BenchError(
                f"The last probe is {max(self.experiment.probes):g}, but the {arm} arm asks about all documents, which "
                f"could not be compared: let the last probe be 1, or leave the arm out."
            )
        silent, asking = "", 0
        for index in range(self.experiment.streams.count):
            inputs = inputs_of(self.planner.sources(self.experiment.streams, index), arm)
            name, count = inputs.stream.name, len(inputs.stream.entries)
            asked = inputs.stream.entries
            if self.experiment.questions == "first":
                asked = asked[: documents_seen(first_probe(self.experiment.probes), count)]
            is_asked = bool(due_questions(asked))
            if not is_asked and not (self.experiment.scoring and inputs.documents):
                raise BenchError(
                    f"The {arm} arm of {self.recipe.name} {name} has nothing to score: no question is asked."
                )
            silent, asking = silent if is_asked else name, asking + is_asked
            if arm == "shuffled" and count == 1:
                raise BenchError(f"The shuffled arm needs two documents, but {self.recipe.name} {name} has one.")
            remark = f"On the {arm} arm of streams of {count} documents, methods are never reset."
            if arm.startswith("every_") and (documents_per_reset(arm) or 0) >= count and remark not in self.remarks:
                self.remarks.append(remark)
        if silent and asking:
            raise BenchError(
                f"No question is asked on the {arm} arm of {self.recipe.name} {silent}, but on other streams there "
                f"are some: means would be over different streams. Give each stream more documents (--documents)."
            )

    def _check_retuning(self) -> None:
        """Check that there are questions to retune on, if the experiment retunes."""
        if self.experiment.retune is None:
            return
        sources = self.planner.sources(self.experiment.streams, 0)
        held_out = len(inputs_of(sources, "stream").anchor)
        try:
            entries = offline_entries("qa_train", sources)
        except MissingSplit as error:
            raise BenchError(
                f"retune learns from questions of the qa_train split. {error} Or set retune: null in the experiment."
            ) from None
        if sum(len(entry.questions) for entry in entries) < 2:
            without = f" without the {held_out} documents of the anchor set" if held_out else ""
            raise BenchError(
                f"retune learns from two or more questions of the qa_train split, of which {self.recipe.name} has "
                f"fewer{without}: provide more of them, or set retune: null in the experiment."
            )

    def _check_retuned_once(self, plan: MethodPlan, config: MethodConfig) -> None:
        """Check that the method does not retune itself, if the experiment retunes."""
        own = next((key for key, value in config if isinstance(value, Retune)), None)
        if self.experiment.retune is not None and own is not None:
            raise BenchError(
                f"{plan.name} would be retuned twice before each probe: by its setting {own}, and by the retune of the "
                "experiment. Name the method without that setting, which is then the same, or set retune: null in the "
                "experiment."
            )

    def _check_method(self, entry: MethodPlan, look_only: bool) -> None:
        """Check that a method has what it needs, and leave it out if it lacks that and is optional."""
        config = validate_config(self.methods[entry.name], entry.config)
        self._check_retuned_once(entry, config)
        try:
            self._check_offline_data(entry, config)
        except MissingWeights as error:
            if not look_only:
                raise
            self._untrained[id(entry)] = str(error)
        if any(entry is planned for planned in self.experiment.methods):
            dependencies(self.methods[entry.name], config)  # raises if one is missing

    def _check_offline_data(self, plan: MethodPlan, config: MethodConfig) -> None:
        """Check that the method's trained weights, or the data that it learns from offline, exist.

        An optional method that lacks them is left out.
        """
        method, sources = self.methods[plan.name], self.planner.sources(self.experiment.streams, 0)
        lacks: BenchError | None = None
        try:
            if issubclass(method, MetaTrained):
                lacks = self._lacks_tokens(plan.name, config)
                for seed in self.planner.seeds(plan) if lacks is None else ():
                    self._check_weights(method, config, seed)
            elif method.learns_offline(config):
                offline_entries(method.learns_from, sources)
        except MissingWeights as error:
            lacks = error
        except MissingSplit as error:
            lacks = BenchError(f"{plan.name} learns offline from the {method.learns_from} split. {error}")
        if lacks is not None:
            if not plan.optional or len(self.experiment.methods) == 1:
                raise lacks from None
            self.experiment.methods = [other for other in self.experiment.methods if other is not plan]
            self._untrained |= {id(plan): str(lacks)} if isinstance(lacks, MissingWeights) else {}
            settings = ", ".join(f"{key}={value}" for key, value in plan.config.items() if key != "training")
            title = f"{plan.name} ({settings})" if settings else plan.name
            self.remarks.append(f"Left out: {title}{str(lacks).removeprefix(plan.name)}")

    def _lacks_tokens(self, name: str, config: MethodConfig) -> BenchError | None:
        """An error if the method is trained with a base whose tokens are not those of the experiment's."""
        base = training_of(config).base
        if base is None:
            return None
        own, other = (
            checkpoint.load_tokenizer(folder).get_vocab() for folder in (self.planner.base, checkpoint.locate(base))
        )
        if own == other:
            return None
        return BenchError(
            f"{name} is trained with {base}, whose tokens are not those of {Path(self.experiment.model).name}."
        )

    def _check_weights(self, method: type[MetaTrained], config: MethodConfig, seed: int) -> None:
        """Check that there are trained weights of the method, or that its settings need none."""
        sources = self.planner.sources(self.experiment.streams, 0)
        artifact_folder(method, config, seed, sources, self.experiment.prompt, self.experiment.dtype, self.runs)

    @property
    def untrained(self) -> list[MethodPlan]:
        """The methods that lack their trained weights, also optional ones, which are left out."""
        return [plan for plan in self._planned if id(plan) in self._untrained]

    def untrained_seeds(self, plan: MethodPlan) -> list[int]:
        """The seeds for which a method lacks its trained weights."""
        method, missing = self.methods[plan.name], list[int]()
        if issubclass(method, MetaTrained):
            for seed in self.planner.seeds(plan):
                try:
                    self._check_weights(method, validate_config(method, plan.config), seed)
                except MissingWeights:
                    missing.append(seed)
        return missing

    def look_ahead(self) -> list[Outlook]:
        """What is ahead of each method of the experiment, by the records that are there; of a shard about its part."""
        forecaster = Forecaster(self.planner, self.tuner, self.runs)
        cell, limit = self.tuner.limit_cell(), None
        if cell is not None and cell.is_done(self.runs):
            limit = self.tuner.limit(cell)
        place, shards = self.shard
        return [
            forecaster.outlook(
                plan,
                self.tuner.start(plan, space, limit) if (space := self.spaces[id(plan)]) else None,
                self._untrained.get(id(plan), ""),
                slice((place - 1 - first) % shards, None, shards),  # as in _tasks
            )
            for first, plan in enumerate(self.experiment.methods)
        ]

    def expect(self, progress: Progress) -> None:
        """State what is ahead, so that the progress is that of the whole plan from the beginning."""
        outlooks = zip(self.experiment.methods, self.look_ahead(), strict=True)
        self._outlooks = {id(plan): outlook for plan, outlook in outlooks}
        for part, outlook in self._outlooks.items():
            progress.expect(part, outlook.after(0))

    def run(self, executor: Executor, progress: Progress | None = None) -> Result:
        """Run what is missing: of each method the trials, one round after another, and then the cells of the board.

        ``progress`` follows the cells; :meth:`expect` tells it before what is ahead.

        Raises:
            OSError: the folder of the records cannot be written.
            RunError: a cell could not be run at all, as when the data have changed since it was planned.
        """
        self.runs.mkdir(parents=True, exist_ok=True)
        sweep(self.runs)
        self.place.fetch()
        plans, progress = self.experiment.methods, progress or Progress()
        limit = None
        if (cell := self.tuner.limit_cell()) is not None:
            measured = next(plan for plan in plans if plan.name == cell.spec.method)
            self._execute(executor, [_Batch("tuning", measured, [cell], self.ahead(measured, 0))], progress)
            limit = self.tuner.limit(cell)
        tunings = {id(plan): self.tuner.start(plan, space, limit) for plan in plans if (space := self.spaces[id(plan)])}
        untuned = [plan for plan in plans if id(plan) not in tunings]
        waiting = [_Batch("running", plan, self.planner.cells(plan, plan.config), ()) for plan in untuned]
        searches = _Searches(self, {id(plan): (plan, tunings[id(plan)]) for plan in plans if id(plan) in tunings})
        self._execute(executor, [*searches.begin(), *waiting], progress, searches.after)
        records = {id(plan): self.tuner.choose(plan, tunings[id(plan)]) for plan in plans if id(plan) in tunings}
        chosen = {key: record.chosen for key, record in records.items()}
        cells = {id(plan): self.planner.cells(plan, chosen.get(id(plan), plan.config)) for plan in plans}
        self._execute(executor, [_Batch("running", plan, cells[id(plan)], ()) for plan in plans], progress)
        for tuned in records.values():
            self.place.send(f"tuning/{tuned.key}.json")
        self.place.fetch()
        everything = tuple(cell for some in cells.values() for cell in some)
        missing = len({cell.id for cell in everything if not written(self.runs, cell.id)})
        if not missing:
            self._write_board(cells, records, limit)
        trial_ids = [  # a failed trial may have changed the choice
            run for record in records.values() for run in (*record.runs, *(r for t in record.trials for r in t["runs"]))
        ]
        ids = dict.fromkeys([*trial_ids, *(cell.id for cell in everything)])
        runs = [read_run(self.runs / run) for run in ids if written(self.runs, run)]
        failures = tuple(failure_line(record) for record in runs if record.status == "failed")
        return Result(everything, failures, missing)

    def _write_board(
        self, cells: Mapping[int, Sequence[Cell]], tuned: Mapping[int, TuningRecord], limit: float | None
    ) -> None:
        """Write the board from the cells of each method, all of which have run, and the records of their tuning."""
        board = BoardRecord(
            experiment=self.experiment.name,
            entries=[
                BoardEntry(  # without runs if it is left out
                    method=plan.name,
                    runs=list(dict.fromkeys(cell.id for cell in cells.get(id(plan), ()))),
                    tuning=tuned[id(plan)].key if id(plan) in tuned else None,
                    hand_set=list(dotted(plan.config)),
                )
                for plan in self._planned
            ],
            overlaps=self.overlaps,
            bases=self._others,
            remarks=self.remarks + self.tuner.edge_remarks() + self.tuner.over_limit(cells, limit),
        )
        write_board(self.runs, board)
        self.place.send(f"boards/{board.experiment}.json")

    def ahead(self, plan: MethodPlan, rounds: int) -> Sequence[Load]:
        """The cells of a method that are to come after so many rounds of tuning, if :meth:`expect` has looked ahead."""
        return self._outlooks[id(plan)].after(rounds) if id(plan) in self._outlooks else ()

    def _execute(
        self,
        executor: Executor,
        batches: Sequence[_Batch],
        progress: Progress,
        after: Callable[[str], Iterable[_Batch]] = lambda _: (),
    ) -> None:
        """Run the cells of the batches, and of those that are to follow ``after`` each cell that has ended."""
        tasks = self._tasks(batches, progress)
        while tasks:
            elsewhere = []
            for task, here in self._run_here(executor, tasks, progress):
                if here:
                    tasks += self._tasks(after(task.key), progress)
                else:
                    elsewhere.append(task)
            tasks = self._await(elsewhere, progress, after)

    def _tasks(self, batches: Iterable[_Batch], progress: Progress) -> list[Task]:
        """Tasks for the cells of the batches that are to run here, the longest first."""
        batches = list(batches)
        missing: dict[str, tuple[Cell, str]] = {}
        jobs: dict[str, Job] = {}
        place, shards = self.shard
        own: set[str] = set()
        for purpose, plan, cells, ahead in batches:
            progress.expect(id(plan), ahead)
            first = self.experiment.methods.index(plan)  # methods of few cells do not all begin in the first shard
            for number, cell in enumerate(cells, first):
                if number % shards == place - 1:
                    own.add(cell.id)
                if cell.id in self._attempts or not (cell.id in own or purpose == "tuning"):
                    continue
                before = written(self.runs, cell.id)  # first: what another process writes from now on is new
                if self.is_ahead(cell):
                    missing[cell.id] = cell, before
                    jobs[cell.id] = Job(purpose, self.tuner.label(plan), cell.spec.arm, cell.spec.stream, load(cell))
        self._attempts |= missing.keys()
        self._running |= missing
        # the longest first, so that no worker begins a long one when all others are done
        costs = {
            key: progress.pace.seconds(job.load) or progress.pace.guess(job.load) or 0.0 for key, job in jobs.items()
        }
        if jobs:
            progress.begin(jobs)
        return [
            Task(
                key,
                "bench.run.cell:run",
                {
                    "cell": cell.model_dump(mode="json"),
                    "runs": self.place.name,
                    "hook_timeout": self.hook_timeout,
                    "abilities": self.abilities,
                    "planned": before,
                },
                cell.group,
                cell.sources.files,
            )
            for key, (cell, before) in sorted(missing.items(), key=lambda item: (item[0] not in own, -costs[item[0]]))
        ]

    def is_ahead(self, cell: Cell) -> bool:
        """True for a cell that has no results, and that this command has not begun."""
        return cell.id not in self._attempts and not cell.is_done(self.runs)

    def is_running(self, cell: Cell) -> bool:
        """True for a cell that this command has begun, or waits for, and that has not ended."""
        return cell.id in self._running

    def _run_here(self, executor: Executor, tasks: Sequence[Task], progress: Progress) -> Iterator[tuple[Task, bool]]:
        """Run the tasks; yields each one that has ended, and False with those that other processes run."""
        for outcome in executor.run(tasks):
            if isinstance(outcome, Note):
                progress.note(outcome.key, outcome.content)
                continue
            task = next(task for task in tasks if task.key == outcome.key)
            if outcome.error is not None and outcome.error.kind in ("raised", "failed"):
                raise RunError(f"{outcome.key} ended without a record: {outcome.error.message}")
            if outcome.error is not None:
                self._deaths[outcome.key] = outcome.error
            if outcome.value == ELSEWHERE or (outcome.error is not None and not self._bury(outcome.key)):
                progress.note(outcome.key, Moment("running elsewhere"))
                yield task, False
                continue
            self.place.fetch_record(outcome.key)  # another machine may have run it
            if not written(self.runs, outcome.key):
                raise RunError(
                    f"The record of {outcome.key} is on another machine, which this one does not see. Name a folder "
                    f"that all machines see with --runs."
                )
            self._end(outcome.key, progress)
            yield task, True

    def _bury(self, key: str) -> bool:
        """Record that a cell's worker died or lost its disk, unless another process has run the cell since.

        False if its worker did neither here, or if another process holds its claim: it runs the cell, or it is the dead
        worker, on another machine.
        """
        if key not in self._deaths:
            return False
        with self.place.claimed(key) as free:
            if free:
                self.place.fetch_record(key)
                cell, before = self._running[key]
                if written(self.runs, key) == before:
                    write_run(self.runs, dead_worker_record(cell, self.methods[cell.spec.method], self._deaths[key]))
                    self.place.send(key)
        return free

    def _end(self, key: str, progress: Progress) -> None:
        del self._running[key]
        self._deaths.pop(key, None)
        progress.end(key, read_run(self.runs / key))

    def _await(self, tasks: Sequence[Task], progress: Progress, after: Callable[[str], Iterable[_Batch]]) -> list[Task]:
        """Wait for cells that other processes run, until all have ended or there is something to run here.

        Returns the tasks that have not ended, and those that follow on the others: a cell may be free without a new
        record, since its process died. If a worker died of it here as well, that is its record.
        """
        waiting = list(tasks)
        while waiting:
            for task in list(waiting):
                if self.place.is_claimed(task.key):
                    continue
                self.place.fetch_record(task.key)
                if written(self.runs, task.key) == self._running[task.key][1] and not self._bury(task.key):
                    with self.place.claimed(task.key):  # its process died: another machine, which cannot see that, may
                        return waiting  # take it at once
                waiting.remove(task)
                self._end(task.key, progress)
                if new := self._tasks(after(task.key), progress):
                    return [*new, *waiting]
            time.sleep(max(self.wait, len(waiting) / LOOKS_A_SECOND) if waiting else 0)
        return waiting


class _Searches:
    """The searches for settings of an experiment's methods, each of which goes on as soon as its own cells have ended.

    ``searches`` are those of the entries of the experiment, by the entry's id.
    """

    def __init__(self, runner: Runner, searches: Mapping[int, tuple[MethodPlan, Tuning]]) -> None:
        self._runner = runner
        self._searches = {
            key: (plan, tuning, enumerate(tuning.rounds(), 1)) for key, (plan, tuning) in searches.items()
        }
        self._open: dict[int, set[str]] = {}
        """Cells that each search waits for."""

    def begin(self) -> Iterator[_Batch]:
        """The first cells of all searches."""
        for key in self._searches:
            yield from self._next(key)

    def after(self, ended: str) -> Iterator[_Batch]:
        """What follows when a cell has ended: the next cells of the searches that waited for it alone."""
        for key, cells in list(self._open.items()):
            cells.discard(ended)
            if not cells:
                del self._open[key]
                yield from self._next(key)

    def _next(self, key: int) -> Iterator[_Batch]:
        """The next round that has cells to run or, after the last one, the cells of the board."""
        plan, tuning, rounds = self._searches[key]
        runner = self._runner
        for number, cells in rounds:
            waits_for = {cell.id for cell in cells if runner.is_ahead(cell) or runner.is_running(cell)}
            yield _Batch("tuning", plan, cells, runner.ahead(plan, number))
            if waits_for:
                self._open[key] = waits_for
                return
        yield _Batch("running", plan, runner.planner.cells(plan, runner.tuner.chosen(plan, tuning)), ())


class _Batch(NamedTuple):
    """Cells of one method that run together."""

    purpose: Purpose
    plan: MethodPlan
    cells: Sequence[Cell]
    ahead: Sequence[Load]
    """The cells of the method that are to come after these."""


def earlier_pace(runners: Sequence[Runner], runs: Path) -> Pace:
    """The pace of the methods of all runners on their bases, by the records that are there."""
    pace = Pace()
    methods = dict.fromkeys(plan.name for runner in runners for plan in runner.experiment.methods)
    pace.read(runs, methods, {runner.planner.base_in_use for runner in runners})
    return pace


@lru_cache(maxsize=8)
def _base(
    folder: Path, model_hash: str, device: str, dtype: str, offload: bool, stands_in: bool
) -> tuple[Any, Abilities | None, int]:
    """The tokenizer of a base, what the base can do, and the number of its weights.

    If the device ``stands_in`` for another one and has no room for the base, what it can do is not tried.

    Raises:
        BenchError: it cannot be loaded, or there is not enough memory for it.
    """
    checkpoint.check(folder, device)
    weights = checkpoint.weight_count(folder)
    if device == "cpu":  # where the system may end a process that takes too much, before it can say so
        try:
            affordable_jobs(1, weights, machine.available_memory())
        except BenchError:
            if not stands_in:
                raise
            return checkpoint.load_tokenizer(folder), None, weights
    try:
        lm = BaseModel.load(str(folder), device, dtype, offload=offload)
        tokenizer, abilities = lm.tokenizer, lm.abilities
    except torch.OutOfMemoryError:
        raise BenchError(
            f"The base in {folder} does not fit into the free memory of {device}. End the processes that use it, "
            f"{'add --offload, ' * (device == 'cuda' and not offload)}or use a smaller base or --device cpu."
        ) from None
    del lm
    machine.release_gpu_memory()  # the workers are planned by what is free
    return tokenizer, abilities, weights
