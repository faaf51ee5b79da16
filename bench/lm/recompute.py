"""Gradient checkpointing: what a layer computes inside is not kept for the backward pass, but computed again in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputed_layers(model: Any) -> Iterator[None]:
    """Of each layer keep its input alone, for the forward and backward passes inside the block (Chen et al. 2016).

    Gradients stay the same to the bit, dropout included. The library's own switch works in training mode only, in which
    dropout is on.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
