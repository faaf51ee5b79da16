"""What a method can reach: every text and every list of numbers that it, its inputs or its code keep."""

from __future__ import annotations

import array
import collections
import gc
import sys
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contract.method import Method


def reachable_strings(method: Method, inputs: Sequence[object] = ()) -> Iterator[tuple[str, str]]:
    """Every string that can be reached from the method, its inputs or the modules of its code, with where it is kept.

    Bytes are yielded as text. Whole numbers in a list, a tensor, an array or bytes, such as token ids, are yielded
    as :func:`spelled`. Modules, and classes and function globals of other code, are not followed: they lead everywhere.
    """
    packages = _packages(type(method))
    todo: list[tuple[str, object]] = [("the method", method), *(("an input", value) for value in inputs)]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages:
            variables = list(vars(module).items())  # at once: another thread may import something
            todo += [(f"{name.rpartition('.')[2]}.{variable}", value) for variable, value in variables]
    todo += [(f"self.{name}", value) for name, value in vars(method).items()]
    seen: dict[int, object] = {}
    while todo:
        place, value = todo.pop()
        if id(value) in seen or isinstance(value, types.ModuleType):
            continue
        seen[id(value)] = value
        yield from ((place, string) for string in _strings(value))
        if isinstance(value, type):
            if str(value.__module__).partition(".")[0] in packages:
                todo += [(f"{value.__qualname__}.{name}", item) for name, item in vars(value).items()]
                todo += [(place, base) for base in value.__bases__]
        elif isinstance(value, types.FunctionType):
            kept = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
            todo += [(value.__qualname__, item) for item in kept]
        elif isinstance(value, np.ndarray):
            todo += [(place, item) for item in value.flat if value.dtype.hasobject]
        else:
            todo += [(place, item) for item in gc.get_referents(value)]
            if isinstance(value, dict):  # keys that are strings are no referents
                todo += [(place, key) for key in dict.keys(value)]


def spelled(numbers: Iterable[int]) -> str:
    """Whole numbers as one string, in which a run of them can be searched: ``" 5 12 7 "``."""
    return f" {' '.join(map(str, numbers))} "


def _packages(kind: type[Method]) -> set[str]:
    """Top-level packages of a method's code: of its class, of its bases outside bench, and the project's methods."""
    bases = [base for base in kind.__mro__ if issubclass(base, Method)]
    return {base.__module__.partition(".")[0] for base in bases} - {"bench"} | {"methods"}


def _strings(value: Any) -> Iterator[str]:
    """What this object itself says, without the objects that it refers to."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes | bytearray):
        yield value.decode(errors="replace")
        for kind in (np.int32, np.int64):
            if len(value) % np.dtype(kind).itemsize == 0:
                yield spelled(np.frombuffer(value, kind).tolist())
    elif isinstance(value, list | tuple | collections.deque | array.array):
        if all(type(item) is int for item in value):
            yield spelled(value)
    elif isinstance(value, Tensor):
        if value.layout == torch.strided and not (value.is_floating_point() or value.is_complex() or value.is_meta):
            yield from _strings(value.detach().cpu().numpy())
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "iu":
            yield spelled(value.ravel().tolist())
        if value.dtype == np.uint8:
            yield value.tobytes().decode(errors="replace")
        if value.dtype.kind in "US":
            yield from map(str, value.ravel().tolist())
