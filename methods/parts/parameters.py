"""Selection of the parameters that learn, by the model's structure rather than by names of one architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import pydantic
from torch import nn
from torch.nn import Parameter

from bench.errors import BenchError

Top = Annotated[str, pydantic.StringConstraints(pattern=r"^top_[1-9][0-9]*$")]
"""``top_4``: the parameters of the last 4 blocks, and so on."""
Subset = Literal["all", "embeddings", "mlp", "middle_third", "last_quarter", "norms_and_biases"] | Top
"""All parameters, the input embeddings (with the output layer only if it is tied to them), those of the blocks' MLPs,
those of the middle third, the last quarter or the last n of the blocks, or all vectors (gains of norms, and biases)."""


def select(model: Any, subset: Subset) -> Iterator[tuple[str, Parameter]]:
    """Names and parameters of a subset, in the model's order; tied parameters come once.

    Raises:
        BenchError: the model has no such parameters, or fewer blocks than ``top_n`` counts.
    """
    chosen = {id(parameter) for parameter in _parameters(model, subset)}
    if not chosen:
        raise BenchError(f"{type(model).__name__} has no parameters for learn={subset}; choose another subset.")
    yield from ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in chosen)


def blocks(model: Any) -> nn.ModuleList:
    """The model's blocks, first to last: its largest list of modules (empty for a model without lists).

    The list with the most parameters is meant: the experts of a block may be more than the blocks, but are a part.
    """
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return max(lists, key=lambda modules: sum(p.numel() for p in modules.parameters()), default=nn.ModuleList())


def top(model: Any, subset: Top) -> list[nn.Module]:
    """The last n blocks that ``top_n`` names.

    Raises:
        BenchError: the model has fewer.
    """
    layers, count = list(blocks(model)), int(subset.removeprefix("top_"))
    if count > len(layers):
        raise BenchError(
            f"learn={subset} needs {count} blocks, and the base has {len(layers)}; choose a smaller number."
        )
    return layers[len(layers) - count :]


def blocks_below(model: Any, learning: Iterable[Parameter]) -> list[nn.Module]:
    """The blocks before the first that has a learning parameter; none if parameters outside the blocks learn."""
    layers, ids = list(blocks(model)), {id(parameter) for parameter in learning}
    owned = [{id(parameter) for parameter in block.parameters()} for block in layers]
    if not ids <= set().union(*owned):
        return []
    return layers[: next((i for i, own in enumerate(owned) if own & ids), len(layers))]


def parts(block: nn.Module) -> Iterator[nn.Module]:
    """The parts of a block, such as its attention and its MLP; those of a layer within it in place of the layer."""
    for part in block.children():
        if type(part).__name__.endswith(("Layer", "Block")):
            yield from parts(part)
        else:
            yield part


def is_attention(part: nn.Module) -> bool:
    """True for the attention of a block, which transformers names so in every architecture."""
    return "attention" in type(part).__name__.lower()


def _parameters(model: Any, subset: Subset) -> Iterator[Parameter]:
    if subset == "all":
        yield from model.parameters()
    elif subset == "embeddings":
        yield from model.get_input_embeddings().parameters()
    elif subset == "norms_and_biases":
        yield from (parameter for parameter in model.parameters() if parameter.ndim < 2)
    elif subset == "mlp":
        yield from (p for block in blocks(model) for part in _mlp(block) for p in part.parameters())
    elif subset.startswith("top_"):
        yield from (parameter for block in top(model, subset) for parameter in block.parameters())
    else:
        layers = list(blocks(model))
        third, quarter = len(layers) // 3, max(1, len(layers) // 4)
        chosen = layers[third : len(layers) - third] if subset == "middle_third" else layers[-quarter:]
        yield from (parameter for block in chosen for parameter in block.parameters())


def _mlp(block: nn.Module) -> Iterator[nn.Module]:
    """The parts of a block, other than its attention, that have a matrix."""
    for part in parts(block):
        if not is_attention(part) and any(parameter.ndim >= 2 for parameter in part.parameters()):
            yield part
