"""``run_bench.py train``: meta-training with the settings of an experiment, into the store of trained weights."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import machine
from bench.answering.metrics import shortest
from bench.answering.prompts import answer_ids, build_prompts
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, Say, Trainer, TrainingConfig, training_of
from bench.contract.method import Conditioning, validate_config
from bench.data import recipe
from bench.data.documents import Episode, episodes
from bench.data.reader import MissingSplit, split_entries
from bench.errors import BenchError, RunError, nearest
from bench.files import check_writable, curve_table
from bench.harness.loop import construct
from bench.hashing import digest
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.lm.precision import set_deterministic
from bench.machine import usable_cores
from bench.run import artifacts, claims
from bench.run.artifacts import ArtifactKey
from bench.run.executor import Note, Task, tell
from bench.run.experiment import Experiment, MethodPlan, load
from bench.run.inputs import Sources
from bench.run.overrides import Overrides
from bench.run.places import Bucket, place
from bench.run.planner import source
from bench.run.roles import overlaps, uses_of
from bench.run.workers import Workers
from bench.seeds import seed_for
from bench.settings import merged

EMBEDDED_MODEL = "nano"
"""The target that is not a method: the embedded model, rebuilt from its recipe."""
DEFAULT_EXPERIMENT = "default"
"""The experiment whose trained weights are committed."""


def train_target(
    target: str,
    experiment: str,
    overrides: Overrides,
    runs: Path,
    out: Path | None = None,
    work: Path | None = None,
    plugins: Sequence[str] = (),
    say: Say = lambda _: None,
    workers: Workers | None = None,
    scale: str | None = None,
) -> list[Path]:
    """Meta-train methods as an experiment plans them, or rebuild the embedded model; returns their folders.

    ``target`` is the embedded model, or names of methods, separated by commas. A method is trained once for each of
    its training settings in the experiment, each pair of dataset and base, and each seed planned for it: one after the
    other in this process, or, with ``workers``, several at a time. Those that another process trains are left to it.

    Without ``out``, the embedded model and the methods of the default experiment, with a seed that it plans, replace
    the committed weights, and everything else goes under ``runs``, whatever the device. Checkpoints are under ``work``,
    by default ``train`` under ``runs``; a run that was killed resumes from there.

    Raises:
        BenchError: nothing of that name can be trained (with the nearest names), ``runs`` is in a bucket and a folder
            is lacking for what is not kept there, or as :func:`train`.
        Diverged: as :func:`train`.
        RunError: of several trainings with ``workers``, some failed; the others are done.
    """
    where = place(runs)
    on_ray = workers is not None and workers.kind == "ray"
    if isinstance(where, Bucket) and (work is None or (on_ray and out is None)):
        raise BenchError(
            "A training keeps its claims and checkpoints in a folder, not in a bucket: name one that all machines see "
            "with --work, and with --executor ray also one for the weights with --out."
        )
    work = work or runs / "train"
    if target == EMBEDDED_MODEL:
        if experiment != DEFAULT_EXPERIMENT or plugins or not replace(overrides, assignments=(), device=None).is_empty:
            raise BenchError(
                f"{target} is trained by its own recipe: of the options that change what is trained, only "
                f"--set key=value, with a key of the recipe, and --device apply."
            )
        if scale or workers not in (None, Workers()):
            raise BenchError(f"{target} is one training in this process: leave out --scale and options on workers.")
        return [train_embedded(overrides.assignments, overrides.device or "cpu", out, work, say)]
    names = [info.name for info in registry.list_methods(plugins)]
    targets = list(dict.fromkeys(name.strip() for name in target.split(",")))
    for name in targets:
        if name not in names:
            raise BenchError(f"Nothing named {name!r} can be trained.{nearest(name, [EMBEDDED_MODEL, *names])}")
    changed = load(experiment, scale)
    replace(overrides, methods=targets).apply(changed)
    trainings: list[_Training] = []
    pairs = changed.on_each_pair()
    default = load(DEFAULT_EXPERIMENT)
    is_plain = experiment == DEFAULT_EXPERIMENT and not plugins
    is_plain &= replace(overrides, device=None, seed=None).is_empty
    options = [] if experiment == DEFAULT_EXPERIMENT else [f"--experiment {experiment}"]
    options += [f"--scale {scale}"] if scale else []
    options += ["--data-files FILES"] if overrides.data_files else []
    options += ["--plugin FILE"] if plugins else []
    for name in targets:
        planned = _planned(_meta_trained(name, plugins), pairs)
        is_default = is_plain and name in {plan.name for plan in default.methods}
        is_default &= {seed for _, seed in planned} <= _seeds(name, default)
        to = out or (artifacts.COMMITTED if is_default else runs / artifacts.FOLDER)
        for one, seed in planned:
            named = len(pairs) > 1 or overrides.dataset or overrides.model
            on = [f"--dataset {one.dataset} --model {one.model}"] if named else []
            trainings.append(_Training(name, one, seed, to, work, tuple(plugins), (*options, *on)))
    try:
        if workers is None or (len(trainings) == 1 and replace(workers, jobs=None) == Workers()):
            return list(filter(None, [train(*training, say=say) for training in trainings]))
        return _train_all(trainings, workers, say)
    finally:
        where.fetch()  # of a bucket: sends what is new, also if one of several failed


class _Training(NamedTuple):
    """The arguments of :func:`train`."""

    name: str
    experiment: Experiment
    seed: int
    out: Path
    work: Path
    plugins: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def settings(self) -> TrainingConfig:
        """The method's training settings."""
        [plan] = self.experiment.methods
        return training_of(validate_config(_meta_trained(self.name, self.plugins), plan.config))

    @property
    def base(self) -> str:
        """The base that it trains with."""
        return self.settings.base or self.experiment.model


