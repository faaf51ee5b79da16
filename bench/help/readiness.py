"""Whether an experiment can run here: its data, licences, base, device and memory, and what its methods take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from bench.answering.retune import Retune
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, TrainingConfig, training_of
from bench.contract.method import Method, validate_config
from bench.data import recipe
from bench.data.arms import Arm, documents_per_reset
from bench.data.reader import MissingSplit, split_entries
from bench.data.recipe import SPLITS
from bench.errors import BenchError
from bench.files import read_yaml, write_bytes
from bench.harness.ledger import peak, reset_peak
from bench.help import shapes
from bench.help.doctor import Finding
from bench.lm import checkpoint, placement
from bench.paths import RECIPE
from bench.run import artifacts
from bench.run.display import duration
from bench.run.executor import Executor, Outcome, Task, gpus_of, worker_bytes
from bench.run.experiment import AnchorPlan, Experiment, MethodPlan, StreamPlan
from bench.run.pace import Pace
from bench.run.roles import uses_in
from bench.run.runner import Runner, earlier_pace
from bench.run.search import explore
from bench.run.train import name_of_training, train
from bench.run.workers import Workers
from bench.settings import merged

MEASURED_DOCUMENTS = 16
"""Documents of a stream on which each method is tried to learn what it takes."""
MEASURED_CHARACTERS = 20_000
"""Characters of a text file on which each method is tried: it may be a book."""
MEASURED_SETTINGS = 3
"""Settings with which a method is tried that is tuned: its first ones may cost less than those that are chosen."""
TRIED_STEPS = 3
"""Outer steps of a training that is tried, after as many that are not timed."""


class Training(NamedTuple):
    """What a training takes that has not been done yet."""

    label: str
    seeds: int
    seconds: float
    """Of one seed."""
    peak_bytes: int

    def __str__(self) -> str:
        seeds = f" with each of {self.seeds} seeds" if self.seeds > 1 else ""
        return (
            f"Training of {self.label}, by a short trial: {duration(self.seconds)}{seeds}, and up to "
            f"{self.peak_bytes / 1e9:.1f} GB."
        )


class Measured(NamedTuple):
    """What was learned by trials."""

    pace: Pace
    trainings: Sequence[Training]
    failures: Sequence[str]


def readiness(experiment: Experiment, plugins: Sequence[str] = ()) -> list[Finding]:
    """What an experiment needs, and whether it is there, without a download; a ``missing`` item stops it.

    Each dataset comes once, then each base, and then each model that methods are trained with.
    """
    pairs = experiment.on_each_pair()
    data, bases = {pair.dataset: pair for pair in pairs}, {pair.model: pair for pair in pairs}
    methods = [plan for plan in experiment.methods if any(plan in pair.methods for pair in pairs)]
    read = (_data(pair.model_copy(update={"methods": methods}), plugins) for pair in data.values())
    found = [*read, *map(_base, bases.values()), _models(experiment.model_copy(update={"methods": methods}), plugins)]
    return list(chain.from_iterable(found))


def _data(experiment: Experiment, plugins: Sequence[str]) -> Iterator[Finding]:
    """The licence of a dataset, and each split: read, to be downloaded, to be provided, or not used."""
    data = recipe.find(experiment.dataset)
    yield Finding("ok", data.name, f"{data.title}; licence: {data.licence}")
    needed, told = {experiment.streams.split, *(["qa_train"] if experiment.retune else [])}, set[str]()
    anchor = data.anchor.split if data.anchor else None
    uses = uses_in(experiment, _configured(experiment, plugins), anchor, is_tuned=True)
    used = {use.split for use in uses if use.dataset is None}
    for split in SPLITS:
        if split not in used:  # not read: the train split of PG-19 has 13 GB
            yield Finding("note", split, "is not used")
            continue
        if not experiment.data_files and data.source and data.source.hub and split in data.declared:
            hub = data.source.hub
            yield Finding("note", split, f"is downloaded from the hub: {hub.id}, revision {hub.revision[:8]}")
            continue
        try:
            entries = split_entries(experiment.dataset, split, experiment.data_files)
        except BenchError as error:
            only_noted = isinstance(error, MissingSplit) and split not in needed
            if str(error) not in told:  # terms hold for all splits
                yield Finding("note" if only_noted else "missing", split, str(error))
            told.add(str(error))
        else:
            questions = sum(len(entry.questions) for entry in entries)
            yield Finding("ok", split, f"{len(entries):,} documents, {questions:,} questions")


def _configured(experiment: Experiment, plugins: Sequence[str]) -> Iterator[tuple[type[Method], MethodConfig]]:
    """Each method with its config, with no setting tuned."""
    for plan in experiment.methods:
        kind = registry.load_method(plan.name, plugins)
        yield kind, validate_config(kind, plan.config)


def _base(experiment: Experiment) -> Iterator[Finding]:
    """The base, the device, and the memory of a worker."""
    name = experiment.model
    try:
        folder = checkpoint.locate(name, download=False)
        checkpoint.check(folder, experiment.device)
    except BenchError as error:
        yield Finding("missing", "base", str(error))
        yield from _by_shape(experiment)
        return
    weights, parameters = checkpoint.weight_count(folder), checkpoint.parameter_count(folder)
    yield Finding("ok", "base", f"{Path(name).name}, {parameters / 1e6:,.0f} million weights, on {experiment.device}")
    yield _memory(experiment, weights, parameters)


def _by_shape(experiment: Experiment) -> Iterator[Finding]:
    """What a base that is not there will take, if its shape is known and the device is there."""
    size = shapes.size_of(experiment.model)
    if size is None:
        return
    weights = size.weights
    yield Finding("note", "size", f"{weights / 1e6:,.0f} million weights, {2e-9 * weights:.1f} GB in 16 bits")
    with suppress(BenchError, torch.OutOfMemoryError):
        checkpoint.check_device(experiment.device)
        yield _memory(experiment, weights, weights)
        yield Finding("note", "time", shapes.least_times(size, experiment.device, experiment.dtype))


def _memory(experiment: Experiment, weights: int, parameters: int) -> Finding:
    """The memory of a worker, and whether it is there."""
    try:
        plan = Workers().plan(experiment, weights)
    except BenchError as error:
        return Finding("missing", "memory", str(error))
    gpus = 0 if experiment.device == "cpu" else gpus_of(plan.gpus)
    least, most = (size / 1e9 for size in worker_bytes(weights, gpus))
    learning = f", up to {most:.1f} GB to fine-tune it" if weights == parameters else ""  # what is quantized is not
    text = f"{least:.1f} GB a worker to read the base{learning}; {plan.jobs} fit"
    return Finding("note" if plan.remark else "ok", "memory", text)


def _models(experiment: Experiment, plugins: Sequence[str]) -> Iterator[Finding]:
    """The models, other than the base, that settings of training name."""
    named: dict[str, str] = {}
    for kind, config in _configured(experiment, plugins):
        if issubclass(kind, MetaTrained):
            training = training_of(config)
            for setting, name in {"base": training.base, **training.models()}.items():
                if name is not None:
                    named.setdefault(name, f"{kind.name}.training.{setting}")
    for name, setting in named.items():
        try:
            checkpoint.locate(name, setting, download=False)
        except BenchError as error:
            yield Finding("missing", name, str(error))
        else:
            yield Finding("ok", name, f"is there, for {setting}")


def measure(runners: Sequence[Runner], runs: Path, plugins: Sequence[str], jobs: int | None = None) -> Measured:
    """What each method takes by trials on a few documents, whose records are thrown away.

    A method that is tuned is tried with settings that cover its search space. Trained weights under ``runs`` are used;
    a method that lacks them is trained for a few steps first. As large a share of the anchor set is asked as of the
    documents, and as large a share of the steps of retuning is taken.

    Raises:
        BenchError: the experiment cannot run here.
    """
    failures, tried = list[str](), dict[str, Outcome]()
    trainings: dict[str, Training] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / artifacts.FOLDER).mkdir()
        for trained in (runs / artifacts.FOLDER).glob("*"):
            (folder / artifacts.FOLDER / trained.name).symlink_to(trained.resolve())
        for planned in runners:
            small, share = _cut_down(planned.experiment)
            if planned.recipe.format == "text":
                small.dataset = str(_with_openings(planned.recipe, folder))
            workers = Workers(jobs=jobs)
            plan_of_workers = workers.plan(small, planned.weights)
            lacking = {id(plan): _training_name(plan, planned) for plan in planned.untrained}
            new = {name: plan for plan in planned.untrained if (name := lacking[id(plan)]) not in tried}
            if new:  # with workers of their own, which then leave the memory of a GPU
                with workers.open(small, plan_of_workers) as executor:
                    tried |= _try_trainings(new, planned, executor, folder, plugins)
            for plan in planned.untrained:
                label, result = planned.tuner.label(plan), tried[name := lacking[id(plan)]]
                if result.error is not None:
                    failures.append(f"{label}, in training: {result.error.message}")
                elif name not in trainings:
                    trainings[name] = Training(label, len(planned.untrained_seeds(plan)), *result.value)
            methods = [
                trial
                for plan in planned.experiment.methods
                if id(plan) not in lacking or tried[lacking[id(plan)]].error is None
                for trial in _tried(plan, planned, share)
            ]
            if methods:
                small.methods = methods
                with workers.open(small, plan_of_workers) as executor:
                    failures += Runner(small, folder, plugins).run(executor).failures
        pace = earlier_pace(runners, folder)
    return Measured(pace, [*trainings.values()], failures)


def _cut_down(experiment: Experiment) -> tuple[Experiment, float]:
    """An experiment with one stream of a few documents, untuned, and their share of those of a stream."""
    small = experiment.model_copy(deep=True)
    documents = min(MEASURED_DOCUMENTS, small.streams.documents or 1)  # of a whole split, which may be of books
    share = documents / (small.streams.documents or documents)
    small.anchor = AnchorPlan(
        questions=ceil(share * small.anchor.questions), documents=ceil(share * small.anchor.documents)
    )
    small.retune = _cut(small.retune, share) if small.retune is not None else None
    small.streams = StreamPlan(split=small.streams.split, documents=documents, count=1)
    small.tuning, small.equal_compute, small.seeds, small.orders = None, None, small.seeds[:1], 1
    return small, share


def _with_openings(data: recipe.Recipe, folder: Path) -> Path:
    """A dataset like this one, of the same name, that has no more than the openings of the texts."""
    values = read_yaml(data.folder / RECIPE)
    values["characters"] = min(data.characters or inf, MEASURED_CHARACTERS)
    if data.source and data.source.files:  # they stay where they are
        own = data.folder.resolve()
        files = {split: [str(own / name) for name in names] for split, names in data.source.files.items()}
        values["source"] = {**values["source"], "files": files}
    copy = folder / "openings" / data.name / RECIPE
    write_bytes(copy, yaml.safe_dump(values).encode())
    return copy.parent


def _training_name(plan: MethodPlan, planned: Runner) -> str:
    """The same for entries of a method that take the same training."""
    return f"{plan.name} {name_of_training(_training(plan, planned), planned.experiment)}"


def _training(plan: MethodPlan, planned: Runner) -> TrainingConfig:
    return training_of(validate_config(planned.methods[plan.name], plan.config))


def _try_trainings(
    plans: Mapping[str, MethodPlan], planned: Runner, executor: Executor, folder: Path, plugins: Sequence[str]
) -> dict[str, Outcome]:
    """Train methods that lack their weights for a few steps: by name, seconds of a whole training and most bytes."""
    tasks = []
    for name, plan in plans.items():
        tried = plan.model_copy(update={"config": merged(plan.config, _shortened(plan, planned))})
        alone = planned.experiment.model_copy(update={"name": plan.name, "methods": [tried]})
        payload = {
            "name": plan.name,
            "experiment": alone.model_dump(mode="json"),
            "seed": planned.planner.seeds(plan)[0],
            "folder": str(folder),
            "plugins": list(plugins),
            "steps": _training(plan, planned).steps,
        }
        tasks.append(Task(name, f"{__name__}:try_training", payload, group=f"training {name}"))
    return {result.key: result for result in executor.run(tasks) if isinstance(result, Outcome)}


def try_training(
    name: str, experiment: Mapping[str, Any], seed: int, folder: str, plugins: Sequence[str], steps: int
) -> tuple[float, int]:
    """Train a method, with its weights under ``folder``: seconds of a training of ``steps`` steps, and most bytes.

    The first half is left out of the seconds, if there are two: it has what is done once.
    """
    planned = Experiment.model_validate(experiment)
    devices = placement.visible(planned.device)
    reset_peak(devices)
    times = [time.perf_counter()]

    def note(_: str) -> None:
        times.append(time.perf_counter())

    train(name, planned, seed, Path(folder) / artifacts.FOLDER, Path(folder) / "train", plugins, say=note)
    return (times[-1] - times[-2]) * steps / min(TRIED_STEPS, steps), peak(devices)


def _shortened(plan: MethodPlan, planned: Runner) -> dict[str, Any]:
    """Settings of a training of a few steps, with as many validation documents to a step; {} if weights are there."""
    if plan not in planned.untrained:
        return {}
    training = _training(plan, planned)
    steps = min(TRIED_STEPS, training.steps)
    validations = 1 + training.steps / training.validate_every
    documents = round(training.validation_episodes * validations * steps / training.steps)
    halves = {"steps": min(2 * steps, training.steps), "validate_every": steps}
    return {"training": {**halves, "validation_episodes": max(1, documents)}}


def _cut(retune: Retune, share: float) -> Retune:
    """Retuning with a share of its steps: it takes the same time for each probe, however long the stream is."""
    return retune.model_copy(update={"steps": ceil(share * retune.steps)})


def _tried(plan: MethodPlan, planned: Runner, share: float = 1.0) -> Iterator[MethodPlan]:
    """The method with each of the settings that are tried, with its first seed, on the arm that holds most documents.

    The first settings are also tried without documents if tuning has such cells. Retuning has a share of its steps.
    """
    space, kind = planned.spaces[id(plan)], planned.methods[plan.name]
    defaults = validate_config(kind, plan.config).model_dump(mode="json")
    on = planned.experiment.tuning
    floor: list[Arm] = ["empty"] if space and on is not None and on.metric == "f1" else []
    for number, settings in enumerate(explore(space, defaults, MEASURED_SETTINGS) if space else [{}]):
        config = merged({**plan.config, **settings}, _shortened(plan, planned))
        with suppress(BenchError):  # a combination that the method refuses
            for name, value in validate_config(kind, config):
                if isinstance(value, Retune):
                    config = merged(config, {name: _cut(value, share).model_dump()})
            arms = list(dict.fromkeys([max(plan.arms, key=_held), *(floor if number == 0 else ())]))
            yield plan.model_copy(update={"config": config, "seeds": plan.seeds and plan.seeds[:1], "arms": arms})


def _held(arm: Arm) -> float:
    """The most documents that a method holds when it is asked on an arm; infinity for those of a whole stream."""
    return 0 if arm == "empty" else documents_per_reset(arm) or inf
