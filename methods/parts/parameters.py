"""Which of a model's parameters learn, chosen by the model's structure rather than by names of one architecture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn
from torch.nn import Parameter

from bench.errors import BenchError

Subset = Literal["all", "mlp", "middle_third", "last_quarter", "norms_and_biases"]
"""All parameters; those of the blocks' linear layers outside attention; of the blocks in the middle, or of the last
ones; or all vectors (gains of norms, and biases)."""


def select(model: Any, subset: Subset) -> Iterator[tuple[str, Parameter]]:
    """Names and parameters of a subset, in the model's order, tied ones once.

    Raises:
        BenchError: the model has no such parameters.
    """
    chosen = {id(parameter) for parameter in _chosen(model, subset)}
    if not chosen:
        raise BenchError(f"{type(model).__name__} has no parameters for learn={subset}; let others learn.")
    yield from ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in chosen)


def blocks(model: Any) -> nn.ModuleList:
    """The model's blocks, first to last: its longest list of modules (empty for a model without one)."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max(lists, key=len, default=nn.ModuleList())


def _chosen(model: Any, subset: Subset) -> Iterator[Parameter]:
    if subset == "all":
        yield from model.parameters()
    elif subset == "norms_and_biases":
        yield from (parameter for parameter in model.parameters() if parameter.ndim < 2)
    elif subset == "mlp":
        yield from (p for block in blocks(model) for part in _mlp(block) for p in part.parameters())
    else:
        found = list(blocks(model))
        third, quarter = len(found) // 3, max(1, len(found) // 4)
        some = found[third : len(found) - third] if subset == "middle_third" else found[-quarter:]
        yield from (parameter for block in some for parameter in block.parameters())


def _mlp(block: nn.Module) -> Iterator[nn.Module]:
    """The parts of a block that hold a matrix and are not its attention, which transformers' models call so."""
    for part in block.children():
        attends = "attention" in type(part).__name__.lower()
        if not attends and any(parameter.ndim >= 2 for parameter in part.parameters()):
            yield part
