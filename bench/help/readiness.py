"""Whether an experiment can run here: its data, licences, base, device and memory, and what its methods take."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from math import ceil, inf
from pathlib import Path

from bench.contract import registry
from bench.contract.meta_training import MetaTrained, training_of
from bench.contract.method import validate_config
from bench.data import recipe
from bench.data.arms import Arm, documents_per_reset
from bench.data.reader import MissingSplit, split_entries
from bench.data.recipe import SPLITS
from bench.errors import BenchError
from bench.help.doctor import Finding
from bench.lm import checkpoint
from bench.run import artifacts
from bench.run.executor import worker_bytes
from bench.run.experiment import AnchorPlan, Experiment, MethodPlan, StreamPlan
from bench.run.pace import Pace
from bench.run.runner import Runner
from bench.run.search import explore
from bench.run.workers import Workers

MEASURED_DOCUMENTS = 16
"""Documents of a stream on which each method is tried to learn what it takes."""
MEASURED_SETTINGS = 3
"""Settings with which a method is tried that is tuned: its first ones may cost less than those that are chosen."""


def readiness(experiment: Experiment, plugins: Sequence[str] = ()) -> list[Finding]:
    """What an experiment needs, and whether it is there, without a download; a ``missing`` item stops it.

    Each data set comes once, then each base, and then each model that methods are trained with.
    """
    pairs = experiment.on_each_pair()
    data, bases = {pair.dataset: pair for pair in pairs}, {pair.model: pair for pair in pairs}
    found = [*map(_data, data.values()), *map(_base, bases.values()), _models(experiment, plugins)]
    return list(chain.from_iterable(found))


def _data(experiment: Experiment) -> Iterator[Finding]:
    """The licence of a data set, and each split: read, to be downloaded, or to be provided."""
    data = recipe.find(experiment.dataset)
    yield Finding("ok", data.name, f"{data.title}; licence: {data.licence}")
    needed, told = {experiment.streams.split, *(["qa_train"] if experiment.retune else [])}, set[str]()
    for split in SPLITS:
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


def _base(experiment: Experiment) -> Iterator[Finding]:
    """The base, the device, and the memory of a worker."""
    name = experiment.model
    try:
        folder = checkpoint.locate(name, download=False)
        checkpoint.check(folder, experiment.device)
    except BenchError as error:
        yield Finding("missing", "base", str(error))
        return
    weights, parameters = checkpoint.weight_count(folder), checkpoint.parameter_count(folder)
    yield Finding("ok", "base", f"{Path(name).name}, {parameters / 1e6:,.0f} million weights, on {experiment.device}")
    try:
        plan = Workers().plan(experiment, weights)
    except BenchError as error:
        yield Finding("missing", "memory", str(error))
        return
    least, most = (size / 1e9 for size in worker_bytes(weights, on_gpu=experiment.device != "cpu"))
    learning = f", up to {most:.1f} GB to fine-tune it" if weights == parameters else ""  # what is quantized is not
    text = f"{least:.1f} GB a worker to read the base{learning}; {plan.jobs} fit"
    yield Finding("note" if plan.remark else "ok", "memory", text)


def _models(experiment: Experiment, plugins: Sequence[str]) -> Iterator[Finding]:
    """The models, other than the base, that settings of training name."""
    named: dict[str, str] = {}
    for plan in experiment.methods:
        kind = registry.load_method(plan.name, plugins)
        if issubclass(kind, MetaTrained):
            training = training_of(validate_config(kind, plan.config))
            for setting, name in {"base": training.base, **training.models()}.items():
                if name is not None:
                    named.setdefault(name, f"{plan.name}.training.{setting}")
    for name, setting in named.items():
        try:
            checkpoint.locate(name, setting, download=False)
        except BenchError as error:
            yield Finding("missing", name, str(error))
        else:
            yield Finding("ok", name, f"is there, for {setting}")


def measure(
    runners: Sequence[Runner], runs: Path, plugins: Sequence[str], jobs: int | None = None
) -> tuple[Pace, list[str]]:
    """What each method takes by trials on a few documents, whose records are thrown away, and what failed.

    A method that is tuned is tried with settings that cover its search space, and trained weights under ``runs`` are
    used; a method without them is not tried. As large a share of the anchor set is asked as of the documents.

    Raises:
        BenchError: the experiment cannot run here.
    """
    pace, failures = Pace(), list[str]()
    for planned in runners:
        small = planned.experiment.model_copy(deep=True)
        small.methods = [tried for plan in planned.experiment.methods for tried in _tried(plan, planned)]
        if not small.methods:
            continue
        documents = min(MEASURED_DOCUMENTS, small.streams.documents or 1)  # of a whole split, which may be of books
        share = documents / (small.streams.documents or documents)
        small.anchor = AnchorPlan(
            questions=ceil(share * small.anchor.questions), documents=ceil(share * small.anchor.documents)
        )
        small.streams = StreamPlan(split=small.streams.split, documents=documents, count=1)
        small.tuning, small.equal_compute, small.seeds, small.orders = None, None, small.seeds[:1], 1
        with tempfile.TemporaryDirectory() as folder:
            trained = runs / artifacts.FOLDER
            if trained.is_dir():
                (Path(folder) / artifacts.FOLDER).symlink_to(trained.resolve())
            runner = Runner(small, Path(folder), plugins)
            workers = Workers(jobs=jobs)
            with workers.open(small, workers.plan(small, runner.weights)) as executor:
                failures += runner.run(executor).failures
            pace.read(Path(folder), dict.fromkeys(plan.name for plan in small.methods))
    return pace, failures


def _tried(plan: MethodPlan, planned: Runner) -> Iterator[MethodPlan]:
    """The method with each of the settings that are tried, with its first seed, on the arm that holds most documents.

    The first settings are also tried without documents if tuning has such cells.
    """
    if not planned.can_run(plan):
        return
    space, kind = planned.spaces[id(plan)], planned.methods[plan.name]
    defaults = validate_config(kind, plan.config).model_dump(mode="json")
    on = planned.experiment.tuning
    floor: list[Arm] = ["empty"] if space and on is not None and on.metric == "f1" else []
    for number, settings in enumerate(explore(space, defaults, MEASURED_SETTINGS) if space else [{}]):
        config = {**plan.config, **settings}
        with suppress(BenchError):  # a combination that the method refuses
            validate_config(kind, config)
            arms = list(dict.fromkeys([max(plan.arms, key=_held), *(floor if number == 0 else ())]))
            yield plan.model_copy(update={"config": config, "seeds": plan.seeds and plan.seeds[:1], "arms": arms})


def _held(arm: Arm) -> float:
    """The most documents that a method holds when it is asked on an arm; infinity for those of a whole stream."""
    return 0 if arm == "empty" else documents_per_reset(arm) or inf
