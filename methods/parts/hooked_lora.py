"""Low-rank adapters that belong to a learner: hooks add their outputs to those of layers of the frozen base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.adapters import target_modules


class Target(NamedTuple):
    """A linear layer of the base, and the indices of its outputs to adapt; None for all."""

    module: Any
    outputs: Tensor | None = None


class HookedLora(nn.Module):
    """LoRA (Hu et al. 2021) on each target: alpha / rank B dropout(A x) is added to the outputs. B starts at zero.

    A, (rank, inputs), and B, (outputs, rank), are in float32. The adapters act from :meth:`attach` to :meth:`remove`,
    or inside :meth:`attached`.
    """

    def __init__(self, targets: Sequence[Target], rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.targets, self.alpha = tuple(targets), alpha  # in a tuple: the base is not part of the learner
        self.downs, self.ups, self.dropout = nn.ModuleList(), nn.ModuleList(), nn.Dropout(dropout)
        for module, indices in targets:
            linear = isinstance(module, nn.Linear)  # whose weights have another shape if they are quantized
            inputs, outputs = (module.in_features, module.out_features) if linear else module.weight.shape
            down = nn.Linear(inputs, rank, bias=False)
            up = nn.Linear(rank, outputs if indices is None else len(indices), bias=False)
            nn.init.zeros_(up.weight)
            self.downs.append(down)
            self.ups.append(up)
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Add the adapters to whatever the base reads; no effect if they are attached."""
        if not self._handles:
            self._handles = [
                module.register_forward_hook(partial(self._add, indices, down, up))
                for (module, indices), down, up in zip(self.targets, self.downs, self.ups, strict=True)
            ]

    def remove(self) -> None:
        """Detach the adapters from the base."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the adapters while inside."""
        self.attach()
        try:
            yield
        finally:
            self.remove()

    def _add(
        self, indices: Tensor | None, down: Any, up: Any, _: Any, inputs: tuple[Tensor, ...], outputs: Tensor
    ) -> Tensor:
        """Forward hook: the layer's outputs (..., outputs) plus the low-rank product."""
        low = self.dropout(down(inputs[0].to(down.weight.dtype)))  # (..., rank)
        delta = (self.alpha / down.out_features * up(low)).to(outputs.dtype)  # (..., adapted outputs)
        return outputs + delta if indices is None else outputs.index_add(-1, indices, delta)


def key_value_targets(lm: BaseModel, last: int | None = None) -> list[Target]:
    """The layers, or the outputs of fused layers in any layout, that make keys and values in the last n or all blocks.

    An output makes keys or values if the cache of one token has a gradient in it, with each layer's outputs detached
    from the layers before.

    Raises:
        BenchError: the model keeps no keys and values, or no linear layer of its attention makes them.
    """
    outputs: dict[str, Tensor] = {}

    def detach(name: str, _: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        outputs[name] = out.detach().requires_grad_()  # (1, 1, outputs)
        return outputs[name]

    modules = {name: lm.model.get_submodule(name) for name in target_modules(lm.model, "attention")}
    hooks = [module.register_forward_hook(partial(detach, name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            begin = torch.tensor([[lm.bos_id]], device=lm.device)  # (1, 1)
            cache: Any = lm.model(input_ids=begin, use_cache=True).past_key_values
    finally:
        for hook in hooks:
            hook.remove()
    targets = []
    for side in ("keys", "values"):
        layers = [layer for layer in getattr(cache, "layers", []) if getattr(layer, side, None) is not None]
        states = [getattr(layer, side) for layer in layers]  # each (1, heads, 1, head size)
        states = states[-last if last else None :]
        if not any(state.requires_grad for state in states):
            raise BenchError(f"{type(lm.model).__name__} shows no {side} to adapt. Adapt none, or choose another base.")
        ones = [torch.ones_like(state) for state in states]
        gradients = torch.autograd.grad(states, list(outputs.values()), ones, retain_graph=True, allow_unused=True)
        for name, gradient in zip(outputs, gradients, strict=True):
            if gradient is not None and gradient.any():
                indices = None if gradient.all() else gradient.flatten().nonzero()[:, 0]  # (adapted outputs,)
                targets.append(Target(modules[name], indices))
    return targets
