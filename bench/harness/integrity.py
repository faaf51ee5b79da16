"""What a cell must leave as it was: the base with its weights, tokenizer and settings, torch's switches, and the code.

A method runs in the process that scores it. A slip (gradients left switched off, a hook left on a layer) or a patch of
the metrics would therefore change what follows. A :class:`Fingerprint`, taken before the method is imported, shows it.
"""

from __future__ import annotations

import builtins
import functools
import json
import math
import os
import sys
import time
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

from bench.lm.base_model import BaseModel

WHOLE_BYTES = 2**30
"""Weights of at most this size are compared whole; of larger ones, every n-th row, so that about as much is read."""
TEXT = "The ferry to Ærø–東京 left at 7:45; 1,983 people\nsaw it, but nobody (not even Ann) asked the question: why?"
"""The text whose tokens and logits must stay the same."""
TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit. Rounding is below it; weights are compared exactly."""

_LIBRARIES = (builtins, math, json, time, torch, torch.nn.functional)
_CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Parameter)
_FUNCTIONS = (types.FunctionType, classmethod, staticmethod, property)
_FLEETING = (
    "training",
    "_buffers",
    "deprecation_warnings",
    "_output_capturing_hooks_installed",
    "_is_full_backward_hook",
    "_gradient_checkpointing_func",
)
"""Attributes that are restored, seen in the logits, or set by the library when it is used and left behind after it."""
_CAPTURING = "transformers.utils.output_capturing"
"""Its hooks stay on the modules once hidden states have been requested; they are inactive otherwise."""
_SCALARS = (type(None), bool, int, float, str)

Items = dict[str, Any]
"""Values by name. Names that begin alike describe one object."""


def checksum(lm: BaseModel) -> list[int]:
    """A number for each of the model's tensors, computed from their bits; of large models, from a sample of the rows.

    It changes if the bits of one value change, or if two rows are swapped.
    """
    tensors = [tensor.detach() for _, tensor in lm.named_tensors()]
    step = math.ceil(sum(tensor.nbytes for tensor in tensors) / WHOLE_BYTES) or 1
    sums = [_sum_of_bits(tensor[::step] if tensor.ndim else tensor) for tensor in tensors]
    values: list[int] = torch.stack([one.to(lm.device) for one in sums]).tolist() if sums else []
    return values


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum over the rows of the sum of the row's bits, read as integers, times an odd number of the row.

    It wraps around at 2^64, where an odd factor loses no bit.
    """
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(-1, 1)
    rows = rows.contiguous()
    width = rows.shape[1] * rows.element_size()
    start = rows.storage_offset() * rows.element_size()
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    widest = next(kind for kind in kinds if width % kind.itemsize == 0 and start % kind.itemsize == 0)
    sums = rows.view(widest).sum(1, dtype=torch.int64)
    return (sums * (2 * torch.arange(len(sums), device=sums.device) + 1)).sum()


class Fingerprint:
    """The state of a restored base and of this process at one moment, to be compared with a later one.

    It runs the model once on a short text.
    """

    def __init__(self, lm: BaseModel) -> None:
        for kind in type(lm).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, functools.cached_property):
                    getattr(lm, name)  # computed now, so that a later value can be compared
        tokens: list[int] = lm.tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"]
        self._ids = torch.tensor([[lm.bos_id, *tokens][: lm.window]], device=lm.device)
        modules = {name: module for name, module in sys.modules.items() if f"{name}.".startswith("bench.")}
        objects = (lm.tokenizer, lm.model.config, *lm.model.modules())
        kinds = {kind for value in objects for kind in type(value).__mro__} | {*_CLASSES}
        self._parts = (
            (partial(_code, modules, kinds, sys.modules[type(lm.model).__module__]), "was replaced"),
            (partial(_settings, lm), ""),
            (partial(_attributes, lm), ""),
            (partial(_behaviour, lm), ""),
        )
        self._items = [read() for read, _ in self._parts]
        self._weights = checksum(lm)
        self._logits = _logits(lm, self._ids)
        self._compare = _difference  # the method's module cannot replace it here

    def difference(self, lm: BaseModel) -> str | None:
        """A clause (without a full stop) that names the first thing that has changed; None if nothing has.

        Call it after ``method.reset()`` and ``lm.restore()``. A method must have brought everything else back itself.
        """
        try:
            for (read, verb), before in zip(self._parts, self._items, strict=True):
                if clause := self._compare(before, read(), verb):
                    return clause
            return self._difference_of_values(lm)
        except Exception as error:
            return f"the base can no longer be read ({type(error).__name__}: {error})"

    def _difference_of_values(self, lm: BaseModel) -> str | None:
        names = [name for name, _ in lm.named_tensors()]
        for name, before, now in zip(names, self._weights, checksum(lm), strict=True):
            if before != now:
                return f"the weights {name} changed"
        logits = _logits(lm, self._ids)
        largest = self._logits.abs().max().item()
        if logits.shape != self._logits.shape or not (logits - self._logits).abs().max() <= TOLERANCE * largest:
            return "the model gives other logits for the same text"
        return None


