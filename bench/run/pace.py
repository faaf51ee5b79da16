"""What cells cost, from the records of earlier ones: seconds and memory of each method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.hashing import content
from bench.records.schema import CellSpec, Costs
from bench.records.store import read_documents, read_run


@dataclass(frozen=True)
class Load:
    """What decides on the cost of a cell."""

    base: str
    """Identity of the base model, with its device and number format."""
    method: str
    dataset: str
    split: str
    arm: str
    config: str | None
    """The settings as JSON; None if they are not chosen yet."""
    tokens: int
    """Those of the documents that are observed."""
    questions: int
    """Number of questions at the last probe."""

    @property
    def kinds(self) -> Iterator[tuple[str, ...]]:
        """What cells of about the same cost for each token and question have in common, the most alike first."""
        method = (self.base, self.method)
        of_split = (*method, self.dataset, self.split)
        if self.config is not None:
            yield *of_split, self.arm, self.config
        yield *of_split, self.arm
        yield of_split
        yield *method, self.dataset, "any split", self.arm
        yield *method, self.dataset
        yield method


def load_of(spec: CellSpec, tokens: int, questions: int) -> Load:
    """The load of a cell that observes so many tokens and is asked so many questions."""
    return Load(
        base=base_of(spec.model_hash, spec.device, spec.dtype),
        method=spec.method,
        dataset=spec.dataset,
        split=spec.stream.rsplit("-", 2)[0],
        arm=spec.arm,
        config=content(spec.config),
        tokens=tokens,
        questions=questions,
    )


def base_of(model_hash: str, device: str, dtype: str) -> str:
    """:attr:`Load.base`."""
    return f"{model_hash} {device} {dtype}"


@dataclass
class _Costs:
    """Sums over cells: seconds before the stream, on documents and on questions, and how much there was of these."""

    cells: int = 0
    before: float = 0.0
    reading: float = 0.0
    tokens: int = 0
    answering: float = 0.0
    questions: int = 0

    def add(self, load: Load, costs: Costs) -> None:
        """Add a cell."""
        self.cells += 1
        self.before += costs.fit.seconds
        self.reading += costs.score.seconds + costs.observe.seconds
        self.tokens += load.tokens
        self.answering += costs.answer.seconds
        self.questions += load.questions

    def knows(self, load: Load) -> bool:
        """Whether some cell had documents, if this one has any, and questions, if this one has any."""
        return bool(self.cells and (self.tokens or not load.tokens) and (self.questions or not load.questions))

    def seconds(self, load: Load) -> float:
        """Seconds of a cell, at the mean rates of those that were added."""
        reading = self.reading / self.tokens * load.tokens if load.tokens else 0.0
        answering = self.answering / self.questions * load.questions if load.questions else 0.0
        return self.before / self.cells + reading + answering


class Pace:
    """Seconds of a cell and memory of a method, from what is learned of cells that have run."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, ...], _Costs] = defaultdict(_Costs)
        """By what cells have in common; () has those of all."""
        self._peaks: dict[tuple[str, str], int] = {}

    def read(self, runs: Path, methods: Iterable[str], bases: Collection[str]) -> None:
        """Learn from all records under ``runs`` of these methods on these bases (:attr:`Load.base`).

        Those that cannot be read are left out.
        """
        for method in methods:
            for path in sorted(runs.glob(f"{method}-*/run.json")):
                try:
                    record = read_run(path.parent)
                    spec = record.spec
                    if record.summary is not None and base_of(spec.model_hash, spec.device, spec.dtype) in bases:
                        tokens = sum(event.tokens for event in read_documents(runs, record.id))
                        self.learn(load_of(spec, tokens, record.summary.questions), record.costs)
                except (BenchError, OSError):  # it is refused where its scores are used
                    continue

    def learn(self, load: Load, costs: Costs | None) -> None:
        """Learn from the costs of a cell, if it has results."""
        if costs is None:
            return
        for kind in (*load.kinds, ()):
            self._costs[kind].add(load, costs)
        phases = (costs.fit, costs.score, costs.observe, costs.answer)
        of = load.base, load.method
        self._peaks[of] = max(self._peaks.get(of, 0), *(phase.peak_bytes for phase in phases))

    def seconds(self, load: Load) -> float | None:
        """Seconds of a cell, by the cells that are most alike; None without any of its method on its base."""
        known = (self._costs[kind] for kind in load.kinds if kind in self._costs)
        return next((costs.seconds(load) for costs in known if costs.knows(load)), None)

    def guess(self, load: Load) -> float | None:
        """Seconds of a cell by the mean of all cells; None without any."""
        return self._costs[()].seconds(load) if self._costs[()].knows(load) else None

    def peak(self, load: Load) -> int | None:
        """Most bytes that a cell of the method on this base has used; None without any."""
        return self._peaks.get((load.base, load.method))
