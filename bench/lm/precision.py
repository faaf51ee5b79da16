"""Precision: forward and backward passes in 16 bits, over weights that are kept and updated in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import MethodType
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context in which matrices are multiplied in ``dtype``; no effect for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def wrap_forward(model: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Let ``model.forward`` run inside ``context()`` from now on, however it is called."""
    forward = type(model).forward

    @wraps(forward)  # the library and the harness read its signature
    def inside(model: Any, *args: Any, **kwargs: Any) -> Any:
        with context():
            return forward(model, *args, **kwargs)

    model.forward = MethodType(inside, model)  # bound, so that a copy of the model gets its own
