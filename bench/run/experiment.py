"""Experiments: what to run, as a validated YAML file with command-line overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from bench import paths
from bench.answering.decoding import Decoding
from bench.contract.config import merged, nested
from bench.data.arms import Arm
from bench.errors import BenchError, nearest

FOLDER = paths.EXPERIMENTS


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=True)

    def override(self, values: Mapping[str, Any]) -> None:
        """Set several fields.

        Raises:
            BenchError: a value out of bounds.
        """
        for key, value in values.items():
            try:
                setattr(self, key, value)
            except pydantic.ValidationError as error:
                raise BenchError(f"{key} = {value!r}: {error.errors()[0]['msg']}.") from None


class StreamPlan(_Part):
    """Which frozen streams of a split to use."""

    split: str
    documents: int | None = pydantic.Field(default=None, ge=1, description="per stream; null takes the whole split")
    count: int = pydantic.Field(ge=1)


class TuningPlan(StreamPlan):
    """Validation streams on which each method's grid is tried."""

    split: str = "validation"
    metric: Literal["f1", "token_nll"] = "f1"


class AnchorPlan(_Part):
    """How much old knowledge is asked before and after the stream."""

    questions: int = pydantic.Field(default=0, ge=0)
    documents: int = pydantic.Field(default=0, ge=0)


class MethodPlan(_Part):
    """One method of the experiment: fixed settings, the grid to tune (default: the method's own), and its arms.

    An ``optional`` one is left out, with a remark, where the split that it learns from offline is missing. One that is
    ``like`` another experiment's starts from the first entry of its name there: ``config`` is laid on that entry's,
    and whatever else is given here takes the place of what is there. So experiments that share cells or trained weights
    state them once.
    """

    name: str
    like: str | None = pydantic.Field(default=None, exclude=True)
    config: dict[str, Any] = {}
    grid: dict[str, list[Any]] | None = None
    arms: list[Arm] = ["stream"]
    optional: bool = False

    def start_from(self, experiment: Experiment) -> None:
        """Take over this method's entry in the experiment that it is ``like``.

        Raises:
            BenchError: the experiment has no entry of that name, or one that is itself like another.
        """
        own = [plan for plan in experiment.methods if plan.name == self.name and plan.like is None]
        if not own:
            raise BenchError(
                f"{self.name} is to be like that of {experiment.name}, which states no settings of its own for it: "
                f"name an experiment that does, or give them here."
            )
        given = self.model_dump(exclude_unset=True)
        self.override({**own[0].model_dump(exclude_unset=True), **given, "config": merged(own[0].config, self.config)})


class Experiment(_Part):
    """Everything a board needs. See docs/rules.md for what each rule means."""

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
    methods: list[MethodPlan]
    probes: tuple[float, ...] = (1.0,)
    scoring: bool = True
    segment_tokens: int | None = pydantic.Field(default=None, ge=1)
    anchor: AnchorPlan = AnchorPlan()
    decoding: Decoding = Decoding()

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("methods is a list of names, or of mappings with a name")
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @pydantic.field_validator("probes")
    @classmethod
    def _fractions(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= probe <= 1 for probe in value):
            raise ValueError("probes are fractions of the stream between 0 and 1, at least one")
        return tuple(sorted(set(value)))

    def select(self, names: Iterable[str]) -> None:
        """Keep only the named methods, in this order; a name that the experiment lacks is added with its defaults."""
        planned = {name: [plan for plan in self.methods if plan.name == name] for name in names}
        self.methods = [plan for name, plans in planned.items() for plan in plans or [MethodPlan(name=name)]]

    def set(self, assignment: str) -> None:
        """Fix one hyper-parameter, ``method.key=value`` (the value in YAML); it is then not tuned.

        Raises:
            BenchError: not of that form, or the experiment has no such method.
        """
        target, separator, value = assignment.partition("=")
        name, dot, key = target.partition(".")
        if not (separator and dot and key):
            raise BenchError(f"--set takes method.key=value, got {assignment!r}.")
        try:
            setting = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BenchError(f"--set {assignment}: {value!r} is not a YAML value.") from None
        plans = [plan for plan in self.methods if plan.name == name]
        for plan in plans:
            plan.config = merged(plan.config, nested(key.split("."), setting))
        if plans:
            return
        raise BenchError(f"--set {assignment}: no method {name!r} here.{nearest(name, [m.name for m in self.methods])}")


def known() -> list[str]:
    """Names of the experiments that come with the project."""
    return paths.experiments()


def load(name: str) -> Experiment:
    """An experiment by name or from a YAML file.

    Raises:
        BenchError: no such experiment, unreadable YAML, an unknown key or a value out of bounds.
    """
    found = _read(name)
    others = {other: _read(other) for other in {plan.like for plan in found.methods} if other is not None}
    for plan in found.methods:
        if plan.like is not None:
            plan.start_from(others[plan.like])
    return found


def _read(name: str) -> Experiment:
    """An experiment as its file has it, what its methods are like not yet filled in."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BenchError(f"No experiment {name!r}.{nearest(name, known())}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise BenchError(f"{path.name} cannot be read: {error}.") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BenchError(f"{path.name} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise BenchError(f"{path.name} must be a mapping of settings; see bench/experiments/default.yaml.")
    try:
        return Experiment(**{"name": path.stem, **values})
    except pydantic.ValidationError as error:
        found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")  # a typo explains the rest
        key = ".".join(str(part) for part in found[0]["loc"])
        known_keys = {*Experiment.model_fields, *TuningPlan.model_fields, *AnchorPlan.model_fields}
        unknown = found[0]["type"] == "extra_forbidden"
        what = "is no setting" if unknown else found[0]["msg"]
        hint = nearest(str(found[0]["loc"][-1]), known_keys | set(MethodPlan.model_fields)) if unknown else ""
        raise BenchError(f"{path.name}: {key}: {what}.{hint}") from None