def _train_all(trainings: Sequence[_Training], workers: Workers, say: Say) -> list[Path]:
    """Train several at a time; each line of progress begins with the method's name and the seed."""
    experiment = trainings[0].experiment
    bases = {checkpoint.locate(training.base) for training in trainings}
    weights = max(map(checkpoint.weight_count, bases))
    plan = replace(workers, jobs=min(workers.jobs or usable_cores(), len(trainings))).plan(experiment, weights)
    if plan.remark:
        say(plan.remark)
    titles = [f"{training.name}, seed {training.seed}" for training in trainings]
    labels = {
        f"training-{place}": title if titles.count(title) == 1 else f"{title} ({place + 1} of {len(titles)})"
        for place, title in enumerate(titles)
    }
    tasks = [_task(key, training) for key, training in zip(labels, trainings, strict=True)]
    folders, failures = [], []
    lost: dict[str, float] = {}  # when it was seen that the claim of a lost worker still holds
    with workers.open(experiment, plan) as executor:
        for result in executor.run(tasks):
            label = labels[result.key]
            if isinstance(result, Note):
                say(f"{label}: {result.content}")
            elif result.error is not None:
                failures.append(f"{label}: {result.error.message}")
                say(failures[-1])
            elif result.value is None and result.key in executor.lost:
                seen = lost.setdefault(result.key, time.monotonic())
                if time.monotonic() - seen < 2 * claims.STALE_SECONDS:
                    time.sleep(claims.HEARTBEAT_SECONDS)
                    tasks.append(next(task for task in tasks if task.key == result.key))
                    continue
                failures.append(f"{label}: its worker was lost, and another process has its claim.")
                say(failures[-1])
            elif result.value is None:
                say(f"{label}: another process trains it.")
            elif _is_seen(result.value):
                folders.append(result.value)
            else:
                failures.append(
                    f"{label}: its weights are in {result.value} on another machine, which this one does not see. Name "
                    f"a folder that all machines see with --out."
                )
                say(failures[-1])
    if failures:
        raise RunError(
            "\n  ".join([f"{len(failures)} of {len(trainings)} trainings failed. The same command resumes.", *failures])
        )
    return folders


def _is_seen(folder: Path) -> bool:
    """True if an artifact that a worker has written is on this machine too."""
    place(folder.parent).fetch()
    return artifacts.is_there(folder)


