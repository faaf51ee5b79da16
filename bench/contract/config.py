"""Settings of methods: typed, bounded, with presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic


class MethodConfig(pydantic.BaseModel):
    """Base of every ``Method.Config``: typed, bounded, frozen; an unknown key is an error.

    What is not given of a group of settings within it keeps the group's default here. A config with a field ``preset``
    takes what is not given from ``presets[preset]`` first.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, validate_default=True)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = merged(cls.presets.get(given.get("preset", ""), {}), given)
        groups = {key: field.default for key, field in cls.model_fields.items() if key in given}
        defaults = {key: group.model_dump() for key, group in groups.items() if isinstance(group, MethodConfig)}
        return merged(defaults, given)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``under``, mapping by mapping."""
    both = {key for key in under.keys() & over.keys() if isinstance(under[key], dict) and isinstance(over[key], dict)}
    return {**under, **over, **{key: merged(under[key], over[key]) for key in both}}


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """The mapping that has ``value`` at the end of ``path``: ``nested(["a", "b"], 1)`` is ``{"a": {"b": 1}}``."""
    first, *rest = path
    return {first: nested(rest, value) if rest else value}
