"""Nested settings: merged, named by dots, and built from a path."""

from __future__ import annotations

from bench.settings import dotted, merged, nested


def test_mappings_are_merged_and_other_values_replaced() -> None:
    under = {"a": {"b": 1, "c": [1]}, "d": 2, "e": {"f": 3}}
    over = {"a": {"b": 5, "c": [2]}, "e": 7, "g": None}
    assert merged(under, over) == {"a": {"b": 5, "c": [2]}, "d": 2, "e": 7, "g": None}
    assert under == {"a": {"b": 1, "c": [1]}, "d": 2, "e": {"f": 3}}


def test_dotted_names_lead_to_all_values_and_back() -> None:
    settings = {"a": {"b": {"c": 1}, "d": None}, "e": [{"f": 2}]}
    flat = dotted(settings)
    assert flat == {"a.b.c": 1, "a.d": None, "e": [{"f": 2}]}
    back: dict[str, object] = {}
    for name, value in flat.items():
        back = merged(back, nested(name.split("."), value))
    assert back == settings