def _task(key: str, training: _Training) -> Task:
    """The training as plain data, for a worker with other folders than this process, and the files that it reads.

    Its experiment has the base and the data of the training, if these are others, and the method's name: that of a pair
    of dataset and base need not be valid for an experiment.
    """
    experiment, base = training.experiment, training.base
    dataset, data_files = training.settings.source(experiment.dataset, experiment.data_files)
    sources = Sources(
        dataset=source(recipe.find(dataset).folder),
        data_files={split: [*map(os.path.abspath, files)] for split, files in data_files.items()},
        model=source(checkpoint.locate(base)),
        plugins=[*map(os.path.abspath, training.plugins)],
        split="train",
        documents=None,
        index=0,
    )
    [plan] = experiment.methods
    config = merged(plan.config, {"training": {"base": None, "dataset": None}})
    changes = {"name": plan.name, "model": base, "dataset": sources.dataset, "data_files": sources.data_files}
    alone = experiment.model_copy(update={**changes, "methods": [plan.model_copy(update={"config": config})]})
    payload = {
        **training._asdict(),
        "experiment": alone.model_dump(mode="json"),
        "out": str(training.out.absolute()),
        "work": str(training.work.absolute()),
        "plugins": sources.plugins,
        "base": sources.model,
    }
    return Task(key, f"{__name__}:train_task", payload, files=sources.files)


def train_task(experiment: Mapping[str, Any], out: str, work: str, **others: Any) -> Path | None:
    """:func:`train` in a worker, from plain data; the worker tells the lines of progress."""
    return train(experiment=Experiment.model_validate(experiment), out=Path(out), work=Path(work), say=tell, **others)


def name_of_training(training: TrainingConfig, experiment: Experiment) -> str:
    """The same for the same training of a method: its settings, base and data; the seed is not part of it."""
    return digest([training.learning, training.base or experiment.model, training.dataset or experiment.dataset])


def _planned(kind: type[MetaTrained], pairs: Sequence[Experiment]) -> list[tuple[Experiment, int]]:
    """All trainings of a method that differ: the experiment with an entry of the method alone, and the seed.

    Raises:
        BenchError: the experiment uses the method without training.
    """
    planned: dict[tuple[str, int], tuple[Experiment, int]] = {}
    for one in pairs:
        for plan in _plans(kind.name, one):
            training = training_of(validate_config(kind, plan.config))
            name = name_of_training(training, one)
            for seed in plan.seeds or one.seeds if training.steps else ():
                alone = one.model_copy(update={"methods": [plan]})
                planned.setdefault((name, seed), (alone, seed))
    if not planned:
        raise BenchError(f"{kind.name} is not trained in {pairs[0].name}: set {kind.name}.training.steps to 1 or more.")
    return [*planned.values()]


def _seeds(name: str, experiment: Experiment) -> set[int]:
    """The seeds that an experiment plans for a method."""
    return {seed for plan in _plans(name, experiment) for seed in plan.seeds or experiment.seeds}


def _plans(name: str, experiment: Experiment) -> Sequence[MethodPlan]:
    """The experiment's entries of a method; one with the method's own settings if it has none."""
    return [plan for plan in experiment.methods if plan.name == name] or [MethodPlan(name=name)]


def train_embedded(
    assignments: Sequence[str], device: str, out: Path | None, work: Path, say: Say = lambda _: None
) -> Path:
    """Train the embedded model by its recipe, changed by assignments ``key=value``; returns the model's folder.

    Without ``out`` it replaces the committed model. A run that was killed resumes from the checkpoint under ``work``.

    Raises:
        BenchError: an assignment is wrong, or has no ``out``; the device is not available; or a folder cannot be
            written.
        Diverged: the gradient became NaN or infinite.
    """
    from bench.nano import train as nano
    from bench.nano.config import load_config

    config = load_config(nano.RECIPE, assignments)
    if assignments and out is None:
        raise BenchError("--set makes another model than the committed one: name its folder with --out.")
    checkpoint.check_device(device)
    folder = out or nano.RECIPE.parent
    work = work / folder.resolve().name
    for path, option in ((folder, "--out"), (work, "--work")):
        check_writable(path, option)
    options = [*(f"--set {assignment}" for assignment in assignments), *(["--out FOLDER"] if assignments else [])]
    options += [f"--device {device}"] if device != "cpu" else []
    nano.train(config, folder, work, say, device, " ".join([nano.COMMAND, *options]))
    return folder


