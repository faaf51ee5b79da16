"""The ledger: the cost of each phase of a cell in time, floating-point operations and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.contract.method import Method
from bench.lm.base_model import BaseModel
from bench.lm.flops import FlopCounter, ReadingMeter
from bench.records.schema import Costs, Tally
from bench.seeds import seed_for

PHASES = ("fit", "score", "observe", "answer")
COUNT_EVERY = 16
"""Operations are counted in one n-th of a phase's work, and in some of its first calls, and scaled to all of it."""


Kind = Literal["alone", "graph", "counted"]
"""Calls whose costs are not alike: those that keep or use a graph of scoring, and those that are always counted, as the
first one of each is, which may set something up."""
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass
class _Calls:
    """Calls of one kind; their cost is proportional to their work."""

    seconds: float = 0.0
    work: float = 0.0
    counted_work: float = 0.0
    counted_flops: float = 0.0
    counted_seconds: float = 0.0
    calls: int = 0
    has_read: bool = False
    """True if the base has read something in a counted call."""
    peak: int = 0

    def is_counted_next(self) -> bool:
        """True while too little of the work is counted, and more often among the first calls.

        Of calls 1, 2-3, 4-7, 8-15, and of each 16 after them, one is drawn at random, since a method may work at every
        n-th document. The first ones are all counted until one is counted in which the base reads.
        """
        number = self.calls + 1
        size = min(1 << (number.bit_length() - 1), COUNT_EVERY)
        first = number - number % size
        is_drawn = number == first + seed_for("counted", first) % size
        waits = number <= COUNT_EVERY and not self.has_read
        return is_drawn or waits or self.counted_work * COUNT_EVERY <= self.work

    def flops(self) -> float:
        return self.counted_flops * (self.work / self.counted_work if self.counted_work else 1.0)

    def true_seconds(self) -> float:
        """Seconds without counting, which slows calls down: extrapolated from the other calls, if there are any."""
        work = self.work - self.counted_work
        return (self.seconds - self.counted_seconds) * self.work / work if work else self.seconds


class Ledger:
    """Costs by phase: ``fit``, ``score``, ``observe`` and ``answer``.

    Seconds are wall time, with the device synchronised before and after. Operations are those of matrix products and
    attention, as :class:`FlopCounter` counts them (a multiply-add is two), in a sample of the calls. They are scaled by
    the work of all calls, which is what the base reads in them: context, windows and repetitions included.
    """

    def __init__(self, lm: BaseModel) -> None:
        self.lm = lm
        self._calls = {(name, kind): _Calls() for name in PHASES for kind in KINDS}
        self._begun: set[tuple[str, Kind]] = set()
        self._scoring = 0.0
        """Work of the backward pass of the last scoring."""

    @contextlib.contextmanager
    def phase(self, name: str, tokens: int = 1, graph: bool = False, count: bool = False) -> Iterator[None]:
        """Charge the block to a phase.

        ``graph`` says that a scoring keeps its graph, or that observing may go on from the graph of the last scoring.
        Without that, and if the base reads nothing, the cost is assumed to be proportional to ``tokens``, those of the
        text. With ``count`` the block's operations are always counted, and apart from the sample.
        """
        kind: Kind = "counted" if count else "graph" if graph else "alone"
        is_first = (name, kind) not in self._begun
        self._begun.add((name, kind))
        count |= is_first
        calls, devices = self._calls[name, "counted" if is_first else kind], self.lm.devices
        counter = FlopCounter() if count or calls.is_counted_next() else None
        meter = ReadingMeter(self.lm)
        reset_peak(devices)
        _synchronize(devices)
        start = time.perf_counter()
        with meter, counter or contextlib.nullcontext():
            yield
            _synchronize(devices)
        elapsed = time.perf_counter() - start
        reading = meter.flops
        if name == "score":
            self._scoring = meter.backward
        else:
            reading += meter.backward + self._scoring * graph
        work = reading + tokens  # beside an operation for each token, any reading is large
        calls.seconds += elapsed
        calls.peak = max(calls.peak, peak(devices))
        calls.calls += 1
        calls.work += work
        if counter is not None:
            calls.counted_work += work
            calls.counted_seconds += elapsed
            calls.counted_flops += counter.flops
            calls.has_read |= reading > 0

    def seconds(self, name: str) -> float:
        """Seconds charged to a phase so far."""
        return sum(self._calls[name, kind].seconds for kind in KINDS)

    def costs(self, state_bytes: int, training: Tally) -> Costs:
        """Costs of all phases so far, with the bytes of the method's state and the cost of its trained weights."""
        phases = {name: self._tally(name) for name in PHASES}
        return Costs(state_bytes=state_bytes, training=training, **phases)

    def _tally(self, name: str) -> Tally:
        kinds = [self._calls[name, kind] for kind in KINDS]
        return Tally(
            seconds=sum(calls.true_seconds() for calls in kinds),
            flops=sum(calls.flops() for calls in kinds),
            peak_bytes=max(calls.peak for calls in kinds),
        )


def _synchronize(devices: Sequence[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


def reset_peak(devices: Sequence[torch.device]) -> None:
    """Forget the most bytes that were in use so far."""
    if cards := [device for device in devices if device.type == "cuda"]:
        for card in cards:
            torch.cuda.reset_peak_memory_stats(card)
    else:  # Linux: 5 resets the peak of the resident set
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(devices: Sequence[torch.device]) -> int:
    """Most bytes in use since :func:`reset_peak`; Windows: since the process began; macOS: the bytes in use now.

    Of several GPUs it is the sum of the most of each.
    """
    if cards := [device for device in devices if device.type == "cuda"]:
        return sum(int(torch.cuda.max_memory_allocated(card)) for card in cards)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def state_bytes(method: Method) -> int:
    """Bytes that the method has learned: the changed weights of the base and everything else in its state."""
    changed = method.lm.changed_bytes()
    with _WithoutCopies(method.lm):
        state = method.state_dict()
    of_base = {f"model.{name}" for name, _ in method.lm.named_tensors()}
    return changed + sum(value.numel() * value.element_size() for name, value in state.items() if name not in of_base)


class _WithoutCopies(TorchFunctionMode):
    """Inside, a clone of a weight of the base is the weight itself: a device may not hold a large base once more."""

    def __init__(self, lm: BaseModel) -> None:
        super().__init__()
        self._weights = {tensor.data_ptr() for _, tensor in lm.named_tensors()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone and args[0].layout is torch.strided and args[0].data_ptr() in self._weights:
            return args[0]  # a sparse tensor has no address
        return func(*args, **(kwargs or {}))
