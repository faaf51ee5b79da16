"""Changes to an experiment for one command, as the options of the command line give them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.data import recipe
from bench.errors import BenchError
from bench.hashing import digest
from bench.records import boards
from bench.run.experiment import EqualCompute, Experiment

HASH_LENGTH = 8
"""Characters of the hash in the name of a variation."""


@dataclass(frozen=True)
class Overrides:
    """Changes to an experiment. None, or an empty mapping or sequence, leaves what the experiment says."""

    model: str | None = None
    dataset: str | None = None
    data_files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    offload: bool | None = None
    dtype: str | None = None
    deterministic: bool | None = None
    equal_compute: EqualCompute | None = None
    trials: int | None = None
    """Trials of every method that is tuned."""
    streams: int | None = None
    """Number of test streams."""
    documents: int | None = None
    """Documents in each test stream."""
    validation_documents: int | None = None
    """Documents in each validation stream."""
    methods: Sequence[str] = ()
    """The only methods to use."""
    assignments: Sequence[str] = ()
    """Hyper-parameters that are fixed, as ``method.key=value``."""

    @property
    def is_empty(self) -> bool:
        """True if nothing is changed."""
        return all(value is None or value in ({}, [], ()) for value in vars(self).values())

    def apply(self, experiment: Experiment) -> None:
        """Change the experiment.

        Raises:
            BenchError: a value is out of bounds, an assignment has a wrong form or another method, or the size of the
                validation streams is set although nothing is tuned.
        """
        experiment.override(self._fields())
        if self.offload and experiment.device != "cuda":
            raise BenchError("--offload is for a base on GPUs: add --device cuda.")
        experiment.streams.override(self._sizes())
        for option, key, value in (
            ("--validation-documents", "documents", self.validation_documents),
            ("--trials", "trials", self.trials),
        ):
            if value is not None:
                if experiment.tuning is None:
                    raise BenchError(f"{option}: {experiment.name} tunes nothing: leave the option out.")
                experiment.tuning.override({key: value})
        if self.seed is not None:
            for plan in experiment.methods:
                plan.seeds = None
        if self.methods:
            experiment.select(self.methods)
        for assignment in self.assignments:
            experiment.set(assignment)

    def vary(self, experiment: Experiment, name: str | None = None) -> Experiment:
        """A copy of the experiment with the changes: a variation with a board of its own, unless nothing differs.

        The board is named after the experiment and a hash of what differs or, if it is given, the ``name``.

        Raises:
            BenchError: as :meth:`apply`, or the name has characters that names must not have.
        """
        if name is not None and not boards.NAME.fullmatch(name):
            raise BenchError(f"--name {name!r}: {boards.NAME_RULE}. Give another one, or leave it out.")
        varied = experiment.model_copy(deep=True)
        self.apply(varied)
        suffix = name or _hash_of_changes(experiment, varied)
        return varied.model_copy(update={"name": boards.variation(varied.name, suffix)} if suffix else {})

    def remarks(self) -> list[str]:
        """The changes, for the board: one sentence without absolute paths, or nothing. The board shows the methods."""
        files = ", ".join(Path(path).name for paths in self.data_files.values() for path in paths)
        values = _set_options(
            model=self.model and Path(self.model).name,
            dataset=self.dataset and Path(self.dataset).name,
            data_files=files or None,
            seed=self.seed,
            device=self.device,
            offload=self.offload,
            dtype=self.dtype,
            deterministic=self.deterministic,
            streams=self.streams,
            documents=self.documents,
            validation_documents=self.validation_documents,
            trials=self.trials,
            equal_compute=self.equal_compute and self.equal_compute.steps,
        )
        changes = [*(f"{key} {value}" for key, value in values.items()), *self.assignments]
        return [f"Changed for this run: {', '.join(changes)}."] if changes else []

    def _fields(self) -> dict[str, Any]:
        return _set_options(
            models=None if self.model is None else [],  # before the only one
            model=self.model,
            datasets=None if self.dataset is None else [],
            dataset=self.dataset,
            data_files=self.data_files or None,
            seeds=None if self.seed is None else [self.seed],
            equal_compute=self.equal_compute,
            device=self.device,
            offload=self.offload,
            dtype=self.dtype,
            deterministic=self.deterministic,
        )

    def _sizes(self) -> dict[str, Any]:
        return _set_options(count=self.streams, documents=self.documents)


def _hash_of_changes(before: Experiment, after: Experiment) -> str:
    """A short hash of the settings of ``after`` that ``before`` does not have, or "" if there are none."""
    old, new = map(_settings, (before, after))
    changes = {key: new.get(key) for key in old.keys() | new.keys() if new.get(key) != old.get(key)}
    return digest(changes)[:HASH_LENGTH] if changes else ""


def _settings(experiment: Experiment) -> dict[str, Any]:
    """The settings of an experiment that are not defaults; the order of its methods does not count.

    Files count only if they replace those of a dataset: without any of its own it needs them to be run at all.
    """
    settings = experiment.model_dump(mode="json", exclude={"name", "description", "data_files"}, exclude_defaults=True)
    replaced = {one.dataset: one.data_files for one in experiment.on_each_pair() if one.data_files and _has_files(one)}
    methods = sorted(settings["methods"], key=lambda plan: json.dumps(plan, sort_keys=True))
    return {**settings, "methods": methods, **({"data_files": replaced} if replaced else {})}


def _has_files(experiment: Experiment) -> bool:
    """True if the dataset has files of its own."""
    source = recipe.find(experiment.dataset).source
    return bool(source and source.files)


def _set_options(**options: Any) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}
