"""``run_bench.py train METHOD``: meta-training as an experiment plans it, into the artifact store."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.contract import registry
from bench.contract.meta_training import MetaTrained, Say, Trainer
from bench.contract.method import validate_config
from bench.data.documents import episodes
from bench.data.reader import MissingSplit, split_entries
from bench.errors import BenchError
from bench.harness.loop import construct
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.run import artifacts
from bench.run.artifacts import Identity
from bench.run.experiment import Experiment, MethodPlan


def train(
    name: str, experiment: Experiment, out: Path, work: Path, plugins: Sequence[str] = (), say: Say = lambda _: None
) -> Path:
    """Meta-train a method with its settings, base and data set in ``experiment``; returns the artifact's folder.

    A checkpoint under ``work`` lets a killed run go on exactly where it was.

    Raises:
        BenchError: the method is not meta-trained, or the data or the model cannot be had.
        Diverged: the outer gradient became NaN or infinite.
    """
    kind = registry.load_method(name, plugins)
    if not issubclass(kind, MetaTrained):
        raise BenchError(f"{name} is not meta-trained: there is nothing to train before a run.")
    plan = next((plan for plan in experiment.methods if plan.name == name), MethodPlan(name=name))
    config = validate_config(kind, plan.config)
    identity = artifacts.identify(kind, config, experiment.dataset, experiment.data_files, experiment.model)
    plan_of: Any = config
    base = str(checkpoint.locate(plan_of.training.base or experiment.model))
    method = construct(kind, BaseModel.load(base, experiment.device, experiment.dtype), config, experiment.seed)
    assert isinstance(method, MetaTrained)
    splits = [split_entries(experiment.dataset, "train", experiment.data_files)]
    try:
        splits.append(split_entries(experiment.dataset, "validation", experiment.data_files))
    except MissingSplit:
        splits.append(())
    file = work / f"{name}-{identity.key[:12]}" / "checkpoint.safetensors"
    trainer = Trainer(method, episodes(splits[0]), episodes(splits[1]), file, identity.key)
    trainer.run(say)
    return artifacts.write(out, identity, trainer, card(kind, identity, trainer))


def card(kind: type[MetaTrained], identity: Identity, trainer: Trainer) -> str:
    """The artifact's card: what it is, what it was made from, and how training went."""
    minutes = trainer.seconds / 60
    settings = [f"| {key} | {value} |" for key, value in identity.settings.items()]
    return "\n".join(
        [
            f"# {identity.method}, trained on {identity.dataset} with {identity.model}",
            "",
            inspect.getdoc(kind) or "",
            "",
            f"`python run_bench.py train {identity.method}` makes these weights: {trainer.step} outer steps on the "
            f"{len(trainer.train):,} documents of the train split and their questions, {minutes:.0f} minutes. Kept are "
            f"those of step {trainer.best_step}, the lowest loss on {len(trainer.validation)} documents of the "
            "validation split. They are stored in bfloat16 and used in float32. `artifact.json` says by hash what they "
            "were made from; if any of it changes, they are refused.",
            "",
            "| setting | value |",
            "| --- | --- |",
            *settings,
            "",
            "## Loss while training",
            "",
            "`validation` columns: the outer loss and its parts on the validation documents; `train` columns: means "
            "over the steps since the row before (`curve.csv` has all rows). Step 0 is the untrained learner.",
            "",
            *_table(trainer.curve),
            "",
        ]
    )


def _table(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """About ten rows of the curve, the first and the last among them."""
    keys = list(dict.fromkeys(key for row in curve for key in row))
    shown = [row for i, row in enumerate(curve) if i % max(1, len(curve) // 9) == 0 or row is curve[-1]]
    lines = [f"| {' | '.join(keys)} |", f"|{' ---: |' * len(keys)}"]
    return lines + [f"| {' | '.join(f'{row[key]:.4g}' if key in row else '' for key in keys)} |" for row in shown]
