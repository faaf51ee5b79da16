"""The tuning of one method: a search over its settings on the validation streams, by successive halving."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.contract.search import SearchSpace
from bench.records import tuning
from bench.records.schema import TrialRecord
from bench.records.store import read_documents, read_run
from bench.records.tuning import Metric
from bench.run.cell import Cell
from bench.run.search import Settings, explore, refine

ETA = 3
"""Factor of successive halving: a third of the candidates goes on from a third of the stream (Li et al. 2018)."""
SLACK = 1.02
"""Factor on the limit on operations, for what differs from token to token."""
DRAWS = 4
"""Candidates that are measured at most for each trial, if there is a limit on operations."""

MakeCells = Callable[[Settings, str, int | None], Sequence[Cell]]
"""Makes a method's cells on the validation streams from settings, an arm, and the number of first documents or None."""
Rounds = Generator[list[Cell], None, None]
"""Yields cells to run, and goes on when their records are there."""


def first_part(documents: int) -> int | None:
    """The number of a stream's documents on which trials begin; None if it is too short to be divided."""
    part = math.ceil(documents / ETA)
    return part if part < documents else None


def operations_per_token(runs: Path, cell: Cell) -> float | None:
    """Floating-point operations of a cell in observing, per token of its documents; None if it has no results."""
    costs = read_run(runs / cell.id).costs
    tokens = sum(event.tokens for event in read_documents(runs, cell.id))
    return None if costs is None else costs.observe.flops / max(1, tokens)


@dataclass
class Trial:
    """One candidate, with the cells that it has run."""

    settings: Settings
    cells: list[Cell] = field(default_factory=list)


