"""The ledger: the cost of each phase of a cell in time, floating-point operations and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from bench.contract.method import Method
from bench.records.schema import Costs, Tally

COUNT_EVERY = 32
"""Operations are counted in every n-th call of a phase, from the first on, and scaled to the work of all calls."""

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


_aten: Any = torch.ops.aten
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # PyTorch has formulas for the attention kernels of GPUs only
    _aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}


class _Counter(TorchDispatchMode):
    """Counts the operations that run inside it, by PyTorch's formulas.

    PyTorch's FlopCounterMode also tracks modules and decomposes operators without a formula. That takes longer than
    the work of a small model, and it changes the last bits of gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


@dataclass
class _Phase:
    seconds: float = 0.0
    work: float = 0.0
    counted_work: float = 0.0
    counted_flops: float = 0.0
    counted_seconds: float = 0.0
    calls: int = 0
    peak: int = 0

    def tally(self) -> Tally:
        flops = self.counted_flops * self.work / self.counted_work if self.counted_work else 0.0
        seconds, work = self.seconds - self.counted_seconds, self.work - self.counted_work
        # counting slows a call down: the seconds are extrapolated from the other calls, if there are any
        seconds = seconds * self.work / work if work else self.seconds
        return Tally(seconds=seconds, flops=flops, peak_bytes=self.peak)


class Ledger:
    """Costs by phase: ``offline``, ``score``, ``observe`` and ``answer``.

    Seconds are wall time, with the device synchronised before and after. Operations are those of matrix products and
    attention, as PyTorch counts them (a multiply-add is two), in a sample of the calls.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._phases = {name: _Phase() for name in ("offline", "score", "observe", "answer")}

    @contextlib.contextmanager
    def phase(self, name: str, work: float = 1.0, count: bool = False) -> Iterator[None]:
        """Charge the block to a phase. Its cost is assumed to be proportional to ``work`` (e.g. its number of tokens).

        With ``count`` its operations are always counted, not only in the sample.
        """
        phase = self._phases[name]
        counting = count or phase.calls % COUNT_EVERY == 0
        counter = _Counter() if counting else None
        _reset_peak(self.device)
        _synchronize(self.device)
        start = time.perf_counter()
        with counter if counter is not None else contextlib.nullcontext():
            yield
            _synchronize(self.device)
        elapsed = time.perf_counter() - start
        phase.seconds += elapsed
        phase.peak = max(phase.peak, _peak(self.device))
        phase.calls += 1
        phase.work += work
        if counter is not None:
            phase.counted_work += work
            phase.counted_seconds += elapsed
            phase.counted_flops += counter.flops

    def seconds(self, name: str) -> float:
        """Seconds charged to a phase so far."""
        return self._phases[name].seconds

    def costs(self, state_bytes: int) -> Costs:
        """Costs of all phases so far, with the bytes of the method's state."""
        return Costs(state_bytes=state_bytes, **{name: phase.tally() for name, phase in self._phases.items()})


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:  # Linux: 5 resets the peak of the resident set
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Most bytes in use since :func:`_reset_peak`; Windows: since the process began; macOS: the bytes in use now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def state_bytes(method: Method) -> int:
    """Bytes that the method has learned: the changed weights of the base and everything else in its state."""
    extra = sum(
        value.numel() * value.element_size()
        for name, value in method.state_dict().items()
        if not name.startswith("model.")
    )
    return extra + method.lm.changed_bytes()
