"""Nested settings: mappings within mappings, as configs, recipes and overrides on the command line have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pydantic

from bench.errors import BenchError, first_problem
from bench.files import parse_yaml, read_yaml


class Settings(pydantic.BaseModel):
    """Frozen settings; an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def recipe_text(settings: Settings) -> str:
    """The recipe file of settings, in YAML."""
    import yaml

    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)
    return text


def read_recipe(
    kind: type[S], path: Path, assignments: Sequence[str] = (), values: Mapping[str, Any] = MappingProxyType({})
) -> S:
    """The settings in a recipe file, with assignments ``key=value`` (dotted key, value in YAML) and then ``values``.

    Raises:
        BenchError: the file does not exist or is not a mapping in YAML, an assignment has another form, or a key is
            unknown, missing or wrong; the message names the file or the assignment that it comes from.
    """
    try:
        recipe = read_yaml(path)
    except OSError as error:
        raise BenchError(f"No recipe at {path}: {error.strerror}.") from None
    if not isinstance(recipe, dict):
        raise BenchError(f"{path} is not a mapping of settings: write lines such as seed: 0 into it.")
    stages = [(str(path), {**recipe, **values})]
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not (key and separator):
            raise BenchError(f"--set takes key=value with a key of {path.name}, got {assignment!r}.")
        setting = nested(key.split("."), parse_yaml(value, f"--set {assignment}: the value"))
        stages.append((f"--set {assignment}", {**merged(stages[-1][1], setting), **values}))
    if problem := _problem(kind, stages[-1][1]):
        where = next(source for source, stage in stages if _problem(kind, stage) == problem)
        raise BenchError(f"{where}: {problem}")
    return kind.model_validate(stages[-1][1])


def _problem(kind: type[Settings], settings: Mapping[str, Any]) -> str:
    """The first problem of settings; "" if there is none."""
    try:
        kind.model_validate(settings)
    except pydantic.ValidationError as error:
        return first_problem(error, kind)
    return ""


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, with the values of ``over`` where both have one; mappings are merged in turn."""
    both = {key for key in under.keys() & over.keys() if isinstance(under[key], dict) and isinstance(over[key], dict)}
    return {**under, **over, **{key: merged(under[key], over[key]) for key in both}}


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A mapping with ``value`` at the end of ``path``: ``nested(["a", "b"], 1)`` is ``{"a": {"b": 1}}``."""
    first, *rest = path
    return {first: nested(rest, value) if rest else value}


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values under dotted names: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
