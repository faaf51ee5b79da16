"""Experiments: validated YAML files that say what to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from bench import paths
from bench.answering.decoding import Decoding
from bench.contract.config import merged, nested
from bench.data.arms import Arm
from bench.errors import BenchError, first_problem, nearest
from bench.files import parse_yaml, read_yaml


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def override(self, values: Mapping[str, Any]) -> None:
        """Set several fields.

        Raises:
            BenchError: a value is out of bounds.
        """
        for key, value in values.items():
            try:
                setattr(self, key, value)
            except pydantic.ValidationError as error:
                raise BenchError(first_problem(error, type(self))) from None


class StreamPlan(_Part):
    """The frozen streams of a split that are used."""

    split: str
    documents: int | None = pydantic.Field(default=None, ge=1, description="per stream; null takes the whole split")
    count: int = pydantic.Field(ge=1)


class TuningPlan(StreamPlan):
    """The validation streams on which each method's grid is tried."""

    split: str = "validation"
    metric: Literal["f1", "token_nll"] = "f1"

    @pydantic.field_validator("split")
    @classmethod
    def _is_validation(cls, value: str) -> str:
        if value != "validation":
            raise ValueError("hyper-parameters are tuned on the validation split only (docs/rules.md)")
        return value


class AnchorPlan(_Part):
    """Size of the anchor set: old knowledge that is tested before and after the stream."""

    questions: int = pydantic.Field(default=0, ge=0)
    documents: int = pydantic.Field(default=0, ge=0)


class MethodPlan(_Part):
    """One method of the experiment: fixed settings, the grid to tune (default: the method's own), and its arms.

    An ``optional`` method is left out, with a remark, if the split that it learns from offline is missing. ``like``
    names an experiment whose first entry of this method is the base of this one: ``config`` is merged into the config
    of that entry, and the other fields that are set here replace those of that entry. Experiments that share cells or
    trained weights thus state them once.
    """

    name: str
    like: str | None = pydantic.Field(default=None, exclude=True)
    config: dict[str, Any] = {}
    grid: dict[str, list[Any]] | None = None
    arms: list[Arm] = pydantic.Field(default=["stream"], min_length=1)
    optional: bool = False

    def start_from(self, experiment: Experiment) -> None:
        """Complete this entry from the first entry of the same method in the experiment that ``like`` names.

        Raises:
            BenchError: the experiment has no entry of this method, or only entries that use ``like`` themselves.
        """
        base = next((plan for plan in experiment.methods if plan.name == self.name and plan.like is None), None)
        if base is None:
            raise BenchError(
                f"like: {experiment.name}: {experiment.name} has no entry of {self.name} that states its settings. "
                f"Name an experiment that has one, or write the settings here."
            )
        fields = {**base.model_dump(exclude_unset=True), **self.model_dump(exclude_unset=True)}
        self.override({**fields, "config": merged(base.config, self.config)})


class Experiment(_Part):
    """Everything that a board needs. docs/rules.md explains the rules."""

    name: str = pydantic.Field(pattern=r"^[\w-]+$")
    description: str = ""
    dataset: str
    data_files: dict[str, list[str]] = {}
    model: str = "nano"
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    streams: StreamPlan
    tuning: TuningPlan | None = None
    allow_overlap: bool = pydantic.Field(
        default=False,
        description="go on, with a mark on every row, if a split in use shares documents with another one",
    )
    methods: list[MethodPlan] = pydantic.Field(min_length=1)
    probes: tuple[float, ...] = (1.0,)
    scoring: bool = True
    segment_tokens: int | None = pydantic.Field(default=None, ge=1)
    anchor: AnchorPlan = AnchorPlan()
    decoding: Decoding = Decoding()

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _expand_names(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("methods is a list of names, or of mappings with a name")
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @pydantic.field_validator("probes")
    @classmethod
    def _sort_probes(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= probe <= 1 for probe in value):
            raise ValueError("probes are fractions of the stream between 0 and 1, at least one")
        return tuple(sorted(set(value)))

    @property
    def default_jobs(self) -> int | None:
        """Number of worker processes: 1 on a GPU, where each holds its own model; None (one per core) on the CPU."""
        return None if self.device == "cpu" else 1

    def select(self, names: Iterable[str]) -> None:
        """Keep only these methods, in this order. A method that the experiment lacks is added with its defaults."""
        entries = {name: [plan for plan in self.methods if plan.name == name] for name in names}
        self.methods = [plan for name, plans in entries.items() for plan in plans or [MethodPlan(name=name)]]

    def set(self, assignment: str) -> None:
        """Fix one hyper-parameter, ``method.key=value`` (the value in YAML). It is then not tuned.

        Raises:
            BenchError: the assignment has another form, or the experiment has no such method.
        """
        target, separator, value = assignment.partition("=")
        name, dot, key = target.partition(".")
        if not (separator and dot and key):
            raise BenchError(f"--set takes method.key=value, got {assignment!r}.")
        setting = parse_yaml(value, f"--set {assignment}: the value")
        plans = [plan for plan in self.methods if plan.name == name]
        for plan in plans:
            plan.config = merged(plan.config, nested(key.split("."), setting))
        if not plans:
            hint = nearest(name, [plan.name for plan in self.methods])
            raise BenchError(f"--set {assignment}: the experiment has no method {name!r}.{hint}")


def load(name: str) -> Experiment:
    """An experiment by name or from a YAML file.

    Raises:
        BenchError: there is no such experiment, its YAML cannot be read, a key is unknown or a value out of bounds.
    """
    experiment = _read(name)
    bases = {base: _read(base) for base in {plan.like for plan in experiment.methods} if base is not None}
    for plan in experiment.methods:
        if plan.like is not None:
            plan.start_from(bases[plan.like])
    return experiment


def _read(name: str) -> Experiment:
    """An experiment as its file states it, with ``like`` not yet resolved."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else paths.EXPERIMENTS / f"{name}.yaml"
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise BenchError(f"No experiment {name!r}.{nearest(name, paths.experiments())}") from None
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(values, dict):
        raise BenchError(f"{path.name} must be a mapping of settings; see bench/experiments/default.yaml.")
    try:
        return Experiment.model_validate({"name": path.stem, **values})
    except pydantic.ValidationError as error:
        raise BenchError(f"{path.name}: {first_problem(error, Experiment)}") from None
