"""Changes to an experiment for one command, as the options of the command line give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.run.experiment import EqualCompute, Experiment


@dataclass(frozen=True)
class Overrides:
    """Changes to an experiment. None, or an empty mapping or sequence, leaves what the experiment says."""

    model: str | None = None
    dataset: str | None = None
    data_files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
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
        if self.equal_compute is not None:
            experiment.name += f"-compute-{self.equal_compute.steps}"
        experiment.override(self._fields())
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

    def remarks(self) -> list[str]:
        """The changes, for the board: one sentence without absolute paths, or nothing. The board shows the methods."""
        files = ", ".join(Path(path).name for paths in self.data_files.values() for path in paths)
        values = _set_options(
            model=self.model and Path(self.model).name,
            dataset=self.dataset,
            data_files=files or None,
            seed=self.seed,
            device=self.device,
            dtype=self.dtype,
            **self._sizes(),
            validation_documents=self.validation_documents,
            trials=self.trials,
            equal_compute=self.equal_compute and self.equal_compute.steps,
        )
        changes = [*(f"{key} {value}" for key, value in values.items()), *self.assignments]
        return [f"Changed for this run: {', '.join(changes)}."] if changes else []

    def _fields(self) -> dict[str, Any]:
        return _set_options(
            model=self.model,
            dataset=self.dataset,
            data_files=self.data_files or None,
            seeds=None if self.seed is None else [self.seed],
            equal_compute=self.equal_compute,
            device=self.device,
            dtype=self.dtype,
        )

    def _sizes(self) -> dict[str, Any]:
        return _set_options(count=self.streams, documents=self.documents)


def _set_options(**options: Any) -> dict[str, Any]:
    """The options that are set."""
    return {name: value for name, value in options.items() if value is not None}
