"""Floating-point operations: counted while code runs, and estimated from what the base reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from bench.lm.quantized import numbers

if TYPE_CHECKING:
    from bench.lm.base_model import BaseModel

Shape = tuple[int, ...]


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


def _matrix_vector(matrix: Shape, vector: Shape, *_: Any, **__: Any) -> int:
    return 2 * matrix[0] * matrix[1]


_aten: Any = torch.ops.aten
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # PyTorch has formulas for the attention kernels of GPUs only, and none for matrix times vector
    _aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
    _aten.mv: shape_wrapper(_matrix_vector),
}


class FlopCounter(TorchDispatchMode):
    """Context manager that counts in :attr:`flops` the floating-point operations that run inside it.

    The formulas are those of ``torch.utils.flop_counter``. Products of matrices (m x k) (k x n) cost 2mkn, one
    multiply-add being two operations; attention costs its two products over all pairs of query and key, those that the
    mask hides included; its backward pass costs five such products, and convolutions cost their products. Everything
    else (elementwise operations, sums, look-ups of embeddings, decompositions) is not counted. Backward passes,
    gradients of gradients and ``torch.func`` are counted as the products that they run. Counters can be nested, and a
    counter that is entered again goes on counting. The results of what runs inside do not change in a single bit.

    PyTorch's FlopCounterMode also tracks modules and decomposes operators without a formula. That takes longer than
    the work of a small model, and it changes the last bits of gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and torch.is_inference_mode_enabled():
            with self:  # there, products arrive before they are decomposed into operators with a formula
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class ReadingMeter:
    """Context manager that estimates in :attr:`flops` what it costs to read what the base reads inside it.

    A forward pass costs 2 operations per weight and token, and 4 x layers x width for each pair of a token and one that
    it attends to, those in the cache included (Kaplan et al. 2020). If gradients are enabled, :attr:`backward` adds up
    the backward pass: twice as much for the weights and, since the scores are computed again, 2.5 times as much for
    attention. This is a measure of work to extrapolate costs with, not a count: it knows neither frozen weights nor
    anything but the base, but it takes no time.
    """

    def __init__(self, lm: BaseModel) -> None:
        self.flops, self.backward = 0.0, 0.0
        self._base: Any = getattr(lm.model, "base_model", lm.model)  # which methods also call without its head
        tables = {id(module.weight) for module in lm.model.modules() if isinstance(module, torch.nn.Embedding)}
        tables -= {id(getattr(lm.model.get_output_embeddings(), "weight", None))}  # one that is also multiplied with
        self._per_token = 2 * sum(numbers(weights) for weights in lm.model.parameters() if id(weights) not in tables)
        layers = getattr(lm.model.config, "num_hidden_layers", 0)
        self._per_pair = 4 * layers * getattr(lm.model.config, "hidden_size", 0)

    def __enter__(self) -> Self:
        self._handle = self._base.register_forward_pre_hook(self._read, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _read(self, _: Any, args: Any, kwargs: Any) -> None:
        inputs = (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        rows, tokens = next((value.shape[:2] for value in inputs if isinstance(value, torch.Tensor)), (0, 0))
        cache = kwargs.get("past_key_values")
        held = cache.get_seq_length() if cache is not None else 0
        weights, pairs = rows * tokens * self._per_token, rows * tokens * (tokens + held) * self._per_pair
        self.flops += weights + pairs
        self.backward += (2 * weights + 2.5 * pairs) * torch.is_grad_enabled()
