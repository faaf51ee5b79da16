"""What cells cost, from the records of earlier ones: seconds and memory of each method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.hashing import content
from bench.records.schema import CellSpec, RunRecord
from bench.records.store import read_run


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
    documents: int

    @property
    def kinds(self) -> Iterator[tuple[str, ...]]:
        """What cells of about the same cost for each document have in common, the most alike first."""
        method = (self.base, self.method)
        of_split = (*method, self.dataset, self.split)
        if self.config is not None:
            yield *of_split, self.arm, self.config
        yield *of_split, self.arm
        yield of_split
        yield *method, self.dataset, "any split", self.arm
        yield *method, self.dataset
        yield method


def load_of(spec: CellSpec, documents: int = 1) -> Load:
    """The load of a cell on a stream of so many ``documents``, if the name of the stream does not state the number."""
    split, size, _ = spec.stream.rsplit("-", 2)
    return Load(
        base=base_of(spec.model_hash, spec.device, spec.dtype),
        method=spec.method,
        dataset=spec.dataset,
        split=split,
        arm=spec.arm,
        config=content(spec.config),
        documents=spec.prefix or (int(size) if size.isdigit() else documents),
    )


def base_of(model_hash: str, device: str, dtype: str) -> str:
    """:attr:`Load.base`."""
    return f"{model_hash} {device} {dtype}"


@dataclass
class _Costs:
    """Sums over cells: seconds before the stream, and seconds for each document."""

    cells: int = 0
    before: float = 0.0
    each: float = 0.0

    def add(self, before: float, each: float) -> None:
        self.cells, self.before, self.each = self.cells + 1, self.before + before, self.each + each

    def mean(self, documents: int) -> float:
        return (self.before + documents * self.each) / self.cells


class Pace:
    """Seconds of a cell and memory of a method, from what is learned of cells that have run."""

    def __init__(self) -> None:
        self._costs: dict[tuple[str, ...], _Costs] = defaultdict(_Costs)
        """By what cells have in common; () has those of all."""
        self._peaks: dict[tuple[str, str], int] = {}

    def read(self, runs: Path, methods: Iterable[str]) -> None:
        """Learn from all records of these methods under ``runs``; those that cannot be read are left out."""
        for method in methods:
            for path in sorted(runs.glob(f"{method}-*/run.json")):
                try:
                    self.learn(read_run(path.parent))
                except (BenchError, OSError):  # it is refused where its scores are used
                    continue

    def learn(self, record: RunRecord) -> None:
        """Learn from the costs of a cell, if it has results."""
        costs, summary = record.costs, record.summary
        if costs is None or summary is None:
            return
        load = load_of(record.spec, max(1, summary.documents))
        seconds = (costs.score.seconds + costs.observe.seconds + costs.answer.seconds) / load.documents
        for kind in (*load.kinds, ()):
            self._costs[kind].add(costs.fit.seconds, seconds)
        phases = (costs.fit, costs.score, costs.observe, costs.answer)
        of = load.base, load.method
        self._peaks[of] = max(self._peaks.get(of, 0), *(phase.peak_bytes for phase in phases))

    def seconds(self, load: Load) -> float | None:
        """Seconds of a cell, by the cells that are most alike; None without any of its method on its base."""
        return next((self._costs[kind].mean(load.documents) for kind in load.kinds if kind in self._costs), None)

    def guess(self, load: Load) -> float | None:
        """Seconds of a cell by the mean of all cells; None without any."""
        return self._costs[()].mean(load.documents) if self._costs else None

    def peak(self, load: Load) -> int | None:
        """Most bytes that a cell of the method on this base has used; None without any."""
        return self._peaks.get((load.base, load.method))
