"""What our scores say about published ones: on the shape where sizes differ, in standard errors at the papers' size.

A verdict on the shape has three words, and none of them is "reproduced": a small model on other documents can have the
order of a paper's methods for other reasons than the paper's.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from reports.agreement import Agreement, agreement
from reports.published import Value
from reports.ranks import holm
from reports.statistics import LEVEL, NOTHING, Estimate, Item, Sample, difference, show, show_number, slope

Point = TypeVar("Point")

Word = Literal["agrees in rank", "sign differs", "not resolved at this size"]
AGREES: Word = "agrees in rank"
DIFFERS: Word = "sign differs"
UNRESOLVED: Word = "not resolved at this size"
WORDS = (AGREES, DIFFERS, UNRESOLVED)

Measured = Mapping[str, Mapping[float, Sequence[Item]]]
"""Our scores: by method, then by place on the x axis, one of each run. Bars have a single place."""
Published = Mapping[str, Mapping[float, Value]]
"""The published values, likewise."""


class Sign(NamedTuple):
    """A published difference whose sign is known, and ours: of two methods, or of the ends of a method's curve."""

    name: str
    published: float
    decimals: int
    """Those of the published values."""
    ours: Estimate
    word: Word

    def sentence(self, digits: int = 1, units: tuple[str, str] = ("", "")) -> str:
        """The published difference, and ours in the same direction to so many digits, with the units of both."""
        direction = math.copysign(1, self.published)
        theirs, ours = (f" {unit}" if unit else "" for unit in units)
        return (
            f"{self.name} by {show_number(abs(self.published), self.decimals)}{theirs} in the paper, by "
            f"{show(direction * self.ours.mean, self.ours.half_width(), digits)}{ours} here."
        )


@dataclass(frozen=True)
class Shape:
    """The verdict on the shape of one published panel."""

    methods: tuple[str, ...]
    """Those that both have, the highest published value first."""
    agreement: Agreement | None
    """Of the ranks at the last place; None if there is no order."""
    gaps: tuple[Sign, ...]
    """Each pair of methods at the last place; the first one of the pair is higher in the paper."""
    slopes: tuple[Sign, ...]
    """The change of each method's curve along its least-squares line, from the first place to the last."""
    unread: int
    """Number of published gaps and changes that are smaller than the error of reading them."""

    @property
    def word(self) -> Word | None:
        """One word for all: a sign that differs outweighs the rest. None if there is none to test.

        The rank agrees if its interval is above 0 and one gap at least is resolved, or if all signs agree.
        """
        gaps = {gap.word for gap in self.gaps}
        words = gaps | {slope.word for slope in self.slopes}
        if not words:
            return None
        if DIFFERS in words:
            return DIFFERS
        above = self.agreement is not None and self.agreement.interval is not None and self.agreement.interval[0] > 0
        return AGREES if words == {AGREES} or (AGREES in gaps and above) else UNRESOLVED

    @property
    def differing(self) -> list[Sign]:
        """The signs that differ."""
        return [sign for sign in (*self.gaps, *self.slopes) if sign.word == DIFFERS]

    def sentences(self) -> list[str]:
        """The verdict in words, without the signs that differ."""
        found = [f"{self.word}." if self.word else "Nothing can be compared."]
        if self.agreement is not None:
            found.append(f"Kendall's tau-b of {self.agreement.methods} methods is {self.agreement}.")
        for name, signs in (("Gaps between two methods", self.gaps), ("Changes along a curve", self.slopes)):
            if signs:
                found.append(f"{name}: {counted(sign.word for sign in signs)}.")
        if self.unread:
            found.append(f"Left out, as smaller than the error of reading them: {self.unread}.")
        return found


def counted(words: Iterable[Word]) -> str:
    """Each word that is said, and how often: "agrees in rank (3), sign differs (1)"."""
    counts = Counter(words)
    return ", ".join(f"{word} ({counts[word]})" for word in WORDS if counts[word])


