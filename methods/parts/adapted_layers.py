"""Linear layers of a base that take an update: merged into their weights, or added to their output row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.adapters import output_layers
from methods.parts.parameters import blocks
from methods.parts.weight_generator import Target

_PARTS: dict[Target, tuple[Literal["attention", "mlp"], ...]] = {
    "attention_output": ("attention",),
    "mlp_output": ("mlp",),
    "both": ("attention", "mlp"),  # in the order of computation
}


class Activations(NamedTuple):
    """Activations that the generator of an adapted layer reads."""

    hidden: Tensor  # input of the layer's block, (rows, length, hidden size)
    inputs: Tensor  # the layer's own input, (rows, length, inputs)
    last: Tensor  # last hidden state of the base, (rows, length, hidden size)


class AdaptedLayers:
    """The adapted layers of ``lm.model``, in the order of computation.

    Raises:
        BenchError: the model has no such layers or blocks.
    """

    def __init__(self, lm: BaseModel, target: Target, indices: Sequence[int] | None = None) -> None:
        self.lm = lm
        self.names: list[str] = []
        self.modules: list[Any] = []
        self._blocks: list[nn.Module] = []
        model_blocks = list(blocks(lm.model))
        names = {module: name for name, module in lm.model.named_modules()}
        chosen = range(len(model_blocks)) if indices is None else indices
        if any(index >= len(model_blocks) for index in chosen):
            raise BenchError(
                f"The base has no block {max(chosen)}: it has {len(model_blocks)}, counted from 0. Set training.blocks "
                f"to smaller numbers, or leave it out for all blocks."
            )
        layers = [output_layers(lm.model, part) for part in _PARTS[target]]
        for block in (model_blocks[index] for index in sorted(set(chosen))):
            for module in (of_part[block] for of_part in layers if block in of_part):
                self.names.append(names[module])
                self.modules.append(module)
                self._blocks.append(block)
        if not self.modules:
            raise BenchError(f"{type(lm.model).__name__} has no layers for target={target}; choose another target.")

    def __len__(self) -> int:
        return len(self.names)

    def shapes(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each layer."""
        shapes = [tuple(module.weight.shape) for module in self.modules]
        return [
            (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
            for module, (rows, columns) in zip(self.modules, shapes, strict=True)
        ]

    def set_updates(self, updates: Sequence[Tensor]) -> None:
        """Set each layer's weights to the base's plus its update, (outputs, inputs)."""
        for name, module, update in zip(self.names, self.modules, updates, strict=True):
            loaded = self.lm.pristine(f"{name}.weight")
            oriented = update.mT if isinstance(module, Conv1D) else update
            module.weight.data.copy_(loaded.to(oriented.dtype) + oriented.to(loaded.device))

    def restore(self) -> None:
        """Set each layer's weights to the base's."""
        for name, module in zip(self.names, self.modules, strict=True):
            module.weight.data.copy_(self.lm.pristine(f"{name}.weight"))

    @contextmanager
    def adding(self, update: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        """While entered, the output of layer i gains ``update(i, block input, layer input)``, or nothing for None."""
        block_inputs: dict[int, Tensor] = {}
        handles = []
        for i, (block, module) in enumerate(zip(self._blocks, self.modules, strict=True)):

            def store(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], i: int = i) -> None:
                block_inputs[i] = args[0] if args else kwargs["hidden_states"]

            def add(_: Any, args: tuple[Any, ...], output: Tensor, i: int = i) -> Tensor | None:
                hidden = block_inputs[i].to(self.lm.device)  # other blocks may be elsewhere
                own = args[0].to(self.lm.device).reshape(*hidden.shape[:-1], -1)  # some flatten rows and length
                with torch.autocast(self.lm.device.type, enabled=False):  # the update has a precision of its own
                    added = update(i, hidden, own)
                return None if added is None else output + added.to(output).reshape(output.shape)

            handles.append(block.register_forward_pre_hook(store, with_kwargs=True))
            handles.append(module.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def last_hidden(self, ids: Tensor) -> Tensor:
        """Last hidden states of the base, (rows, length, hidden size), of token ids (rows, length)."""
        with self.lm.autocast():
            hidden: Tensor = self.lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def activations(self, ids: Tensor) -> list[Activations]:
        """Each layer's activations with the weights as they are, of token ids (rows, length)."""
        inputs: list[tuple[Tensor, Tensor]] = []
        with self.adding(lambda _, hidden, own: inputs.append((hidden, own))):
            last = self.last_hidden(ids)
        return [Activations(hidden, own, last) for hidden, own in inputs]
