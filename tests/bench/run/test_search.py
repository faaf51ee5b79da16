"""Candidates of a search: what they cover, how they stay near the best one, and where a range is extended."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from bench.contract.search import Range, SearchSpace, examples
from bench.run.search import at_edge, explore, refine

SPACE: SearchSpace = {"rate": Range(low=1e-4, high=1e-1, log=True), "steps": (1, 2, 3, 5)}
DEFAULTS = {"rate": 1e-2, "steps": 2, "momentum": 0.9}


def anything(_: dict[str, Any]) -> bool:
    return True


@pytest.mark.parametrize(
    ("low", "high", "log", "problem"),
    [(1, 1, False, "low must be below high"), (0, 1, True, "lies above 0"), (0, float("inf"), False, "finite")],
)
def test_a_range_that_is_none_is_refused(low: float, high: float, log: bool, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Range(low=low, high=high, log=log)


def test_examples_are_all_choices_or_ends_and_a_fraction_between_them() -> None:
    assert examples((3, 1)) == (3, 1)
    low, between, high = examples(Range(low=1, high=4))
    assert (low, high) == (1, 4) and 1 < between < 4 and between != round(between)


def test_the_defaults_come_first_if_they_lie_in_the_space() -> None:
    assert explore(SPACE, DEFAULTS, 5)[0] == {"rate": 1e-2, "steps": 2}
    without = explore(SPACE, {"rate": 1.0, "steps": 2}, 5)
    assert without == explore(SPACE, {"rate": 1e-2, "steps": 4}, 6)[:5]
    assert without == explore(SPACE, DEFAULTS, 6)[1:], "what follows the defaults is the same for all methods"


@pytest.mark.parametrize("count", [1, 5, 8, 200])
def test_candidates_are_distinct_and_inside_and_more_only_add_to_them(count: int) -> None:
    candidates = explore(SPACE, {"rate": 1.0, "steps": 1}, count)
    assert len(candidates) == count
    assert all(a != b for a, b in itertools.combinations(candidates, 2))
    assert all(1e-4 <= c["rate"] <= 1e-1 and c["steps"] in (1, 2, 3, 5) for c in candidates)
    assert candidates == explore(SPACE, {"rate": 1.0, "steps": 1}, 256)[:count]


@pytest.mark.parametrize("count", [4, 8])
def test_candidates_cover_every_choice_and_every_part_of_a_range(count: int) -> None:
    candidates = explore(SPACE, {"rate": 1.0, "steps": 1}, count)
    assert {c["steps"] for c in candidates} == {1, 2, 3, 5}
    for part in range(4):  # of equal width on the scale of the logarithm
        low, high = (1e-4 * 10 ** (3 * edge / 4) for edge in (part, part + 1))
        assert sum(low <= c["rate"] < high for c in candidates) == count // 4


def test_a_finite_space_is_exhausted() -> None:
    space = {"a": (1, 2, 3), "b": ("x", None), "c": (True,)}
    candidates = explore(space, {"a": 3, "b": None, "c": True}, 50)
    assert candidates[0] == {"a": 3, "b": None, "c": True}
    assert sorted(candidates, key=str) == sorted(
        ({"a": a, "b": b, "c": True} for a in (1, 2, 3) for b in ("x", None)), key=str
    )


def test_rounding_does_not_leave_the_range() -> None:
    narrow = {"share": Range(low=0.99951, high=0.99964)}
    candidates = explore(narrow, {"share": 0.0}, 20)
    assert candidates and all(0.99951 <= c["share"] <= 0.99964 for c in candidates)


def test_refined_candidates_are_new_and_near_the_best_and_inside_the_space() -> None:
    tried = [{"rate": rate, "steps": steps} for rate, steps in ((1e-3, 1), (1e-2, 3), (5e-2, 5))]
    near = refine(SPACE, tried, tried[1], 30, 0.2, anything)
    assert len(near) == 30 and all(candidate not in tried for candidate in near)
    width = 10 ** (3 * 0.2)
    assert all(0.99e-2 / width <= c["rate"] <= 1.01e-2 * width for c in near)
    assert {c["steps"] for c in near} == {2, 3, 5}, "the best choice and its neighbours"


def test_each_setting_that_is_best_at_an_edge_is_extended_once_and_first() -> None:
    space: SearchSpace = {
        "rate": Range(low=1e-4, high=1e-1, log=True),
        "share": Range(low=0, high=1),
        "steps": (1, 2, 3),
    }
    tried = [
        {"rate": 1e-3, "share": 0.5, "steps": 1},
        {"rate": 9e-2, "share": 0.05, "steps": 2},
        {"rate": 9e-2, "share": 0.9, "steps": 3},
    ]
    first, second, third, *rest = refine(space, tried, tried[2], 60, 0.2, anything)
    assert first == {"rate": 0.398, "share": 0.9, "steps": 3}, "a fifth of three decades above the end"
    assert second == {"rate": 9e-2, "share": 1.2, "steps": 3}
    assert third == {"rate": 9e-2, "share": 0.9, "steps": 4}, "3 * 3 / 2, rounded to even"
    assert all(1e-4 <= c["rate"] <= 1e-1 and 0.7 <= c["share"] <= 1 and c["steps"] in (2, 3) for c in rest)
    lowest, *_ = refine({"share": space["share"]}, [{"share": 0.1}, {"share": 0.9}], {"share": 0.1}, 9, 0.2, anything)
    assert lowest == {"share": -0.2}


def test_a_setting_that_is_not_best_at_an_edge_is_not_extended() -> None:
    space = {"share": Range(low=0, high=1)}
    inner = refine(space, [{"share": 0.1}, {"share": 0.95}, {"share": 0.99}], {"share": 0.95}, 60, 0.2, anything)
    assert 0.75 <= min(c["share"] for c in inner) < max(c["share"] for c in inner) <= 1.0


def test_nothing_lies_beyond_the_bounds_of_the_settings() -> None:
    space: SearchSpace = {"rate": Range(low=0, high=1), "steps": (1, 2)}
    tried = [{"rate": 0.02, "steps": 1}, {"rate": 0.5, "steps": 2}]
    valid = refine(space, tried, tried[0], 60, 0.2, lambda settings: settings["rate"] >= 0 and settings["steps"] >= 1)
    assert valid and all(0 <= c["rate"] <= 0.22 and c["steps"] in (1, 2) for c in valid)
    assert len({c["rate"] for c in valid}) > 10


@pytest.mark.parametrize(
    ("choices", "best", "extension"),
    [
        ((1, 2, 3, 5), 5, [8]),  # 5 * 5 / 3
        ((5, 3, 2, 1), 5, [8]),  # in any order
        ((1, 2, 3, 5), 1, [0]),  # 1 / 2, rounded
        ((1e-3, 1e-2), 1e-2, [0.1]),
        ((8, 16, 32), 8, [4]),
        ((None, 8, 16), 16, [32]),
        ((0, 1, 2), 0, []),  # no ratio
        ((1, 2, 3), 2, []),
        (("a", "b", "c"), "c", []),
        ((False, True), True, []),
        ((4,), 4, []),
    ],
)
def test_numbers_to_choose_from_continue_by_their_ratio(
    choices: tuple[Any, ...], best: Any, extension: list[Any]
) -> None:
    tried = [{"free": u, "setting": value} for value in choices for u in (0.3, 0.6)]
    space: SearchSpace = {"free": Range(low=0, high=1), "setting": choices}
    candidates = refine(space, tried, {"free": 0.3, "setting": best}, 40, 0.2, anything)
    assert [c["setting"] for c in candidates if c["setting"] not in choices] == extension
    index = choices.index(best)
    near = {*choices[max(0, index - 1) : index + 2]}
    assert {c["setting"] for c in candidates} == {*near, *extension}, "the best choice and its neighbours"


@pytest.mark.parametrize(
    ("tried", "best", "at"),
    [
        ([0.1, 0.5, 0.95], 0.95, True),
        ([0.1, 0.5, 0.95], 0.5, False),
        ([0.1, 0.5, 0.95, 1.1], 0.95, False),  # something further out is worse
        ([0.1, 0.5, 0.95, 1.1], 1.1, True),  # still the outermost after the extension
        ([0.3, 0.5, 0.7], 0.7, False),  # the outermost one tried, but far from the end of the range
        ([0.02, 0.5], 0.02, True),
        ([0.95, 0.95], 0.95, False),  # nothing else was tried
    ],
)
def test_a_number_is_at_the_edge_if_it_is_the_outermost_tried_and_near_the_end(
    tried: list[float], best: float, at: bool
) -> None:
    space = {"share": Range(low=0, high=1)}
    edges = at_edge(space, [{"share": value} for value in tried], {"share": best}, 0.125)
    assert edges == (["share"] if at else [])


@pytest.mark.parametrize(
    ("choices", "best", "at"),
    [
        *(((*range(1, n + 1),), n, True) for n in range(2, 40)),
        ((1, 2, 3), 1, True),
        ((1, 2, 3), 2, False),
        ((1, 2, 3), 5, True),  # beyond the last one
        (("a", "b"), "b", False),
        ((None, "b"), None, False),
        ((False, True), True, False),
    ],
)
def test_the_first_and_the_last_of_numbers_to_choose_from_are_at_the_edge(
    choices: tuple[Any, ...], best: Any, at: bool
) -> None:
    tried = [{"setting": value} for value in dict.fromkeys((*choices, best))]
    assert at_edge({"setting": choices}, tried, {"setting": best}, 0.125) == (["setting"] if at else [])