def train(
    name: str,
    experiment: Experiment,
    seed: int,
    out: Path,
    work: Path,
    plugins: Sequence[str] = (),
    options: Sequence[str] = (),
    base: str | None = None,
    say: Say = lambda _: None,
) -> Path | None:
    """Meta-train a method with its first settings in ``experiment``, its base and data; returns the artifact's folder.

    ``options`` of the command line go into the card. ``base`` is the folder of the base, if that is not found by its
    name. A run that was killed resumes exactly from the checkpoint under ``work``, on any machine that has this folder.
    An artifact that is in ``out`` already stays as it is. None is returned if another process trains it now.

    Raises:
        BenchError: the method is not meta-trained, the data or the model cannot be found or read, the train and
            validation splits share documents, or a folder cannot be written.
        Diverged: the outer gradient became NaN or infinite.
        RunError: the training changed the base, or its first validation loss was not finite.
    """
    kind = _meta_trained(name, plugins)
    config = validate_config(kind, _plans(name, experiment)[0].config)
    overlaps(experiment.dataset, experiment.data_files, list(uses_of(kind, config)), experiment.allow_overlap)
    for folder, option in ((out, "--out"), (work, "--work")):
        check_writable(folder, option)
    name_of_base = training_of(config).base or experiment.model
    base = base or name_of_base
    key = artifacts.key_of(
        kind,
        config,
        seed,
        experiment.dataset,
        experiment.data_files,
        base,
        experiment.prompt,
        experiment.dtype,
    ).model_copy(update={"model": Path(name_of_base).name})
    places = claims.Folder(work)

    def say_if_held(line: str) -> None:
        say(line)
        if not places.holds(key.folder_name):
            raise TakenOver

    path = out / key.folder_name
    try:
        with places.claimed(key.folder_name) as free:
            if free and artifacts.is_there(path):
                say(f"{path} is there already. Delete it to train it again.")
                return path
            if free:
                file = work / key.folder_name / "checkpoint.safetensors"
                return _train(kind, experiment, config, base, key, out, file, options, say_if_held)
    except TakenOver:
        if artifacts.is_there(path):  # the other process has finished
            return path
        if not places.is_claimed(key.folder_name):
            raise RunError(f"The claim to {key.folder_name} was lost. The same command resumes.") from None
    owner = places.holder(key.folder_name)
    say(f"Another process{f' ({owner.pid} on {owner.host})' if owner else ''} trains {key.folder_name}.")
    return None


class TakenOver(Exception):
    """Another process has taken over the training, since this one stood still."""


def _meta_trained(name: str, plugins: Sequence[str]) -> type[MetaTrained]:
    kind = registry.load_method(name, plugins)
    if not issubclass(kind, MetaTrained):
        raise BenchError(f"{name} is not meta-trained: it has nothing to train before a run.")
    return kind


def _train(
    kind: type[MetaTrained],
    experiment: Experiment,
    config: MethodConfig,
    base: str,
    key: ArtifactKey,
    out: Path,
    file: Path,
    options: Sequence[str],
    say: Say,
) -> Path:
    """Train with the checkpoint ``file``."""
    set_deterministic(experiment.deterministic)
    lm = BaseModel.load(str(checkpoint.locate(base)), experiment.device, experiment.dtype, prompt=experiment.prompt)
    alone = validate_config(kind, {"training": training_of(config).model_dump()})  # what the key covers
    method = construct(kind, lm, alone, key.seed)
    assert isinstance(method, MetaTrained)
    dataset, data_files = training_of(config).source(experiment.dataset, experiment.data_files)
    splits = [split_entries(dataset, "train", data_files)]
    try:
        splits.append(split_entries(dataset, "validation", data_files))
    except MissingSplit:
        splits.append(())
    trainer = Trainer(method, episodes(splits[0]), episodes(splits[1]), file, key.digest)
    check_prompts(method, trainer.validation[:1])
    trainer.run(say)
    if problem := _problem(trainer):
        shutil.rmtree(file.parent, ignore_errors=True)
        raise RunError(f"The training of {kind.name} {problem}: correct the method. Nothing was kept.")
    others = loss_with_other_documents(trainer)
    say(f"Validation loss {_best_loss(trainer):.4g}; with other documents in place of the questions' own {others:.4g}.")
    path = artifacts.write(out, key, trainer, card(kind, key, trainer, others, options))
    shutil.rmtree(file.parent, ignore_errors=True)  # who deletes the weights trains anew
    return path


