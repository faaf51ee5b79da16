"""Components of the spread of scores: streams, seeds (crossed with the streams) and orders (within the streams)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """One run of a row, by what sets it apart from the row's other runs."""

    stream: str
    seed: int = 0
    order: int = 0
    training: str = ""
    """Hash of the trained weights that it loads, or of what it learns from; "" for none."""


Runs = Mapping[Run, float]
"""A score of each run of a row."""


class Term(NamedTuple):
    """A part of the variance of a mean, and the degrees of freedom of its estimate."""

    variance: float
    degrees: float


def seed_term(runs: Runs) -> Term | None:
    """What the seeds add to the variance of the mean over a streams and b seeds; None with a single seed.

    With two-way crossed random effects the variance of the mean is E(MS_stream + MS_seed - MS_rest) / ab (Searle,
    Casella and McCulloch 1992, chapter 4). MS_stream / ab is the variance of the stream means over a. Of the others
    only MS_seed / ab is added: with two or three seeds, subtracting MS_rest makes the intervals too narrow. Orders are
    averaged within their stream. Only seeds that all streams have are used.
    """
    cells: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run, value in runs.items():
        cells[run.seed][run.stream].append(value)
    streams = {run.stream for run in runs}
    means = [np.mean([np.mean(of) for of in seed.values()]) for seed in cells.values() if seed.keys() == streams]
    if len(means) < 2:
        return None
    return Term(float(np.var(means, ddof=1)) / len(means), len(means) - 1)


def shares(runs: Runs) -> dict[str, float]:
    """Shares of ``streams``, ``seeds``, ``orders`` and ``rest`` in the variance of one run's score; they sum to 1.

    The components are the estimates of the analysis of variance, with negative ones as 0. The rest is what differs
    between seeds in one way on one stream or order and in another way on others. Only what the row has several of has
    a share. There are none if the row has a single stream, or a single seed and order, if a run is missing, or if all
    scores are equal.
    """
    streams = sorted({run.stream for run in runs})
    seeds, orders = sorted({run.seed for run in runs}), sorted({run.order for run in runs})
    a, b, c = len(streams), len(seeds), len(orders)
    if a < 2 or b * c < 2 or len(runs) < a * b * c:
        return {}
    values = {(run.stream, run.seed, run.order): value for run, value in runs.items()}
    y = np.array([[[values[i, j, k] for k in orders] for j in seeds] for i in streams])
    mean, of_stream, of_seed, of_order = y.mean(), y.mean((1, 2)), y.mean((0, 2)), y.mean(1)
    rest = y - of_order[:, None, :] - of_seed[None, :, None] + mean
    ms_rest = float((rest**2).sum()) / ((a * c - 1) * (b - 1)) if b > 1 else 0.0
    ms_order = b * float(((of_order - of_stream[:, None]) ** 2).sum()) / (a * (c - 1)) if c > 1 else ms_rest
    components = {"streams": (b * c * float(of_stream.var(ddof=1)) - ms_order) / (b * c)}
    if b > 1:
        components["seeds"] = (a * c * float(of_seed.var(ddof=1)) - ms_rest) / (a * c)
    if c > 1:
        components["orders"] = (ms_order - ms_rest) / b
    if b > 1:
        components["rest"] = ms_rest
    positive = {name: max(0.0, value) for name, value in components.items()}
    total = sum(positive.values())
    return {name: value / total for name, value in positive.items()} if total > 1e-18 else {}
