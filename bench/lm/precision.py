"""Precision: passes in 16 bits over weights that are kept in float32, and results that are the same to the bit."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers.pytorch_utils import Conv1D

from bench.lm.placement import replace_forward

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Context in which matrices are multiplied in ``dtype``; no effect for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its device has no such numbers (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def set_deterministic(only: bool) -> None:
    """Let torch use ``only`` algorithms that give the same bits each time; an operation without one then fails.

    On a GPU others add up in the order in which threads end. It must be set before anything is multiplied there.
    """
    if only:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(only)


def wrap_forward(model: Any, context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Let ``model.forward`` run inside ``context()`` from now on, however it is called."""
    forward = type(model).forward

    @wraps(forward)  # the library and the harness read its signature
    def inside(model: Any, *args: Any, **kwargs: Any) -> Any:
        with context():
            return forward(model, *args, **kwargs)

    replace_forward(model, inside)


class CastWeight(Parameter):
    """A weight that keeps its last cast to 16 bits until it changes.

    Torch counts the changes of a tensor, except those that are made through ``data`` or by a fused optimizer. So a
    weight is also cast anew after a step of any optimizer on it, and as long as somebody holds a ``data`` that was
    read. A change through another tensor that shares its memory, as a flat buffer of all weights, is not seen.
    """

    _cast: Tensor | None = None
    _cast_from: tuple[int, int] | None = None
    _read: tuple[weakref.ref[Tensor], ...] = ()

    @property
    def data(self) -> Tensor:
        """The values, without the count of changes."""
        values: Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        self._cast, self._read = None, (*self._read, weakref.ref(values))
        return values

    @data.setter
    def data(self, values: Tensor) -> None:
        torch.Tensor.data.__set__(self, values)  # type: ignore[attr-defined]
        self._cast = None

    def cast(self, dtype: torch.dtype) -> Tensor:
        """The values as ``dtype``, without a gradient."""
        state = (self._version, self.data_ptr())
        if self._read:
            self._read = tuple(values for values in self._read if values() is not None)
        if self._cast is None or self._cast.dtype != dtype or self._cast_from != state or self._read:
            with torch.inference_mode(False), torch.no_grad():
                self._cast, self._cast_from = self.to(dtype), state
        return self._cast


def _forget_casts(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if isinstance(weight, CastWeight):
                weight._cast = None


register_optimizer_step_post_hook(_forget_casts)


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions that multiply bfloat16, as far as this version of torch can tell."""
    able = getattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})()
    return any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def cast_matrices(model: Any, round_only: bool = False) -> None:
    """Let the matrices of a model be cast only when they have changed, where autocast would do it at every pass.

    A weight that needs a gradient is left to autocast. With ``round_only`` both factors of a product are rounded to
    bfloat16 and multiplied in float32, and the product is rounded. Processors that multiply bfloat16 add up in float32,
    too, so only the order of the sums differs. On those that cannot, torch takes many times as long.
    """
    for module in model.modules():
        weight = module._parameters.get("weight")
        is_matrix = isinstance(module, Linear | Conv1D)  # others may compute in float32, as some norms and routers do
        if is_matrix and weight is not None and weight.is_floating_point():
            weight.__class__ = CastWeight
            (_round_factors if round_only else _use_cast)(module)


def _use_cast(module: Any) -> None:
    forward = type(module).forward

    @wraps(forward)
    def inside(module: Any, *args: Any, **kwargs: Any) -> Any:
        weight = module._parameters.get("weight")
        if not isinstance(weight, CastWeight) or (torch.is_grad_enabled() and weight.requires_grad):
            return forward(module, *args, **kwargs)
        kind = weight.device.type
        if not torch.is_autocast_enabled(kind):
            return forward(module, *args, **kwargs)
        module._parameters["weight"] = weight.cast(torch.get_autocast_dtype(kind))
        try:
            return forward(module, *args, **kwargs)
        finally:
            module._parameters["weight"] = weight

    replace_forward(module, inside)


def _round_factors(module: Any) -> None:
    forward = type(module).forward

    @wraps(forward)
    def inside(module: Any, inputs: Tensor) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return forward(module, inputs)
        stored = dict(module._parameters)
        module._parameters.update({name: None if value is None else _rounded(value) for name, value in stored.items()})
        try:
            with torch.autocast("cpu", enabled=False):
                return forward(module, inputs.bfloat16().float()).bfloat16()
        finally:
            module._parameters.update(stored)

    replace_forward(module, inside)


def _rounded(weight: Tensor) -> Tensor:
    kept = isinstance(weight, CastWeight) and not (torch.is_grad_enabled() and weight.requires_grad)
    return (weight.cast(torch.bfloat16) if kept else weight.bfloat16()).float()  # type: ignore[attr-defined]
