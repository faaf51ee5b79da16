"""Labels of dots: each beside its dot, where it covers nothing, or further off and joined to its dot by a line."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reports.style import GREY, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

NEAR = 12
"""Points from a dot to the end of its label up to which no line joins them."""
LEADER_STEPS = 12
"""Places of such a line at which what it would cross is looked for."""
FONT = 6.5
"""Size of the labels in points."""
GAP = 0.7
"""Points that stay free around a label."""

_OFFSETS = np.array(
    sorted(
        ((side * dx, dy) for side in (1, -1) for dx in range(4, 60, 4) for dy in range(-60, 61, 3)),
        key=lambda offset: (math.hypot(offset[0], 1.5 * offset[1]), -offset[0], offset[1]),
    )
)
"""Where a label can be, in points right of the dot (or left of it, if negative) and above it: the nearest first."""
_IS_FAR = np.hypot(*_OFFSETS.T) > NEAR


@dataclass(frozen=True)
class Dot:
    """A dot with an error bar, in the coordinates of the data."""

    label: str
    x: float
    y: float
    half: float
    """Half the length of the bar."""
    colour: str
    """Of the label."""


class _Places:
    """All places of one dot's label, as arrays over the offsets; everything in pixels."""

    def __init__(self, axes: Axes, dot: Dot, text: Text, scale: float):
        self.at = axes.transData.transform((dot.x, dot.y))
        size, frame = text.get_window_extent(), axes.get_window_extent()
        width, height = size.width + 2 * GAP * scale, size.height
        self.area, self.height = width * height, height
        offsets = _OFFSETS * scale
        left = self.at[0] + offsets[:, 0] - np.where(offsets[:, 0] < 0, width, 0)
        low = self.at[1] + offsets[:, 1] - height / 2
        self.boxes = np.stack([left, low, left + width, low + height], axis=1)
        """x and y of the lower left and upper right corner, (places, 4)."""
        shares = np.arange(1, LEADER_STEPS + 1)[:, None] / LEADER_STEPS
        self.leaders = self.at + offsets[:, None] * shares
        """Places along the line to the label, (places, LEADER_STEPS, 2)."""
        inside = (self.boxes[:, :2] >= frame.min).all(1) & (self.boxes[:, 2:] <= frame.max).all(1)
        self.fixed: np.ndarray = np.where(inside, 0.0, np.inf)
        """What a place covers whatever the other labels do, (places,), as an area."""

    def avoid(self, boxes: np.ndarray, dots: np.ndarray, steps: np.ndarray) -> None:
        """Count what covers these boxes, lines through other dots or the steps, and labels that seem to be others'."""
        self.fixed += _overlaps(self.boxes, boxes).sum(1)
        if len(dots):
            through = _contains(dots, self.leaders).any(1).sum(-1) * self.area
            center, half = (dots[:, 0] + dots[:, 2]) / 2, dots[:, 2] - dots[:, 0]
            beside = np.stack([center - 2 * half, dots[:, 1], center + 2 * half, dots[:, 3]], axis=1)
            self.fixed += np.where(_IS_FAR, through + _overlaps(self.boxes, beside).sum(1), 0)
        for a, b in itertools.pairwise(steps):
            self.fixed += np.where(_IS_FAR & _cross(self.at, self.leaders[:, -1], a, b), self.height, 0)

    def covered(self, placed: Sequence[tuple[_Places, int]], scale: float) -> np.ndarray:
        """What each place covers if other labels are where they have been placed, (places,)."""
        if not placed:
            return self.fixed
        boxes = np.stack([other.boxes[place] for other, place in placed])
        covered: np.ndarray = self.fixed + _overlaps(self.boxes, boxes).sum(1)
        covered += np.where(_IS_FAR, _contains(boxes, self.leaders).sum((1, 2)) * self.height, 0)
        for other, place in placed:
            line = other.leaders[place]
            crossed = _cross(self.at, self.leaders[:, -1], other.at, line[-1])
            covered += np.where((_IS_FAR | _IS_FAR[place]) & crossed, self.area, 0)
            if _IS_FAR[place]:
                covered += _overlaps(self.boxes, np.concatenate([line, line + scale], axis=1)).sum(1)
        return covered


