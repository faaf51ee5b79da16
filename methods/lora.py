from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pydantic
from torch import Tensor
from torch.nn import Parameter

from bench import GradientMethod, MethodConfig
from bench.lm.base_model import BaseModel
from methods.parts.adapters import Adapter, Initialization, Targets


class Lora(GradientMethod):
    """Online fine-tuning of low-rank adapters beside the frozen weights (LoRA, Hu et al. 2021), every token the same.

    Costs the forward pass and the backward pass through the activations, but gradients of few weights; its
    state is the adapter, rank x (inputs + outputs) numbers for each adapted layer.
    """

    name = "lora"
    paper = "hu2022lora"

    class Config(GradientMethod.Config):
        rank: int = pydantic.Field(default=16, ge=1, description="rank of each layer's update")
        alpha: float = pydantic.Field(default=16, gt=0, description="the update is scaled by alpha / rank")
        targets: Targets = pydantic.Field(
            default="all",
            description="layers to adapt: attention, attention_output (its last layer) or mlp of each block, "
            "all linear layers of the blocks, or everything (those, the embeddings and the output layer)",
        )
        initialization: Initialization = pydantic.Field(
            default="kaiming", description="random factor: kaiming (peft's default) or orthonormal"
        )

    grid: ClassVar[Mapping[str, Any]] = {"learning_rate": (1e-3, 3e-4, 1e-4, 3e-5)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self._adapter: Adapter | None = None

    @property
    def adapter(self) -> Adapter:
        """The adapter, put in when it is first needed."""
        if self._adapter is None:
            c = self.config
            self._adapter = Adapter(self.lm, c.rank, c.alpha, c.targets, c.initialization, self.seed)
        return self._adapter

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        return self.adapter.named_parameters()

    def reset(self) -> None:
        self._remove()
        super().reset()

    def _remove(self) -> None:
        if self._adapter is not None:
            self._adapter.remove()
        self._adapter = None

    def merge(self) -> None:
        """Add what was learned to the base's weights: the model answers as before, and is an ordinary one."""
        self.adapter.merge()
        self._adapter = self._optimizer = None

    def export(self, folder: str | Path) -> None:
        """Write what was learned as a peft adapter of the base."""
        self.adapter.save(folder)

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        if self._adapter is not None:
            state.update({f"adapter.{name}": value for name, value in self._adapter.state_dict().items()})
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._remove()
        saved = {name.removeprefix("adapter."): state[name] for name in state if name.startswith("adapter.")}
        if saved:
            self.adapter.load_state_dict(saved)
        super().load_state_dict(state)
