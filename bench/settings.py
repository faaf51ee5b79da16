"""Nested settings: mappings within mappings, as configs, recipes and overrides on the command line have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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


def read_recipe(kind: type[S], path: Path, assignments: Sequence[str] = ()) -> S:
    """The settings in a recipe file, changed by assignments ``key=value`` (dotted key, value in YAML).

    Raises:
        BenchError: the file does not exist or is not YAML, an assignment has another form, or a key is unknown,
            missing or wrong.
    """
    try:
        recipe = read_yaml(path)
    except OSError as error:
        raise BenchError(f"No recipe at {path}: {error.strerror}.") from None
    where = str(path)
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not (key and separator):
            raise BenchError(f"--set takes key=value with a key of {path.name}, got {assignment!r}.")
        recipe = merged(recipe, nested(key.split("."), parse_yaml(value, f"--set {assignment}: the value")))
        where = f"--set {' --set '.join(assignments)}"
    try:
        return kind.model_validate(recipe)
    except pydantic.ValidationError as error:
        raise BenchError(f"{where}: {first_problem(error, kind)}") from None


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
