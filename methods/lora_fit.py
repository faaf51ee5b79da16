from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor
from torch.nn import Parameter

from bench import Document, GradientMethod, MethodConfig
from bench.lm.base_model import BaseModel
from bench.seeds import seed_for
from methods.parts.adapters import Adapter, Initialization, Targets, target_modules


class LoraFit(GradientMethod):
    """A low-rank adapter per document, fitted to it by gradient steps from zero and added to the weights.

    The baseline that Generative Adapter (Chen et al. 2024) lacks: an adapter of its shape, on the attention's output
    projections and of rank hidden size / 32 by default, for which gradient steps take the place of the generator. As it
    sums its contexts, the adapters are summed, each fitted on top of those before it; the sum may have any
    rank unless ``truncate`` cuts it back. Costs a forward and a backward pass per step; its state is those layers.
    """

    name = "lora_fit"
    paper = "chen2024generative"

    class Config(GradientMethod.Config):
        learning_rate: float = pydantic.Field(default=3e-3, ge=0, description="constant step size")
        steps_per_document: int = pydantic.Field(default=5, ge=1, description="optimizer steps that fit an adapter")
        rank: int | None = pydantic.Field(
            default=None,
            ge=1,
            description="rank of each adapter; null: hidden size / 32, 128 for 4,096 as in the paper",
        )
        scale: float = pydantic.Field(default=1, gt=0, description="factor of each adapter's update (alpha / rank)")
        targets: Targets = pydantic.Field(
            default="attention_output",
            description="layers to adapt: attention, attention_output (its last layer, as in the paper) or mlp of each "
            "block, all linear layers of the blocks, or everything (those, the embeddings and the output layer)",
        )
        initialization: Initialization = pydantic.Field(
            default="kaiming", description="random factor: kaiming (peft's default) or orthonormal"
        )
        truncate: bool = pydantic.Field(
            default=False, description="cut the sum to its best approximation of the rank after each document"
        )

    grid: ClassVar[Mapping[str, Any]] = {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.rank: int = self.config.rank or max(1, lm.model.config.hidden_size // 32)
        self.adapted = [f"{name}.weight" for name in target_modules(lm.model, self.config.targets)]
        self.fitted: Tensor
        self.register("fitted", torch.tensor(0))
        self._adapter: Adapter | None = None

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        if self._adapter is None:
            c, seed = self.config, seed_for(self.seed, "adapter", int(self.fitted))
            self._adapter = Adapter(self.lm, self.rank, c.scale * self.rank, c.targets, c.initialization, seed)
        return self._adapter.named_parameters()

    def observe(self, document: Document) -> None:
        super().observe(document)
        if self._adapter is not None:
            self._adapter.merge()
            self._adapter = self._optimizer = None
            self.fitted += 1
            if self.config.truncate:
                self._truncate()

    @torch.no_grad()
    def _truncate(self) -> None:
        for name, weight in self.lm.named_tensors():
            if name in self.adapted:
                loaded = self.lm.pristine(name)
                u, s, v = torch.linalg.svd((weight - loaded).float(), full_matrices=False)
                weight.copy_(loaded + (u[:, : self.rank] * s[: self.rank]) @ v[: self.rank])

    def reset(self) -> None:
        self._remove()
        super().reset()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._remove()
        super().load_state_dict(state)

    def _remove(self) -> None:
        if self._adapter is not None:
            self._adapter.remove()
        self._adapter = None
