"""Hyper-parameters of methods: typed, bounded, with presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from bench.settings import merged


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
