"""Bases whose matrices are stored in 8 or 4 bits (bitsandbytes): they are read, and do not learn.

Such a base is a folder like any other, with ``quantization_config`` in its configuration, as transformers saves it.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bench.errors import BenchError
from bench.lm.placement import replace_forward
from bench.paths import CONFIG

METHOD = "bitsandbytes"
logging.getLogger(METHOD).setLevel(logging.ERROR)  # it names kernels that are not there, as soon as peft imports it
QUANTIZATION = "quantization_config"


def check(folder: Path, config: Any) -> None:
    """Check that a base can be loaded if it is quantized; ``config`` is its configuration.

    Raises:
        BenchError: it is quantized in another way, or bitsandbytes is not installed.
    """
    settings = getattr(config, QUANTIZATION, None)
    if settings is None:
        return
    stated = settings if isinstance(settings, Mapping) else vars(settings)
    old = METHOD if stated.get("load_in_8bit") or stated.get("load_in_4bit") else None  # before methods were named
    method = stated.get("quant_method", old)
    if getattr(method, "value", method) != METHOD:
        raise BenchError(f"{folder} is quantized by {method}. Use a base in 16 or 32 bits, or one of {METHOD}.")
    if (storage := stated.get("bnb_4bit_quant_storage") or "uint8") != "uint8":
        raise BenchError(f"{folder} keeps its 4 bits as {storage}. Save it with bnb_4bit_quant_storage=torch.uint8.")
    if importlib.util.find_spec(METHOD) is None:
        raise BenchError(f"{folder} is quantized by {METHOD}, which is not installed: pip install {METHOD}.")


def is_quantized(model: Any) -> bool:
    """True if a model has matrices that are quantized."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def is_stored(folder: Path) -> bool:
    """True if the model in a folder is quantized."""
    return QUANTIZATION in json.loads((folder / CONFIG).read_bytes())


def numbers(weights: Tensor) -> int:
    """How many numbers a matrix has: two in each byte if they have 4 bits."""
    return weights.numel() * (2 if weights.dtype == torch.uint8 else 1)


def multiply_dequantized(model: Any) -> None:
    """Let each quantized layer multiply with the matrix that its bits stand for, as any other linear layer does.

    The kernels of bitsandbytes would make the result for one token depend on others in the batch (LLM.int8() rounds
    activations, and picks outlier columns over all rows), change biases and the order of weights in memory, and hide
    the operations from whoever counts them.
    """
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and not weight.is_floating_point():
            replace_forward(module, _forward)


def _forward(module: Any, inputs: Tensor) -> Tensor:
    product: Tensor = _Product.apply(inputs, module)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """x W^T with a quantized W, which is not kept in float for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, module: Any) -> Tensor:
        ctx.module = module
        return functional.linear(inputs, _matrix(module).to(inputs.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ _matrix(ctx.module).to(gradient.dtype), None


def _matrix(module: Any) -> Tensor:
    """The weights of a layer as numbers, (outputs, inputs)."""
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    if weight.dtype == torch.int8:
        matrix: Tensor = weight.data * (weight.SCB[:, None] / 127)
    else:
        matrix = dequantize_4bit(weight.data, weight.quant_state)
    return matrix
