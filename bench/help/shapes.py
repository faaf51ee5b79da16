"""Bases of the hub that experiments name: what they take is estimated from their shapes, before a download."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.lm.precision import DTYPES

_LLAMA = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_PYTHIA = {"model_type": "gpt_neox", "vocab_size": 50304}
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "distilgpt2": {"model_type": "gpt2", "n_layer": 6},
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "meta-llama/Llama-2-7b-hf": _LLAMA,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA,
    "mistralai/Mistral-7B-Instruct-v0.2": {"model_type": "mistral"},
    "EleutherAI/pythia-160m": {
        **_PYTHIA,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "EleutherAI/pythia-410m": {
        **_PYTHIA,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "EleutherAI/pythia-1b": {
        **_PYTHIA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
    },
}
"""The architecture of each base, as far as it differs from the defaults of transformers."""
TOKENS = 512
"""Tokens of the document whose time is estimated."""
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192, "mps": 2048}
"""Rows of the matrices that are multiplied to measure a device's rate."""


class Size(NamedTuple):
    """The number of weights of a base, tied ones counted once, and of those that a pass multiplies with."""

    weights: int
    multiplied: int


def size_of(name: str) -> Size | None:
    """The size of a base of the hub; None if its shape is not known here."""
    shape = SHAPES.get(name.partition("@")[0])
    if shape is None:
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    weights = sum(parameter.numel() for parameter in model.parameters())
    looked_up = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return Size(weights, weights - looked_up)


@functools.cache
def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Operations per second of products of square matrices on a device, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def seconds() -> float:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        return time.perf_counter() - started

    return 2 * size**3 / min(seconds() for _ in range(5))


def least_times(size: Size, device: str, dtype: str) -> str:
    """The least that a document can take on this device, with a base of this size.

    A pass over T tokens takes 2 N T operations, a step of fine-tuning 6 N T, with N weights that are multiplied
    (docs/scale.md).
    """
    rate = matrix_rate(device, DTYPES[dtype], PRODUCT_SIZE[device])
    read, learn = (_time(operations * size.multiplied * TOKENS / rate) for operations in (2, 6))
    return (
        f"{read} or more to read a document of {TOKENS} tokens, {learn} or more for a step of fine-tuning on it, at "
        f"the {rate / 1e12:.2g} TFLOP/s of matrix products in {dtype} here"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
