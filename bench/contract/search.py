"""Search spaces: which settings of a method are tuned, and over which values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pydantic

from bench.settings import Settings


class Range(Settings):
    """All numbers from ``low`` to ``high``; on a logarithmic scale with ``log``."""

    low: float
    high: float
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _is_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range lies above 0, got low={self.low:g}")
        return self

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' * self.log}"


SearchSpace = Mapping[str, Range | Sequence[Any]]
"""Settings to tune, each with a range of numbers or a list of choices, in order."""


def examples(values: Range | Sequence[Any]) -> Sequence[Any]:
    """All choices, or the ends of a range and a number between them, which is no integer."""
    if not isinstance(values, Range):
        return values
    between = values.low + (values.high - values.low) / math.e
    return values.low, between, values.high
