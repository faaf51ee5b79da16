"""Low-rank adapters: inserted into the base model by peft, removed without a trace, merged, and exported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from methods.parts.parameters import blocks, is_attention, parts

Targets = Literal["attention", "attention_output", "mlp", "all", "everything"]
"""Modules to adapt: the linear layers of each block's attention, the last of these in the order of computation (the
output projection), those outside its attention, all linear layers of the blocks, or these with the embeddings and the
output layer."""
Initialization = Literal["kaiming", "orthonormal"]
"""Initialization of the random factor: peft's, or orthonormal on the side of the hidden states."""
_LINEAR = (nn.Linear, Conv1D)
_NAME = "default"


def target_modules(model: Any, targets: Targets) -> list[str]:
    """Names of the modules to adapt, chosen by the model's structure.

    ``everything`` leaves out an embedding table tied to the output layer: an adapter on one would untie them.

    Raises:
        BenchError: the model has none, or only such as no adapter reaches.
    """
    chosen = set(_modules(model, targets))
    names = [name for name, module in model.named_modules() if module in chosen]
    if not names:
        fused = next(iter(unadapted(model, targets)), None)
        reason = "" if fused is None else f" ({fused} is not a linear layer)"
        raise BenchError(f"{type(model).__name__} has no layers for targets={targets}{reason}; choose other targets.")
    return names


def unadapted(model: Any, targets: Targets) -> list[str]:
    """Names of the matrices of the targeted parts that no adapter reaches, such as those of fused experts."""
    if targets == "attention_output":
        return []
    adapted = {id(module.weight) for module in _modules(model, targets)}
    matrices = {
        id(parameter)
        for part in (_targeted_parts(model, targets))
        for parameter in part.parameters()
        if parameter.numel() > max(parameter.shape, default=0) and id(parameter) not in adapted
    }
    return [name for name, parameter in model.named_parameters() if id(parameter) in matrices]


def _targeted_parts(model: Any, targets: Targets) -> Iterator[nn.Module]:
    wanted = {"attention": (True,), "attention_output": (True,), "mlp": (False,)}.get(targets, (True, False))
    yield from (part for block in blocks(model) for part in parts(block) if is_attention(part) in wanted)


def _modules(model: Any, targets: Targets) -> Iterator[Any]:
    if targets == "everything":
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        tied = ends if ends[0].weight is ends[1].weight else ()
        yield from (module for module in model.modules() if _is_adaptable(module) and module not in tied)
    elif targets == "attention_output":
        yield from output_layers(model, "attention").values()
    else:
        for part in _targeted_parts(model, targets):
            yield from (module for module in part.modules() if isinstance(module, _LINEAR))


def _is_adaptable(module: nn.Module) -> bool:
    """True for linear layers and tables of embeddings; some tables of positions are read in a way of their own."""
    return isinstance(module, _LINEAR) or (
        isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    )


def output_layers(model: Any, part: Literal["attention", "mlp"]) -> dict[nn.Module, Any]:
    """The output projection of each block's attention, or of what is outside it, by block.

    It is the linear layer that computes last, with outputs of the hidden size: the order of declaration says nothing.
    """
    linear: dict[nn.Module, set[nn.Module]] = {}
    for block in blocks(model):
        modules = (m for p in parts(block) if is_attention(p) == (part == "attention") for m in p.modules())
        linear[block] = {m for m in modules if isinstance(m, _LINEAR) and _outputs(m) == model.config.hidden_size}
    computed: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: computed.append(module))
        for module in set().union(*linear.values())
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a model in training mode may draw dropout
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    last = ((block, [module for module in computed if module in layers][-1:]) for block, layers in linear.items())
    return {block: layers[0] for block, layers in last if layers}


def _outputs(module: Any) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # quantized weights have other shapes


class Adapter:
    """LoRA on modules of ``lm.model`` (Hu et al. 2021): y = W x + alpha / rank B A x, where only A and B learn.

    ``targets`` are a kind of modules or their names. Construction inserts the adapter into the model. It changes
    nothing until it learns: one factor is zero, and the other is drawn from ``seed`` alone. ``lm`` names the base's
    tensors as before. With an orthonormal factor the first gradient step is (alpha / rank)^2 times that of the full
    weights, projected onto a random subspace of ``rank`` dimensions; at full rank the projection is the identity.
    """

    def __init__(
        self,
        lm: BaseModel,
        rank: int,
        alpha: float,
        targets: Targets | list[str],
        initialization: Initialization = "kaiming",
        seed: int = 0,
    ) -> None:
        import peft  # takes seconds to import

        names = targets if isinstance(targets, list) else target_modules(lm.model, targets)
        self.unadapted = [] if isinstance(targets, list) else unadapted(lm.model, targets)
        """Matrices of the targeted parts that the adapter does not reach."""
        config: Any = peft.LoraConfig(r=rank, target_modules=names)
        config.lora_alpha = alpha  # declared int, but any number works
        self.lm = lm
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # peft warns about Conv1D layers, which it handles
            torch.manual_seed(seed)
            try:
                self._peft: Any = peft.get_peft_model(lm.model, config)
            except ValueError as error:
                raise BenchError(
                    f"peft cannot adapt {type(lm.model).__name__}: {error} Choose other targets."
                ) from None
        if initialization == "orthonormal":
            self._orthonormalize(torch.Generator().manual_seed(seed))

    def _orthonormalize(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in ("lora_A", "lora_embedding_B"):
                factor = nn.init.orthogonal_(torch.empty(parameter.shape), generator=generator)
                parameter.data.copy_(factor)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The adapter's parameters by module and factor, such as ``model.layers.0.mlp.up_proj.lora_A``."""
        base = {id(tensor) for _, tensor in self.lm.named_tensors()}
        for name, parameter in self.lm.model.named_parameters():
            if id(parameter) not in base:
                yield name.removesuffix(".weight").removesuffix(f".{_NAME}"), parameter

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the adapter's parameters by name."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            KeyError: a parameter is missing from ``state``.
        """
        for name, parameter in self.named_parameters():
            parameter.data.copy_(state[name])

    def remove(self) -> None:
        """Remove the adapter: the model has its original modules and weights."""
        self._peft.unload()

    def merge(self) -> None:
        """Add the adapter to the base's weights and remove it: the model computes the same."""
        self._peft.merge_and_unload()

    def save(self, folder: str | Path) -> None:
        """Write a peft adapter: ``peft.PeftModel.from_pretrained(base, folder)`` loads it onto the same base."""
        self._peft.save_pretrained(str(folder), save_embedding_layers=False)
