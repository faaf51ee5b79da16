"""The search for good settings: candidates that cover a search space, and candidates around the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bench.contract.search import Range, SearchSpace
from bench.seeds import seed_for

Settings = dict[str, Any]
IsValid = Callable[[Settings], bool]
"""True for settings within the bounds of the method's config."""

POINTS = 1024
"""Points of the sequence from which a set of candidates is made; a power of 2."""


def explore(space: SearchSpace, defaults: Mapping[str, Any], count: int) -> list[Settings]:
    """At most ``count`` different candidates that cover the space evenly; fewer if the space has no more.

    The first one is the ``defaults``, if they lie in the space. The others are points of a Sobol sequence with Owen's
    scrambling, the same for all methods with as many settings.
    """
    inside = all(_contains(values, defaults[key]) for key, values in space.items())
    first = [{key: defaults[key] for key in space}] if inside else []
    points = ({key: _at(space[key], u) for key, u in zip(space, point, strict=True)} for point in _sobol(len(space)))
    return _different([], [*first, *points], count)


def refine(
    space: SearchSpace, tried: Sequence[Settings], best: Settings, count: int, width: float, is_valid: IsValid
) -> list[Settings]:
    """At most ``count`` candidates around the best one, none of which was tried.

    The first ones extend the space, one for each setting whose best value is at an edge: they are the best one with
    this setting beyond the edge, as far as that is valid. In the others, a number of a range moves by at most ``width``
    of the range, a choice to one of its neighbours.
    """
    edges = at_edge(space, tried, best, width)
    smallest = {key: best[key] == _numbers([settings[key] for settings in tried])[0] for key in edges}
    extended = [{**best, key: _beyond(space[key], smallest[key], width)} for key in edges]
    near = (
        {key: _near(values, best[key], u, width) for (key, values), u in zip(space.items(), point, strict=True)}
        for point in _sobol(len(space), "refine")
    )
    return _different(tried, [candidate for candidate in [*extended, *near] if is_valid(candidate)], count)


def at_edge(space: SearchSpace, tried: Sequence[Settings], best: Settings, width: float) -> list[str]:
    """The settings whose best value is the largest or smallest one tried, at an end of its range or beyond it."""
    keys = []
    for key, values in space.items():
        numbers = _numbers([settings[key] for settings in tried])
        if len(set(numbers)) > 1 and best[key] in (numbers[0], numbers[-1]):
            if isinstance(values, Range):
                inside = width < _place(values, best[key]) < 1 - width
            else:
                inside = best[key] in _numbers(values)[1:-1]
            if not inside:
                keys.append(key)
    return keys


def _sobol(dimensions: int, *name: str) -> Iterator[list[float]]:
    from scipy.stats import qmc

    seed = seed_for("search", dimensions, *name)
    yield from qmc.Sobol(dimensions, scramble=True, rng=seed).random(POINTS).tolist()


def _different(tried: Sequence[Settings], candidates: Sequence[Settings], count: int) -> list[Settings]:
    new: list[Settings] = []
    for candidate in candidates:
        if len(new) < count and candidate not in tried and candidate not in new:
            new.append(candidate)
    return new


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Sequence[Any]) -> list[Any]:
    return sorted(value for value in values if _is_number(value))


def _contains(values: Range | Sequence[Any], value: Any) -> bool:
    if isinstance(values, Range):
        return _is_number(value) and values.low <= value <= values.high
    return value in values


def _at(values: Range | Sequence[Any], u: float) -> Any:
    """The value at a place, from 0 to 1 within the range; numbers inside a range have three significant digits."""
    if not isinstance(values, Range):
        return values[min(int(u * len(values)), len(values) - 1)]
    low, high = (math.log(values.low), math.log(values.high)) if values.log else (values.low, values.high)
    number = low + u * (high - low)
    rounded = float(f"{math.exp(number) if values.log else number:.3g}")
    return min(max(rounded, values.low), values.high) if 0 <= u <= 1 else rounded


def _place(values: Range, value: float) -> float:
    """The place of a number in a range, the inverse of :func:`_at`."""
    if not values.log:
        return (value - values.low) / (values.high - values.low)
    return math.log(value / values.low) / math.log(values.high / values.low) if value > 0 else -math.inf


def _near(values: Range | Sequence[Any], value: Any, u: float, width: float) -> Any:
    """A value near another one: within ``width`` of its place in the range, or among the neighbours of a choice."""
    if isinstance(values, Range):
        place = _place(values, value)
        return _at(values, min(max(place + (2 * u - 1) * width, 0.0), 1.0))
    index = list(values).index(value) + min(int(3 * u), 2) - 1
    return values[min(max(index, 0), len(values) - 1)]


def _beyond(values: Range | Sequence[Any], smallest: bool, width: float) -> Any:
    """The value beyond an end: by ``width`` of the range, or the number that continues the choices by their ratio."""
    if isinstance(values, Range):
        return _at(values, -width if smallest else 1 + width)
    numbers = _numbers(values)
    inner, end = (numbers[1], numbers[0]) if smallest else (numbers[-2], numbers[-1])
    beyond = end * end / inner if inner else end
    return round(beyond) if isinstance(end, int) else float(f"{beyond:.3g}")
