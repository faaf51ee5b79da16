"""Two devices on a machine that has one: tensors with the name of a device, which compute on the CPU.

As on GPUs, an operation on tensors of different devices fails. The name is that of a kind of device of torch that no
machine has and for which torch loads nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

KIND = "lazy"
FIRST, SECOND = f"{KIND}:0", f"{KIND}:1"
INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations that take indices on the CPU."""


class _Placed(Tensor):
    """A tensor on one of the two devices, with its values in a tensor of the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> _Placed:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        placed: Any = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=device, **layout)
        placed.inner = inner
        return placed

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:
            return _inner(args[0]).detach().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Devices(TorchDispatchMode):
    """Inside, tensors can be made on the two devices and moved to them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, _Placed) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    name, to = func.name(), kwargs.get("device")
    counted = [one for one in tensors if one.ndim or one.device.type == KIND]  # scalars of the CPU go anywhere
    found = {tensor.device for tensor in counted}
    is_index = name in INDEXING and len({device.type for device in found}) == 2
    if len(found) > 1 and name != "aten::copy_" and not is_index:
        raise RuntimeError(f"{name} has tensors on {' and '.join(sorted(map(str, found)))}.")
    own = args[0].device if name == "aten::copy_" else next((d for d in found if d.type == KIND), None)
    device = own if to is None else torch.device(to)
    settings = tree_map(_inner, kwargs) | ({} if to is None else {"device": "cpu"})
    out = func(*tree_map(_inner, args), **settings)
    if device is None or device.type != KIND:
        return out
    device = torch.device(KIND, device.index or 0)
    out = tree_map(lambda value: _Placed(value, device) if isinstance(value, Tensor) else value, out)
    is_placed = any(isinstance(tensor, _Placed) for tensor in tensors)
    return return_and_correct_aliasing(func, args, kwargs, out) if is_placed else out


@contextmanager
def two_devices() -> Iterator[None]:
    """Inside, there are the devices :data:`FIRST` and :data:`SECOND`."""
    plain, before = torch.autocast, torch._C._only_lift_cpu_tensors()
    with pytest.MonkeyPatch.context() as patch, _Devices():
        patch.setattr(torch, "autocast", lambda kind, *a, **k: plain("cpu" if kind == KIND else kind, *a, **k))
        optimizer = importlib.import_module("torch.optim.optimizer")
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: ["cpu", KIND])
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor moves what it has made, which is seen here
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def spread(model: Any, layer: int = 1) -> Any:
    """A model with the layers from this one on, and what follows them, on the second device."""
    names = [name for name, module in model.named_modules() if not [*module.children()] and _tensors(module)]
    blocks = {name for name, _ in model.named_modules() if name.rpartition(".")[2].isdecimal()}
    parts = [next((block for block in blocks if name.startswith(f"{block}.")), name) for name in names]
    parts = list(dict.fromkeys(parts))
    start = next(i for i, part in enumerate(parts) if part.endswith(f".{layer}"))
    model.hf_device_map = {part: FIRST if i < start else SECOND for i, part in enumerate(parts)}
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = ends[0].weight is ends[1].weight
    if is_tied:
        model.hf_device_map[next(name for name, module in model.named_modules() if module is ends[1])] = FIRST
    for part, device in model.hf_device_map.items():
        model.get_submodule(part).to(device)
    if is_tied:
        model.tie_weights()
    for module in model.modules():
        add_hook_to_module(module, ModelHook())  # as accelerate leaves a model that it has spread
    return model


def _tensors(module: Any) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
