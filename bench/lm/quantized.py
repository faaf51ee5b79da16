"""Bases whose matrices are stored in 8 or 4 bits (bitsandbytes): they are read, and do not learn.

Such a base is a folder like any other, with ``quantization_config`` in its configuration, as transformers saves it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.errors import BenchError
from bench.paths import CONFIG

METHOD = "bitsandbytes"
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
    method = str(getattr(stated.get("quant_method"), "value", stated.get("quant_method")))
    if method != METHOD:
        raise BenchError(f"{folder} is quantized by {method}. Use a base in 16 or 32 bits, or one of {METHOD}.")
    if importlib.util.find_spec(METHOD) is None:
        raise BenchError(
            f"{folder} is quantized by {METHOD}, which is not installed. Install it: "
            'pip install "online-adaptation-bench[quantized]"'
        )


def is_quantized(model: Any) -> bool:
    """True if a model has matrices that are quantized."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def placement(folder: Path, device: str) -> dict[str, Any]:
    """Options to load the model in a folder with: a quantized one is loaded onto its device, and is not moved later."""
    return {"device_map": {"": device}} if QUANTIZATION in json.loads((folder / CONFIG).read_bytes()) else {}


def numbers(weights: torch.Tensor) -> int:
    """How many numbers a matrix has: two in each byte if they have 4 bits."""
    return weights.numel() * (2 if weights.dtype == torch.uint8 else 1)


def compute_in_float32(model: Any) -> None:
    """Let matrices be multiplied in float32, or as autocast says, whatever the base was saved with.

    bitsandbytes would give the biases the type it multiplies in and, on a CPU, store matrices of 4 bits in another
    order once they are read without gradients. The weights of a base stay as they are.
    """
    for module in model.modules():
        if isinstance(getattr(module, "compute_dtype", None), torch.dtype):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False
