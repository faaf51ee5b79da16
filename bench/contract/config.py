"""Hyper-parameters of methods: typed, bounded, with presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydantic


class MethodConfig(pydantic.BaseModel):
    """Base of every ``Method.Config``: typed, bounded, frozen; an unknown key, infinity and NaN are errors.

    Keys that are missing from a group of settings take the group's default. If the config has a field ``preset``,
    missing keys are first taken from ``presets[preset]``.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = merged(cls.presets.get(str(values.get("preset")), {}), values)
        groups = {key: field.default for key, field in cls.model_fields.items() if key in values}
        defaults = {key: group.model_dump() for key, group in groups.items() if isinstance(group, MethodConfig)}
        return merged(defaults, values)


def paths_in(value: Any, name: str = "") -> Iterator[tuple[str, Path]]:
    """The settings of type ``Path`` in a config, each with its dotted name."""
    if isinstance(value, Path):
        yield name, value
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, pydantic.BaseModel):
        items = iter(value)
    elif isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        yield from paths_in(inner, f"{name}.{key}" if name else str(key))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, with the values of ``over`` where both have one; mappings are merged in turn."""
    both = {key for key in under.keys() & over.keys() if isinstance(under[key], dict) and isinstance(over[key], dict)}
    return {**under, **over, **{key: merged(under[key], over[key]) for key in both}}


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings in nested mappings: ``{"a": {"b": 1}}`` has ``a.b``."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A mapping with ``value`` at the end of ``path``: ``nested(["a", "b"], 1)`` is ``{"a": {"b": 1}}``."""
    first, *rest = path
    return {first: nested(rest, value) if rest else value}
