"""The plan of an experiment: its methods, seeds, orders and streams as cells."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import PROTOCOL, hashing, paths
from bench.answering import metrics
from bench.contract import registry
from bench.contract.method import validate_config
from bench.data import recipe
from bench.data.arms import Arm
from bench.lm import checkpoint, prompt_frame
from bench.records.schema import CellSpec
from bench.run.cell import Cell
from bench.run.experiment import Experiment, MethodPlan, StreamPlan, TuningPlan
from bench.run.inputs import Sources, dependencies, inputs_of, qa_train_hash, train_hash
from bench.run.pace import base_of


def plugins_of(methods: Collection[str], plugins: Iterable[str]) -> list[str]:
    """Those of the plug-in files that have one of the methods."""
    return [file for file in plugins if any(info.name in methods for info in registry.methods_in(file))]


class Planner:
    """Makes the cells of an experiment; ``runs`` is the folder of the records.

    Raises:
        BenchError: the dataset, the base model or a method cannot be found or read, or the base cannot be asked in the
            experiment's prompt format.
    """

    def __init__(self, experiment: Experiment, runs: Path, plugins: Sequence[str] = ()) -> None:
        self.experiment, self.runs, self.plugins = experiment, runs, list(plugins)
        self.recipe = recipe.find(experiment.dataset)
        self.base = checkpoint.locate(experiment.model)
        checkpoint.check(self.base)  # the device may be on other machines
        prompt_frame.check(experiment.prompt, self.base)
        self.model_hash = checkpoint.identity(self.base)
        self.base_in_use = base_of(self.model_hash, experiment.device, experiment.dtype)
        self.methods = {plan.name: registry.load_method(plan.name, self.plugins) for plan in experiment.methods}
        hashing.check_current([hashing.LOOP, *(Path(inspect.getfile(kind)) for kind in self.methods.values())])
        self.harness_code = hashing.code_hash(hashing.LOOP)
        self._here: dict[str, Any] = {  # names of what comes with the project, else absolute paths
            "dataset": source(self.recipe.folder),
            "data_files": {split: list(map(os.path.abspath, of)) for split, of in experiment.data_files.items()},
            "model": source(self.base),
            "hub": checkpoint.hub_name(self.base),
            "plugins": list(map(os.path.abspath, self.plugins)),
            "offload": experiment.offload,
        }

    def seeds(self, plan: MethodPlan) -> Sequence[int]:
        """The seeds of a method."""
        return plan.seeds or self.experiment.seeds

    def cells(self, plan: MethodPlan, config: Mapping[str, Any]) -> list[Cell]:
        """The cells of one method on the test streams, on each of its arms, with each seed, in each order."""
        on, orders = self.experiment.streams, range(self.experiment.orders)
        return [
            cell
            for arm, seed, order in itertools.product(plan.arms, self.seeds(plan), orders)
            for cell in self.on_streams(plan, config, on, arm, seed, order)
        ]

    def on_streams(
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
        seed = self.seeds(plan)[0] if seed is None else seed
        validated = validate_config(method, config)
        depends_on = dependencies(method, validated)
        sources = self.sources(on, 0)  # the weights are the same on all streams
        trained = train_hash(method, validated, seed, sources, experiment.prompt, experiment.dtype, self.runs)
        trial = isinstance(on, TuningPlan)
        for index in range(on.count):
            sources = self.sources(on, index).model_copy(update={"order": order, "prefix": prefix})
            inputs = inputs_of(sources, arm)
            yield Cell(
                sources=sources,
                spec=CellSpec(
                    protocol=PROTOCOL,
                    dataset=self.recipe.name,
                    stream=inputs.stream.name,
                    stream_hash=inputs.hash,
                    anchor_hash=inputs.anchor_hash,
                    train_hash=trained,
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
                    questions="seen" if trial else experiment.questions,
                    scoring=on.metric == "token_nll" if isinstance(on, TuningPlan) else experiment.scoring,
                    reread=experiment.reread and not trial,
                    gradient_norms=0 if trial else experiment.gradient_norms,
                    segment_tokens=experiment.segment_tokens,
                    window=experiment.window,
                    deterministic=experiment.deterministic,
                    prompt=experiment.prompt,
                    decoding=experiment.decoding.model_dump(mode="json"),
                    retune=experiment.retune,
                    qa_train_hash=qa_train_hash(experiment.retune, sources),
                    segment=self.recipe.segment,
                    metrics=metrics.VERSIONS,
                    harness_code=self.harness_code,
                    method_code=hashing.method_hash(method),
                    dependencies=depends_on,
                ),
            )

    def sources(self, on: StreamPlan, index: int) -> Sources:
        """The sources of a stream, on this machine."""
        anchor = self.experiment.anchor
        trial = isinstance(on, TuningPlan)
        return Sources(
            **self._here,
            split=on.split,
            documents=on.documents,
            index=index,
            anchor_questions=0 if trial else anchor.questions,
            anchor_documents=0 if trial else anchor.documents,
        )


def source(folder: Path) -> str:
    """The name of an embedded dataset or base, else the folder's absolute path."""
    folder = folder.resolve()
    return folder.name if paths.comes_along(folder) else str(folder)
