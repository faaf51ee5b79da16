"""Passes through a part of a base's depth: the first blocks alone, or the last after the first were read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.lm.base_model import BaseModel
from methods.parts.parameters import blocks


@contextmanager
def _replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, each module computes ``forward(module, ...)``; its hooks still run."""
    for module in modules:
        module.forward = partial(forward, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def read_first_blocks(lm: BaseModel, count: int, ids: Tensor) -> Tensor:
    """Hidden states after the base's first ``count`` blocks, (rows, length, hidden size), of ids (rows, length).

    The other blocks compute nothing. The base's last norm is not applied.
    """
    layers = list(blocks(lm.model))
    seen: list[Any] = []
    handle = layers[count - 1].register_forward_hook(lambda *call: seen.append(call[-1]))
    try:
        with _replaced(layers[count:], lambda *_, **__: seen[0]), lm.autocast():
            lm.model.base_model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    states: Tensor = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return states


@contextmanager
def reading_once(lm: BaseModel, below: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the blocks ``below`` read each batch of token ids only once, without a graph; later they repeat it.

    They are the base's first blocks. Neither they nor the embeddings may change meanwhile. ``lm.model`` must be called
    with ``input_ids`` and without padding, prefix or cache.
    """
    if not below:
        yield
        return
    outputs: dict[tuple[torch.Size, bytes], Any] = {}
    key: tuple[torch.Size, bytes] = (torch.Size(), b"")

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        nonlocal key
        ids = inputs["input_ids"]
        key = (ids.shape, ids.cpu().numpy().tobytes())

    def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
        if key in outputs:
            return outputs[key]
        with torch.no_grad():
            output = type(block).forward(block, *args, **kwargs)
        if block is below[-1]:
            outputs[key] = output
        return output

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with _replaced(below, forward):
            yield
    finally:
        handle.remove()