def loss_with_other_documents(trainer: Trainer) -> float:
    """The validation loss with documents of the train split in place of the questions' own.

    A learner that has learned which answers are common, and reads nothing, has the same loss with them.
    """
    others = (episode.document for episode in itertools.cycle(trainer.train))
    swapped = [replace(episode, document=other) for episode, other in zip(trainer.validation, others, strict=False)]
    torch.manual_seed(seed_for(trainer.method.seed, "validation"))
    return trainer.method.validate(swapped)["loss"]


def _best_loss(trainer: Trainer) -> float:
    return min(row["validation_loss"] for row in trainer.curve)


def _problem(trainer: Trainer) -> str:
    """Why the result of a training is worth nothing; "" if it is not so."""
    if trainer.method.lm.changed_bytes():
        return "changed the base, which outer_step and validate must leave as it was"
    if not math.isfinite(loss := trainer.curve[0]["validation_loss"]):
        return f"began with a validation loss of {loss}, so that no later one could be the best"
    return ""


@torch.no_grad()
def check_prompts(method: MetaTrained, episodes: Sequence[Episode]) -> None:
    """Check that a method does not learn from bare questions that are asked otherwise in the experiment.

    Raises:
        BenchError: in its validation on the episodes, the base reads an answer directly after a bare question, although
            the prompt format puts something around the question.
    """
    lm = method.lm
    rows: list[str] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.extend(f" {' '.join(map(str, row))} " for row in inputs[0].tolist())

    asked = [
        (question, shortest(golds))
        for episode in episodes
        for question, golds in zip(episode.questions, episode.answers, strict=True)
    ]
    bare = []
    for question, gold in asked:
        [prompt], [answer] = build_prompts(lm, [question], Conditioning(), 0), answer_ids(lm, [question.text], [gold])
        ids = [lm.bos_id, *lm.encode(question.text).tolist()]
        if ids != prompt.ids.tolist():
            bare.append(" ".join(map(str, [*ids, *answer[:-1].tolist()])))
    if not bare:
        return
    hook = lm.model.get_input_embeddings().register_forward_pre_hook(keep)
    try:
        with torch.random.fork_rng():
            method.validate(episodes)
    finally:
        hook.remove()
    if any(f" {text} " in row for text in bare for row in rows):
        raise BenchError(
            f"{method.name} learns from bare questions, but the experiment asks them in another format "
            f"(prompt.question or prompt.chat). Leave out the method, or these settings."
        )


def card(
    kind: type[MetaTrained], key: ArtifactKey, trainer: Trainer, others: float, options: Sequence[str] = ()
) -> str:
    """The artifact's card: what it is, what it was made from, and the loss during training.

    ``others`` is :func:`loss_with_other_documents`.
    """
    command = " ".join(["python run_bench.py train", key.method, *options, f"--seed {key.seed}"])
    minutes = trainer.seconds / 60
    processor = machine.cpu_name() if trainer.method.lm.device.type == "cpu" else "GPU"
    settings = [f"| {name} | {value} |" for name, value in key.settings.items()]
    return "\n".join(
        [
            f"# {key.method}, trained on {key.dataset} with {key.model}",
            "",
            inspect.getdoc(kind) or "",
            "",
            f"`{command}`, with the settings below, makes these weights: {trainer.step} outer steps on the "
            f"{len(trainer.train):,} documents of the train split and their questions, in {minutes:.0f} minutes on one "
            f"{processor}, with {trainer.flops:.2g} floating-point operations. The weights are those of step "
            f"{trainer.best_step}, which has the lowest loss on {len(trainer.validation)} documents of the validation "
            "split. They are stored in bfloat16 and used in float32. `artifact.json` holds "
            "the hashes of what they were made from; if any of it changes, the weights are refused.",
            "",
            "| setting | value |",
            "| --- | --- |",
            *settings,
            "",
            "## Loss during training",
            "",
            "The `validation` columns are the outer loss and its parts on the validation documents. The `train` "
            "columns are means over the steps since the previous validation. `curve.csv` has all rows. Step 0 is the "
            "untrained learner.",
            "",
            f"The lowest validation loss is {_best_loss(trainer):.4g}. With documents of the train split in place of "
            f"the questions' own it is {others:.4g}: where it is the loss of answers, the difference is what the "
            "learner reads; the rest is which answers are common.",
            "",
            *curve_table(trainer.curve),
            "",
        ]
    )
