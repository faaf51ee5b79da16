"""Labels beside dots."""

from __future__ import annotations

import contextlib
import itertools
import random

import numpy as np
import pytest
from matplotlib.figure import Figure

from reports.dot_labels import Dot, label_dots


def panel():
    axes = Figure(figsize=(6.9, 2.7)).subplots()
    axes.set(xscale="log", xlim=(1e11, 1e15), ylim=(0, 1))
    return axes


def boxes(axes):
    return {text.get_text(): text.get_window_extent() for text in axes.texts}


def test_a_label_that_has_room_stands_right_of_its_dot_and_needs_no_line():
    axes = panel()
    assert label_dots(axes, [Dot("lora", 1e13, 0.5, 0.1, "black")]) == 0
    (box,) = boxes(axes).values()
    x, y = axes.transData.transform((1e13, 0.5))
    assert 0 < box.x0 - x < 10 and box.y0 < y < box.y1
    assert not axes.lines


def test_a_label_that_would_leave_the_panel_stands_left_of_its_dot():
    axes = panel()
    label_dots(axes, [Dot("lora", 9e14, 0.5, 0.0, "black")])
    assert boxes(axes)["lora"].x1 < axes.transData.transform((9e14, 0.5))[0]


def test_labels_of_one_place_cover_neither_each_other_nor_a_dot_nor_the_steps():
    axes = panel()
    dots = [Dot(name, 1e13 * 1.05**n, 0.5 + 0.01 * n, 0.05, "black") for n, name in enumerate(("one", "two", "three"))]
    label_dots(axes, dots, [(2e12, 0.0), (2e12, 0.58), (1e15, 0.58)])
    found = list(boxes(axes).values())
    assert not any(a.overlaps(b) for a, b in itertools.combinations(found, 2))
    places = axes.transData.transform([(dot.x, dot.y) for dot in dots])
    assert not any(box.contains(*at) for box in found for at in places)
    level = axes.transData.transform((1e13, 0.58))[1]
    assert not any(box.y0 < level < box.y1 for box in found)


@pytest.mark.parametrize("seed", [2, 5, 6])
def test_no_two_lines_from_labels_to_their_dots_cross(seed):
    rng, axes = random.Random(seed), panel()
    dots = [
        Dot(f"method number {n}", 10 ** rng.gauss(13, 0.15), 0.5 + rng.gauss(0, 0.05), 0.0, "black") for n in range(12)
    ]
    assert label_dots(axes, dots) == len(axes.lines) > 1
    lines = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    for (a, b), (c, d) in itertools.combinations(lines, 2):
        with contextlib.suppress(np.linalg.LinAlgError):  # parallel ones
            shares = np.linalg.solve(np.stack([b - a, c - d], axis=1), c - a)
            assert not ((shares > 0) & (shares < 1)).all()
