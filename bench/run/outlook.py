"""What is ahead of the methods of an experiment: cells to run, as far as their records are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bench.contract.meta_training import MetaTrained
from bench.contract.method import validate_config
from bench.data.arms import Arm
from bench.harness.loop import due_questions
from bench.records.schema import documents_seen, first_probe
from bench.records.store import MANIFEST, read_run
from bench.run import lengths
from bench.run.cell import Cell, failure_line
from bench.run.experiment import MethodPlan, StreamPlan
from bench.run.inputs import Sources, inputs_of
from bench.run.pace import Load, load_of
from bench.run.places import place
from bench.run.planner import Planner
from bench.run.tuner import Tuner
from bench.run.tuning import Tuning


@dataclass(frozen=True)
class Outlook:
    """What is ahead of one method."""

    label: str
    """The method, with the settings in which it differs from other entries of the same method."""
    learning: str
    """What the method has learned or learns before a stream, in words; "" if nothing."""
    rounds: tuple[tuple[Load, ...], ...]
    """Cells of each round of tuning that are to run; the first ones that are known exactly may be there already."""
    board: tuple[Load, ...]
    """Cells on the test streams that are to run."""
    cached_tuning: int
    """Cells of tuning whose records are there."""
    cached_board: int
    problem: str = ""
    """The reason why the method cannot run yet."""
    failed: tuple[str, ...] = ()
    """Cells that failed, each in words; they are run again."""
    running: int = 0
    """Cells that other processes run now."""

    def after(self, rounds: int) -> Sequence[Load]:
        """The cells that are to run after so many rounds of tuning."""
        return [*chain.from_iterable(self.rounds[rounds:]), *self.board]

    @property
    def tuning(self) -> int:
        """Number of cells of tuning that are to run; about, since what a search runs depends on its scores."""
        return sum(map(len, self.rounds))


def load(cell: Cell) -> Load:
    """The load of a cell."""
    return load_of(cell.spec, *_size(cell.sources, cell.spec.arm, cell.spec.probes, cell.spec.questions))


def _size(sources: Sources, arm: Arm, probes: Sequence[float], asked: str) -> tuple[int, int]:
    """Tokens of the documents that are observed on a stream, and number of questions at the last probe."""
    inputs = inputs_of(sources, arm)
    entries = inputs.stream.entries
    if asked == "seen":
        questions = len(due_questions(entries[: documents_seen(max(probes), len(entries))]))
    else:
        first = documents_seen(first_probe(probes), len(entries))
        questions = sum(question.position < first for question in due_questions(entries))
    return sum(lengths.count(sources.model, document) for document in inputs.documents), questions


class Forecaster:
    """Looks ahead, as far as the records under ``runs`` allow it; nothing is run or written."""

    def __init__(self, planner: Planner, tuner: Tuner, runs: Path) -> None:
        self.planner, self.tuner, self.runs = planner, tuner, runs
        self.experiment = planner.experiment
        self._claimed = {one.claim.cell for one in place(runs).running()}
        self._missed: dict[str, Cell] = {}
        """Cells of the method at hand that are known and have no results."""

    def outlook(self, plan: MethodPlan, tuning: Tuning | None, problem: str = "", part: slice = slice(None)) -> Outlook:
        """What is ahead of a method with the search for its settings, which is used up, or None if it is not tuned.

        ``part`` are the cells of the board that count, those of a shard.
        """
        self._missed.clear()
        rounds: list[list[Load]] = []
        cached = 0
        chosen: Mapping[str, object] | None = plan.config
        if tuning is not None and not problem:
            rounds, cached, chosen = self._tuning(plan, tuning)
        elif tuning is not None:
            rounds, chosen = self._planned(plan, tuning), None
        cells = None if chosen is None or problem else list(self.planner.cells(plan, chosen))[part]
        missing = self._missing(cells) if cells is not None else self._expected_on_board(plan)[part]
        failed = (cell for cell in self._missed if cell not in self._claimed and self._has_record(cell))
        return Outlook(
            label=self.tuner.label(plan),
            learning=self._learning(plan, bool(problem)),
            rounds=tuple(map(tuple, rounds)),
            board=tuple(missing),
            cached_tuning=cached,
            cached_board=0 if cells is None else len({cell.id for cell in cells}) - len(missing),
            failed=tuple(failure_line(read_run(self.runs / cell)) for cell in failed),
            running=len(self._missed.keys() & self._claimed),
            problem=problem,
        )

    def _tuning(self, plan: MethodPlan, tuning: Tuning) -> tuple[list[list[Load]], int, Mapping[str, object] | None]:
        """The cells to run in each round, the number of those that are there, and the settings if all have been run.

        A cell that failed is to run again, but the search has gone on without its score.
        """
        rounds, cells = list[list[Load]](), set[str]()
        for batch in tuning.rounds():
            cells |= {cell.id for cell in batch}
            rounds.append(self._missing(batch))
            if not all(self._has_record(cell.id) for cell in batch):
                return [*rounds, *self._planned(plan, tuning)[len(rounds) :]], len(cells - self._missed.keys()), None
        best = tuning.best()
        chosen = {**plan.config, **({} if best is None else best.settings)}
        return rounds, len(cells - self._missed.keys()), chosen

    def _planned(self, plan: MethodPlan, tuning: Tuning) -> list[list[Load]]:
        """The cells of each round of tuning, before anything is known of the scores."""
        on = self.experiment.tuning
        assert on is not None
        rounds, with_floor = [], set()
        for count, prefix in tuning.plan():
            arms = ["stream"] * count
            if on.metric == "f1" and prefix not in with_floor:
                arms.append("empty")
            with_floor.add(prefix)
            rounds.append([load for arm in arms for load in self._expected(plan, on, arm, prefix)])
        return rounds

    def _expected_on_board(self, plan: MethodPlan) -> list[Load]:
        runs = len(self.planner.seeds(plan)) * self.experiment.orders
        return [load for arm in plan.arms for load in self._expected(plan, self.experiment.streams, arm) * runs]

    def _expected(self, plan: MethodPlan, on: StreamPlan, arm: str, prefix: int | None = None) -> list[Load]:
        """The load on each stream, with settings that are not chosen yet."""
        experiment, base = self.experiment, self.planner.base_in_use
        sources = (self.planner.sources(on, i).model_copy(update={"prefix": prefix}) for i in range(on.count))
        trial = on is experiment.tuning
        probes, asked = ((1.0,), "seen") if trial else (experiment.probes, experiment.questions)
        sizes = [_size(source, arm, probes, asked) for source in sources]
        return [Load(base, plan.name, self.planner.recipe.name, on.split, arm, None, *size) for size in sizes]

    def _missing(self, cells: Sequence[Cell]) -> list[Load]:
        missing = {cell.id: cell for cell in cells if not cell.is_done(self.runs)}
        self._missed |= missing
        return [load(cell) for cell in missing.values()]

    def _has_record(self, cell: str) -> bool:
        return (self.runs / cell / MANIFEST).exists()

    def _learning(self, plan: MethodPlan, untrained: bool) -> str:
        method = self.planner.methods[plan.name]
        config = validate_config(method, plan.config)
        if issubclass(method, MetaTrained):
            return "weights missing" if untrained else "weights there"
        return f"fits on {method.learns_from}" if method.learns_offline(config) else ""