def _difference(before: Items, now: Items, verb: str) -> str | None:
    """The first name with another value; values of plain types are equal if they are alike, others if they are one."""
    scalars = (type(None), bool, int, float, str)
    plain = (*scalars, list, tuple, dict, set, frozenset)
    for name, old in before.items():
        if name not in now:
            return f"{name} was removed"
        new = now[name]
        if new is not old and not (type(new) is type(old) and isinstance(old, plain) and new == old):
            simple = isinstance(old, scalars) and isinstance(new, scalars) and not verb
            return f"{name} changed from {old!r:.80} to {new!r:.80}" if simple else f"{name} {verb or 'was changed'}"
    return next((f"{name} was added" for name in now if name not in before), None)


def _code(modules: Mapping[str, types.ModuleType], kinds: set[type], architecture: types.ModuleType) -> Items:
    """What the names in the harness's modules and classes, in the libraries and in these classes refer to."""
    items: Items = {f"sys.modules[{name!r}]": sys.modules.get(name) for name in modules}
    for name, module in modules.items():
        _add_module(items, name, module)
    for library in (*_LIBRARIES, architecture):
        for name, value in vars(library).items():
            if callable(value) and not isinstance(value, type):
                items[f"{library.__name__}.{name}"] = value
    for kind in sorted(kinds - {object}, key=lambda kind: (kind.__module__, kind.__qualname__)):
        for name, value in vars(kind).items():
            if isinstance(value, _FUNCTIONS):
                _add_function(items, f"{kind.__module__}.{kind.__qualname__}.{name}", value)
    return items


def _add_module(items: Items, module_name: str, module: types.ModuleType) -> None:
    for name, value in vars(module).items():
        if name.startswith("__") or isinstance(value, types.ModuleType):
            continue  # Python's own names; a submodule appears when it is imported
        full_name = f"{module_name}.{name}"
        _add_function(items, full_name, value)
        if name.isupper() and isinstance(value, (list, dict, set)):
            items[f"the content of {full_name}"] = value.copy()
        if isinstance(value, type) and value.__module__ == module_name:
            for attribute, member in vars(value).items():
                if isinstance(member, _FUNCTIONS) or not attribute.startswith("__"):
                    _add_function(items, f"{full_name}.{attribute}", member)


def _add_function(items: Items, name: str, value: object) -> None:
    items[name] = value
    if isinstance(value, types.FunctionType):
        items[f"the code of {name}"] = value.__code__
        items[f"the defaults of {name}"] = value.__defaults__


