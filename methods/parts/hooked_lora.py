"""Low-rank adapters that belong to a learner: hooks put them beside layers of the frozen base, which stays as it is."""

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


class Place(NamedTuple):
    """A linear layer of the base, and the indices of its outputs that are adapted; None for all."""

    module: Any
    outputs: Tensor | None = None


class HookedLora(nn.Module):
    """LoRA (Hu et al. 2021) on each place: alpha / rank B dropout(A x) is added to the outputs. B starts at zero.

    A, (rank, inputs), and B, (outputs, rank), are in float32. They act from :meth:`attach` to :meth:`remove`, or inside
    of :meth:`attached`.
    """

    def __init__(self, places: Sequence[Place], rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.places, self.alpha = tuple(places), alpha  # in a tuple: the base is no part of the learner
        self.downs, self.ups, self.dropout = nn.ModuleList(), nn.ModuleList(), nn.Dropout(dropout)
        for module, some in places:
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
            down = nn.Linear(inputs, rank, bias=False)
            up = nn.Linear(rank, outputs if some is None else len(some), bias=False)
            nn.init.zeros_(up.weight)
            self.downs.append(down)
            self.ups.append(up)
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Let them act on whatever the base reads, unless they do already."""
        if not self._handles:
            self._handles = [
                module.register_forward_hook(partial(self._add, some, down, up))
                for (module, some), down, up in zip(self.places, self.downs, self.ups, strict=True)
            ]

    def remove(self) -> None:
        """Leave the base as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let them act while inside."""
        self.attach()
        try:
            yield
        finally:
            self.remove()

    def _add(self, some: Tensor | None, down: Any, up: Any, _: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        low = self.dropout(down(given[0].to(down.weight.dtype)))
        made = (self.alpha / down.out_features * up(low)).to(out.dtype)
        return out + made if some is None else out.index_add(-1, some, made)


def key_value_places(lm: BaseModel, last: int | None = None) -> list[Place]:
    """Where the last so many blocks, or all, make their keys, and where their values; fused layers in any layout.

    They are told by what the cache of one token follows from, each layer's outputs being cut off from those before it.

    Raises:
        BenchError: no keys and values are kept, or no linear layer of the attention makes them.
    """
    made: dict[str, Tensor] = {}

    def cut(name: str, _: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        made[name] = out.detach().requires_grad_()
        return made[name]

    modules = {name: lm.model.get_submodule(name) for name in target_modules(lm.model, "attention")}
    hooks = [module.register_forward_hook(partial(cut, name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            begin = torch.tensor([[lm.bos_id]], device=lm.device)
            cache: Any = lm.model(input_ids=begin, use_cache=True).past_key_values
    finally:
        for hook in hooks:
            hook.remove()
    places = []
    for side in ("keys", "values"):
        kept = [getattr(layer, side) for layer in getattr(cache, "layers", [])][-last if last else None :]
        if not any(each.requires_grad for each in kept):
            raise BenchError(f"{type(lm.model).__name__} shows no {side} to adapt. Adapt none, or choose another base.")
        ones = [torch.ones_like(each) for each in kept]
        slopes = torch.autograd.grad(kept, list(made.values()), ones, retain_graph=True, allow_unused=True)
        for name, slope in zip(made, slopes, strict=True):
            if slope is not None and slope.any():
                places.append(Place(modules[name], None if slope.all() else slope.flatten().nonzero()[:, 0]))
    return places
