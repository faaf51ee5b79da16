"""Where a run stands: cells that have run, what runs now, and an estimate of the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from bench.records.schema import RunRecord
from bench.run.cell import Moment
from bench.run.pace import Load, Pace

NOTE_SECONDS = 0.5
"""Seconds between two states that are shown because of what a cell does."""
SETTLE_SECONDS = 30.0
"""Time in which the measured speed of a run replaces the assumption that its workers are as fast as the records say."""


Purpose = Literal["tuning", "running"]


@dataclass(frozen=True)
class Job:
    """A cell that is to run: what it is for, its method, arm and stream as people know them, and its load."""

    purpose: Purpose
    method: str
    arm: str
    stream: str
    load: Load


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    done: int
    total: int
    """Cells of the plan, those of tuning included."""
    exact: bool
    """False as long as the total depends on what tuning finds."""
    running: tuple[tuple[Job, Moment], ...]
    elapsed: float
    """Seconds since the beginning."""
    left: float | None
    """Seconds until the end; None if nothing is known about the costs of any cell."""
    share: float
    """Share of the work that is done."""


Show = Callable[[State], None]


@dataclass
class Progress:
    """Follows a run of cells on ``jobs`` workers, and calls ``show`` whenever something has changed."""

    show: Show = lambda _: None
    jobs: int = 1
    pace: Pace = field(default_factory=Pace)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self._shown = self.clock()
        self._expected: dict[Hashable, Sequence[Load]] = {}
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Moment] = {}
        self._done, self._work = 0, 0.0

    def expect(self, part: Hashable, loads: Sequence[Load]) -> None:
        """State the cells of a part of the plan that are not among those begun, in place of what was stated before."""
        self._expected[part] = loads

    def begin(self, jobs: dict[str, Job]) -> None:
        """Add cells, by their keys, that run from now on."""
        self._waiting |= jobs
        self._update()

    def note(self, key: str, moment: Moment) -> None:
        """State what a running cell does."""
        self._running[key] = moment
        if self.clock() >= self._shown + NOTE_SECONDS or moment.activity == "starting":
            self._update()

    def end(self, key: str, record: RunRecord) -> None:
        """State that a cell has run, with its record."""
        load = self._waiting.pop(key).load
        self._running.pop(key, None)
        self._done += 1
        estimate = self.pace.seconds(load)
        self.pace.learn(load, record.costs)
        self._work += self._seconds(load) or 0.0 if estimate is None else estimate
        self._update()

    def state(self) -> State:
        """Where the run stands now."""
        coming = list(chain.from_iterable(self._expected.values()))
        begun = {key: job.load for key, job in self._waiting.items()}
        costs = [self._seconds(load) for load in (*coming, *begun.values())]
        started = sum(_share(moment) * (self._seconds(begun[key]) or 0.0) for key, moment in self._running.items())
        work, elapsed = self._work + started, self.clock() - self._started
        total = self._done + len(costs)
        left, share = None, self._done / total if total else 1.0
        if all(cost is not None for cost in costs):
            rest = sum(cost or 0.0 for cost in costs) - started
            left = rest * (elapsed + SETTLE_SECONDS) / (work + self.jobs * SETTLE_SECONDS)
            share = work / (work + rest) if work + rest else share
        running = tuple((self._waiting[key], moment) for key, moment in self._running.items())
        return State(self._done, total, not coming, running, elapsed, left, share)

    def _seconds(self, load: Load) -> float | None:
        seconds = self.pace.seconds(load)
        return self.pace.guess(load) if seconds is None else seconds

    def _update(self) -> None:
        self._shown = self.clock()
        self.show(self.state())


def _share(moment: Moment) -> float:
    """Share of a cell that has run."""
    return max(0, moment.document - 1) / moment.documents if moment.documents else 0.0
