"""Nested settings: mappings within mappings, as configs, recipes and overrides on the command line have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
