"""Errors name the key, the value, what is wrong and the nearest known names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic
import pytest

from bench.errors import first_problem, nearest, text_of


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class Inner(Strict):
    depth: int = pydantic.Field(default=1, ge=1)
    name: str = ""


class Outer(Strict):
    learning_rate: float = 0.1
    steps: int
    inner: Inner = Inner()
    layers: list[Inner] = []
    by_split: Mapping[Literal["train", "test"], Inner | None] = {}

    @pydantic.field_validator("steps")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("an even number is needed. Did you mean 2?")
        return value

    @pydantic.model_validator(mode="after")
    def _together(self) -> Outer:
        if self.steps > 100:
            raise ValueError("too many steps for this rate")
        return self


def problem(values: Any, prefix: str = "") -> str:
    with pytest.raises(pydantic.ValidationError) as error:
        Outer.model_validate(values)
    return first_problem(error.value, Outer, prefix)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"steps": 2, "learning_rate": "fast"},
            "learning_rate = 'fast': Input should be a valid number, unable to parse string as a number.",
        ),
        ({"steps": None}, "steps = None: Input should be a valid integer."),
        ({"steps": [2]}, "steps: Input should be a valid integer."),
        ({"steps": 3}, "steps = 3: an even number is needed. Did you mean 2?"),
        ({"steps": 102}, "too many steps for this rate."),
        ({}, "steps: Field required."),
        (None, "Input should be a mapping."),
        ({"steps": 2, "inner": 5}, "inner = 5: Input should be a mapping."),
        (
            {"steps": 2, "inner": {"depth": 0}},
            "inner.depth = 0: Input should be greater than or equal to 1.",
        ),
        (
            {"steps": 2, "layers": [{}, {"depth": 0}]},
            "layers.1.depth = 0: Input should be greater than or equal to 1.",
        ),
        ({"steps": 2, "by_split": {"tset": {}}}, "by_split.tset: Input should be 'train' or 'test'."),
    ],
)
def test_the_sentence_names_the_key_a_scalar_value_and_the_reason(values: Any, sentence: str) -> None:
    assert problem(values) == sentence


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"stesp": 2, "learning_rate": "fast"}, "stesp: unknown key. Did you mean steps?"),
        ({"steps": 2, "inner": {"detph": 2}}, "inner.detph: unknown key. Did you mean depth?"),
        ({"steps": 2, "layers": [{"nmae": ""}]}, "layers.0.nmae: unknown key. Did you mean name?"),
        ({"steps": 2, "by_split": {"test": {"detph": 2}}}, "by_split.test.detph: unknown key. Did you mean depth?"),
        ({"steps": 2, "inner": {"steps": 2}}, "inner.steps: unknown key. Known: depth, name."),
    ],
)
def test_an_unknown_key_comes_first_with_the_nearest_keys_at_its_place(values: Any, sentence: str) -> None:
    assert problem(values) == sentence


def test_a_prefix_is_part_of_the_key() -> None:
    assert problem({"stesp": 2}, "lora") == "lora.stesp: unknown key. Did you mean steps?"
    assert problem({"steps": 102}, "lora") == "lora: too many steps for this rate."


def test_damaged_json_is_a_problem_of_the_whole() -> None:
    with pytest.raises(pydantic.ValidationError) as error:
        Outer.model_validate_json("{")
    assert first_problem(error.value, Outer).startswith("Invalid JSON: ")


def test_without_a_near_name_all_names_are_listed() -> None:
    assert nearest("unifrom", ["uniform", "lora"]) == " Did you mean uniform?"
    assert nearest("x", ["uniform", "lora"]) == " Known: lora, uniform."
    assert nearest("x", []) == ""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\nway"), "no\nway"),
        (SystemExit(0), "0"),
        (Mute(), "(its message cannot be shown)"),
        (ValueError("half \ud83d of it"), "half ? of it"),
    ],
)
def test_the_message_of_any_error_can_be_written(error: BaseException, text: str) -> None:
    assert text_of(error) == text
