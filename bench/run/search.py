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

    A number of a range moves by at most ``width`` of the range, a choice to one of its neighbours. If no larger
    (smaller) value was tried, candidates may lie above (below) the range, as far as the settings are valid.
    """
    points = _sobol(len(space), "refine")
    candidates = []
    for point in points:
        candidate = dict(best)
        for (key, values), u in zip(space.items(), point, strict=True):
            others = [settings[key] for settings in tried]
            moved = {**candidate, key: _near(values, best[key], others, u, width)}
            candidate = moved if is_valid(moved) else candidate
        candidates.append(candidate)
    return _different(tried, candidates, count)


def at_edge(space: SearchSpace, tried: Sequence[Settings], best: Settings, width: float) -> list[str]:
    """The settings whose best value is the largest or smallest one tried, at an end of its range or beyond it."""
    keys = []
    for key, values in space.items():
        numbers = [settings[key] for settings in tried if _is_number(settings[key])]
        if len(set(numbers)) > 1 and best[key] in (min(numbers), max(numbers)):
            if isinstance(values, Range):
                inside = width < _place(values, best[key]) < 1 - width
            else:
                inside = best[key] in values[1:-1]
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


def _near(values: Range | Sequence[Any], value: Any, tried: Sequence[Any], u: float, width: float) -> Any:
    """A value near another one, beyond the end of the range only if nothing further out was tried."""
    if not isinstance(values, Range):
        return _neighbour(values, value, u)
    place = _place(values, value)
    low = place - width if value <= min(tried) else max(0.0, place - width)
    high = place + width if value >= max(tried) else min(1.0, place + width)
    return _at(values, low + u * (high - low))


def _neighbour(values: Sequence[Any], value: Any, u: float) -> Any:
    """The choice before a value, the value, or the choice after it; numbers continue at the ends by their ratio."""
    index = list(values).index(value) + min(int(3 * u), 2) - 1
    if 0 <= index < len(values):
        return values[index]
    end, inner = (values[0], values[1 % len(values)]) if index < 0 else (values[-1], values[len(values) - 2])
    if not _is_number(end) or not _is_number(inner) or not end or not inner or end == inner:
        return value
    beyond = end * end / inner
    return round(beyond) if isinstance(end, int) else float(f"{beyond:.3g}")