def label_dots(axes: Axes, dots: Sequence[Dot], steps: Sequence[tuple[float, float]] = ()) -> int:
    """Put each label near its dot, where it covers no dot, bar or other label, nor a line of steps.

    Labels are placed one after another, in several orders, of which the one is drawn that needs the fewest lines
    from labels to dots, of those that cover little. Returns the number of these lines.

    Args:
        steps: corners of a line that rises or falls after each of them, as ``where="post"`` draws it.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72  # pixels per point

    def around(low: tuple[float, float], high: tuple[float, float], margin: float) -> list[float]:
        ends = axes.transData.transform([low, high])
        return [*(ends.min(0) - margin * scale), *(ends.max(0) + margin * scale)]

    corners = [corner for (x, y), (next_x, _) in itertools.pairwise(steps) for corner in ((x, y), (next_x, y))]
    corners += steps[-1:]
    taken = [around(a, b, 0.5) for a, b in itertools.pairwise(corners)]
    taken += [around((dot.x, dot.y - dot.half), (dot.x, dot.y + dot.half), 1) for dot in dots]
    circles = np.array([around((dot.x, dot.y), (dot.x, dot.y), 3) for dot in dots]).reshape(-1, 4)
    line = axes.transData.transform(np.reshape(corners, (-1, 2)))
    texts = [axes.text(0, 0, wrap(dot.label, 24), fontsize=FONT, color=dot.colour, parse_math=False) for dot in dots]
    places = [_Places(axes, dot, text, scale) for dot, text in zip(dots, texts, strict=True)]
    for number, mine in enumerate(places):
        mine.avoid(np.concatenate([np.reshape(taken, (-1, 4)), circles]), np.delete(circles, number, axis=0), line)
    by_place = [sorted(range(len(dots)), key=lambda number: places[number].at[axis]) for axis in (0, 1)]
    orders = [list(range(len(dots))), *by_place]
    tried = [_placed(places, order, scale) for way in orders for order in (way, way[::-1])]
    _, lines, _, chosen = min(tried)
    for dot, text, mine, place in zip(dots, texts, places, chosen, strict=True):
        right = _OFFSETS[place, 0] >= 0
        box = mine.boxes[place]
        end = box[0] + GAP * scale if right else box[2] - GAP * scale
        tip, y = axes.transData.inverted().transform((end, (box[1] + box[3]) / 2))
        text.set(position=(tip, y), horizontalalignment="left" if right else "right", verticalalignment="center")
        if _IS_FAR[place]:
            stop = axes.transData.inverted().transform(mine.leaders[place, -1])
            axes.plot([dot.x, stop[0]], [dot.y, stop[1]], color=GREY, linewidth=0.7, zorder=0)
    return lines


def _placed(places: Sequence[_Places], order: Sequence[int], scale: float) -> tuple[bool, int, float, list[int]]:
    """Labels placed in an order: whether they cover much, how many need lines, what they cover, and their places."""
    chosen: dict[int, int] = {}
    total = 0.0
    for number in order:
        covered = places[number].covered([(places[other], place) for other, place in chosen.items()], scale)
        chosen[number] = int(covered.argmin())  # the nearest of the least
        total += float(covered[chosen[number]])
    found = [chosen[number] for number in range(len(places))]
    return total > (FONT * scale) ** 2, int(_IS_FAR[found].sum()), total, found


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas that each of n boxes shares with each of m others, (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray((high - low).clip(0).prod(-1))


def _contains(boxes: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Whether each place of each line is in each of m boxes, (lines, places, m)."""
    at = lines[:, :, None]
    return np.asarray(((at >= boxes[:, :2]) & (at <= boxes[:, 2:])).all(-1))


def _cross(start: np.ndarray, ends: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the lines from start to each of n ends cross the one from a to b, (n,)."""

    def side(start: np.ndarray, end: np.ndarray, at: np.ndarray) -> np.ndarray:
        along, to = end - start, at - start
        return np.asarray(along[..., 0] * to[..., 1] > along[..., 1] * to[..., 0])

    return np.asarray((side(start, ends, a) != side(start, ends, b)) & (side(a, b, start) != side(a, b, ends)))
