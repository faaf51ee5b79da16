"""Nested settings: merged, named by dots, and built from a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.settings import Settings, dotted, merged, nested, read_recipe


class Bread(Settings):
    """A small recipe."""

    flour: str
    grams: int
    minutes: int = 40


@pytest.mark.parametrize(
    ("text", "assignments", "message"),
    [
        ("", [], "bread.yaml is not a mapping of settings"),
        ("- rye", ["grams=1"], "bread.yaml is not a mapping of settings"),
        ("grams: 500", ["minutes=3", "gramms=2"], "--set gramms=2: gramms: unknown key. Did you mean grams?"),
        ("gramms: 500", ["minutes=3"], "bread.yaml: gramms: unknown key. Did you mean grams?"),
        ("minutes: 3", ["minutes=4"], "bread.yaml: grams: Field required."),
        ("grams: 500", ["minutes=x", "grams=2"], "--set minutes=x: minutes = 'x': "),
    ],
)
def test_a_wrong_setting_is_named_with_the_place_that_it_comes_from(
    tmp_path: Path, text: str, assignments: list[str], message: str
) -> None:
    path = tmp_path / "bread.yaml"
    path.write_text(text)
    with pytest.raises(BenchError) as error:
        read_recipe(Bread, path, assignments, {"flour": "rye"})
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_values_replace_those_of_the_file_and_of_assignments(tmp_path: Path) -> None:
    path = tmp_path / "bread.yaml"
    path.write_text("grams: 500")
    bread = read_recipe(Bread, path, ["flour=oat", "minutes=30"], {"flour": "rye"})
    assert bread == Bread(flour="rye", grams=500, minutes=30)


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