@dataclass
class Tuning:
    """The search for a method's settings within a budget of ``trials``.

    Two thirds of the trials cover the space, the rest is around the best of these, first beyond the edges at which it
    is; if that is not above the method without documents, the rest covers the space further. Either part runs on the
    first third of each stream; the best third goes on to whole streams; if none of it is above the method without
    documents there, as after steps that are too large for long, the next best ones follow. With a ``limit``, candidates
    that observe with more operations per token are dropped, and others take their place.
    """

    space: SearchSpace
    defaults: Mapping[str, Any]
    trials: int
    metric: Metric
    prefix: int | None
    """First documents of a stream on which trials begin; None if the streams cannot be divided."""
    make_cells: MakeCells
    runs: Path
    is_valid: Callable[[Settings], bool]
    limit: float | None = None
    """Most operations per token in observing."""
    done: list[Trial] = field(default_factory=list)
    others: list[Cell] = field(default_factory=list)
    """Cells that are not of a trial: the method without documents, and dropped candidates."""

    @property
    def first(self) -> int:
        """Trials that cover the space."""
        return self.trials - round(self.trials / ETA)

    @property
    def width(self) -> float:
        """Share of a range that is near the best value, or near an end: what each of the first trials stands for.

        A quarter at most: of two trials one would always be at an edge.
        """
        return 1 / max(4, self.first)

    def plan(self) -> list[tuple[int, int | None]]:
        """The most candidates of each round, and the first documents on which they run.

        There are more rounds with a limit, or if those that go on to whole streams break there.
        """
        rounds: list[tuple[int, int | None]] = []
        for count in filter(None, (self.first, self.trials - self.first)):
            prefix = self._prefix(count)
            rounds.append((count, prefix))
            if prefix is not None:
                rounds.append((math.ceil(count / ETA), None))
        return rounds

    def rounds(self) -> Rounds:
        """The search, as rounds of cells."""
        draws = self.trials * DRAWS
        waiting = [settings for settings in explore(self.space, self.defaults, draws) if self.is_valid(settings)]
        yield from self._halve(waiting, self.first)
        if (best := self.best()) is not None and self._is_above(self.measure(best).score, self.floor()):
            tried = [trial.settings for trial in self.done]
            waiting = refine(self.space, tried, best.settings, draws, self.width, self.is_valid)
        yield from self._halve(waiting, self.trials - len(self.done))

    def _halve(self, waiting: list[Settings], count: int) -> Rounds:
        """Try ``count`` of the candidates: on the first part of the streams, and the best of them on whole streams.

        Candidates that are tried or dropped are removed from ``waiting``.
        """
        prefix = self._prefix(count)
        new: list[Trial] = []
        while waiting and len(new) < count:
            batch = [Trial(settings) for settings in waiting[: count - len(new)]]
            del waiting[: len(batch)]
            for trial in batch:
                trial.cells = list(self.make_cells(trial.settings, "stream", prefix))
            yield [cell for trial in batch for cell in trial.cells] + self._floor_cells(prefix)
            for trial in batch:
                if self._is_within_limit(trial):
                    new.append(trial)
                else:
                    self.others += trial.cells
        self.done += new
        if prefix is not None:
            share = max(1, math.ceil(len(new) / ETA))
            waves = [some[at : at + share] for some in self._ranked(new, prefix) for at in range(0, len(some), share)]
            for going_on in waves or [[]]:  # the floor is measured even if no trial is left
                for trial in going_on:
                    trial.cells += self.make_cells(trial.settings, "stream", None)
                yield [cell for trial in going_on for cell in trial.cells] + self._floor_cells(None)
                floor = self.floor()
                if any(self._is_above(self.measure(trial).score, floor) for trial in going_on):
                    break

    def _prefix(self, count: int) -> int | None:
        """The first documents on which so many candidates begin; None if they run on whole streams at once."""
        return self.prefix if count > 1 or self.limit is not None else None

    def _floor_cells(self, prefix: int | None) -> list[Cell]:
        """The cells of the method without documents, which need no NLL of text."""
        cells = list(self.make_cells({}, "empty", prefix)) if self.metric == "f1" else []
        self.others += [cell for cell in cells if cell not in self.others]
        return cells

    def floor(self, prefix: int | None = None) -> float | None:
        """Mean F1 of the method without documents; None for the NLL of text, or if it could not be run."""
        return tuning.floor([read_run(self.runs / cell.id) for cell in self.others], prefix)

    def _is_within_limit(self, trial: Trial) -> bool:
        if self.limit is None:
            return True
        spent = [operations_per_token(self.runs, cell) for cell in trial.cells]
        return all(operations <= SLACK * self.limit for operations in spent if operations is not None)

    def _is_above(self, score: float | None, floor: float | None) -> bool:
        """True if there is a score, and F1 is above the floor."""
        return score is not None and (self.metric != "f1" or floor is None or score > floor)

    def _ranked(self, trials: Sequence[Trial], prefix: int) -> tuple[list[Trial], list[Trial]]:
        """The trials that score above the floor, and the others with results, the best first."""
        floor = self.floor(prefix)
        merits = []
        for index, trial in enumerate(trials):
            score, nll, *_ = self.measure(trial)
            if score is not None:
                merits.append((tuning.merit(self.metric, score, nll, floor), -index, self._is_above(score, floor)))
        ranked = [(trials[-index], is_above) for _, index, is_above in sorted(merits, reverse=True)]
        return [trial for trial, is_above in ranked if is_above], [trial for trial, is_above in ranked if not is_above]

    def measure(self, trial: Trial) -> tuning.Measurement:
        """The scores of a trial that has run."""
        return tuning.measure([read_run(self.runs / cell.id) for cell in trial.cells], self.metric)

    def record(self, trial: Trial, fixed: Mapping[str, Any]) -> TrialRecord:
        """The trial as its record states it, with the settings that are ``fixed``."""
        score, nll, documents, whole = self.measure(trial)
        return {
            "config": {**fixed, **trial.settings},
            "score": score,
            "answer_nll": nll,
            "documents": documents,
            "whole": whole,
            "runs": [cell.id for cell in trial.cells],
        }

    def best(self) -> Trial | None:
        """The best trial on whole streams; None if none has results."""
        index = tuning.best(self.metric, self.floor(), [self.record(trial, {}) for trial in self.done])
        return None if index is None else self.done[index]