def _settings(lm: BaseModel) -> Items:
    """The switches of torch, of this thread and of this process."""
    device = lm.device.type
    switches: Mapping[str, Callable[[], Any]] = {
        "torch.is_grad_enabled()": torch.is_grad_enabled,
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled,
        "torch.get_default_dtype()": lambda: str(torch.get_default_dtype()),
        "torch.get_default_device()": lambda: str(torch.get_default_device()),
        "torch.get_num_threads()": torch.get_num_threads,
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled,
        "torch.is_deterministic_algorithms_warn_only_enabled()": torch.is_deterministic_algorithms_warn_only_enabled,
        "torch.is_anomaly_enabled()": torch.is_anomaly_enabled,
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision,
        f"torch.is_autocast_enabled({device!r})": lambda: torch.is_autocast_enabled(device),
        "torch.backends.mkldnn.enabled": lambda: torch.backends.mkldnn.enabled,
        "torch.backends.cudnn.enabled": lambda: torch.backends.cudnn.enabled,
        "torch.backends.cudnn.benchmark": lambda: torch.backends.cudnn.benchmark,
        "torch.backends.cudnn.deterministic": lambda: torch.backends.cudnn.deterministic,
        "torch.backends.cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "torch.backends.cuda.matmul.allow_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "torch.backends.cuda.flash_sdp_enabled()": torch.backends.cuda.flash_sdp_enabled,
        "torch.backends.cuda.mem_efficient_sdp_enabled()": torch.backends.cuda.mem_efficient_sdp_enabled,
        "torch.backends.cuda.math_sdp_enabled()": torch.backends.cuda.math_sdp_enabled,
        "the number of torch's function modes": torch._C._len_torch_function_stack,
        "the number of torch's dispatch modes": torch._C._len_torch_dispatch_stack,
        "the working folder": os.getcwd,
    }
    items = {name: _value_of(switch) for name, switch in switches.items()}
    for name, value in vars(torch_module).items():
        if name.startswith("_global_") and isinstance(value, dict):
            items[f"the hooks in torch.nn.modules.module.{name}"] = list(value)
    return items


def _value_of(switch: Callable[[], Any]) -> Any:
    try:
        return switch()
    except Exception as error:  # a switch that this version or device lacks, or that was half set
        return f"unreadable ({type(error).__name__})"


def _attributes(lm: BaseModel) -> Items:
    """The configuration, and the attributes and hooks of the base, its tokenizer and its modules."""
    items: Items = {}
    _flatten(items, "the model's configuration: ", lm.model.config.to_dict())
    items["the model's attention"] = getattr(lm.model.config, "_attn_implementation", None)
    if (generation := getattr(lm.model, "generation_config", None)) is not None:
        _flatten(items, "the generation configuration: ", generation.to_dict())
    items["the model's window"] = lm.window
    _add_attributes(items, "lm", lm)
    _add_attributes(items, "lm.tokenizer", lm.tokenizer)
    for name, module in lm.model.named_modules():
        _add_attributes(items, f"lm.model.{name}".rstrip("."), module)
    for name, parameter in lm.model.named_parameters():
        hooks = (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None))
        items[f"the hooks on the weights {name}"] = [key for one in hooks for key in one or ()]
    return items


def _behaviour(lm: BaseModel) -> Items:
    """The tokenizer's vocabulary, and what it and the base make of a fixed text."""
    tokenizer = lm.tokenizer
    ids = tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    items: Items = {}
    _flatten(items, "the tokenizer's ", tokenizer.special_tokens_map)
    items["the tokenizer's vocabulary size"] = len(tokenizer)
    items["the tokenizer's added tokens"] = tokenizer.get_added_vocab()
    items["the tokens of a fixed text"] = list(ids)
    items["the tokens of a fixed text by lm.encode"] = lm.encode(TEXT).tolist()
    items["the decoded tokens of a fixed text"] = tokenizer.decode(ids)
    return items


def _flatten(items: Items, prefix: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _flatten(items, f"{prefix}{key}.", value)
        else:
            items[f"{prefix}{key}"] = value if isinstance(value, (*_SCALARS, list)) else str(value)


def _add_attributes(items: Items, owner: str, value: Any) -> None:
    """The attributes of an instance, which may hide those of its class; of mappings, each item."""
    items[f"the class of {owner}"] = type(value)
    for name, attribute in vars(value).items():
        if "cache" in name or name in _FLEETING:
            continue
        if isinstance(attribute, dict):
            for key, item in attribute.items():
                if getattr(item, "__module__", "") != _CAPTURING:
                    offloaded = isinstance(item, Tensor) and item.is_meta  # replaced in each pass
                    items[f"{owner}.{name}[{key!r}]"] = "offloaded" if offloaded else item
        else:
            items[f"{owner}.{name}"] = attribute


@torch.no_grad()
def _logits(lm: BaseModel, ids: Tensor) -> Tensor:
    """Logits of the tokens, shape (1, tokens, vocabulary)."""
    logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits.float()
    return logits