def shape(ours: Measured, theirs: Published, log: bool = False) -> Shape:
    """Compare the shapes of what both have: ranks and gaps at the last place, and the change along each curve.

    Ours is the last place that all our methods have, and theirs that of the published ones; without one, no gap is
    tested.

    Our signs are tested by paired t tests over streams, with Holm's correction over the gaps and over the changes, at
    :data:`reports.statistics.LEVEL`. ``log``: lines are fitted over the logarithm of the place.

    Raises:
        BenchError: two of our methods do not have the same streams.
    """
    both = {name: values for name, values in theirs.items() if values and ours.get(name)}
    end = _last_common(both.values())
    ends = {name: values[end] for name, values in both.items()} if end is not None else {}
    methods = sorted(ends, key=lambda name: (-ends[name].number, name))
    last = _last_common([ours[name] for name in methods])
    if last is None:
        return Shape(tuple(methods), agreement=None, gaps=(), slopes=(), unread=0)
    samples = {name: Sample.of(ours[name][last]) for name in methods}
    gaps, changes = [], []
    for a, b in itertools.combinations(methods, 2):
        published, error = ends[a].number - ends[b].number, ends[a].reading_error + ends[b].reading_error
        ours_gap = difference(samples[a], samples[b], "SE_stream")
        gaps.append(_Difference(f"{a} above {b}", published, error, _decimals((ends[a], ends[b])), ours_gap))
    for name in methods:
        if min(len(theirs[name]), len(ours[name])) > 1:
            own = slope(_even(ours[name], log))
            published, error = _published_slope(theirs[name], log)
            verb = "rises" if published > 0 else "falls"
            changes.append(_Difference(f"{name} {verb}", published, error, _decimals(theirs[name].values()), own))
    return Shape(
        methods=tuple(methods),
        agreement=_agreement(methods, ends, samples, [gap.is_known for gap in gaps]),
        gaps=_signs(gaps),
        slopes=_signs(changes),
        unread=sum(not of.is_known for of in (*gaps, *changes)),
    )


def _last_common(lines: Iterable[Mapping[Any, Any]]) -> Any:
    """The last place that all lines have; None without one."""
    places = [line.keys() for line in lines]
    return max((x for own in places for x in own if all(x in other for other in places)), default=None)


class _Difference(NamedTuple):
    """A published difference with the error of reading it, and ours."""

    name: str
    published: float
    error: float
    decimals: int
    ours: Estimate

    @property
    def is_known(self) -> bool:
        return abs(self.published) > self.error


def _decimals(values: Iterable[Value]) -> int:
    """Decimals of what is computed from these values: no more than any of them was read with."""
    return min(value.decimals for value in values)


def _published_slope(line: Mapping[float, Value], log: bool) -> tuple[float, float]:
    """The change along the least-squares line, and the most by which the errors of reading can move it."""
    points = _even(line, log)
    centred = np.array([*points]) - np.mean([*points])
    weights = centred / (centred @ centred)
    numbers, errors = zip(*((value.number, value.reading_error) for value in points.values()), strict=True)
    return float(weights @ numbers), float(np.abs(weights) @ errors)


def _even(points: Mapping[float, Point], log: bool) -> dict[float, Point]:
    """The points with places from 0 to 1, so that a slope is the change from the first place to the last."""
    places = {x: math.log(x) if log else x for x in points}
    low, high = min(places.values()), max(places.values())
    return {(places[x] - low) / (high - low): point for x, point in points.items()}


def _agreement(
    methods: Sequence[str], ends: Mapping[str, Value], samples: Mapping[str, Sample], known: Sequence[bool]
) -> Agreement | None:
    """The agreement of the published ranks, which have no streams, with ours, over the pairs with a known gap."""
    if len(methods) < 2:
        return None
    own = np.array([list(samples[name].by_stream.values()) for name in methods])
    published = np.repeat([[ends[name].number] for name in methods], own.shape[1], axis=1)
    return agreement(published, own, known=known)


def _signs(found: Sequence[_Difference]) -> tuple[Sign, ...]:
    """Those whose published sign is known, tested together."""
    known = [of for of in found if of.is_known]
    adjusted = holm({of.name: 1.0 if (p := of.ours.p_value()) is None else p for of in known})
    return tuple(
        Sign(of.name, of.published, of.decimals, of.ours, _word(of.published, of.ours, adjusted[of.name]))
        for of in known
    )


def _word(published: float, ours: Estimate, p_value: float) -> Word:
    if p_value >= LEVEL:
        return UNRESOLVED
    return AGREES if (ours.mean > 0) == (published > 0) else DIFFERS


class Distance(NamedTuple):
    """A published value and ours in the same unit, at the paper's size."""

    published: Value
    ours: Estimate

    @property
    def in_errors(self) -> float | None:
        """(ours - published) / our standard error; None without one, or without spread."""
        se = self.ours.se
        return None if se is None or se < NOTHING else (self.ours.mean - self.published.number) / se
