from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Document, MethodConfig
from bench.contract.gradient import Optimizer
from bench.contract.search import Range, SearchSpace
from bench.lm.probe import Ability
from bench.seeds import seed_for
from methods.parts.adapter_method import AdapterMethod
from methods.parts.adapters import Adapter, Initialization, Targets, target_modules


class LoraFit(AdapterMethod):
    """A low-rank adapter per document, trained on it from zero and merged into the weights.

    A baseline that Chen et al. (2024) do not report: adapters of the shape of Generative Adapter's, by default on the
    output projections of attention with rank hidden size / 32, but fitted by gradient steps. The adapters add up, each
    fitted with the earlier ones in the weights. Their sum may have any rank. Costs a forward and a backward pass per
    step; the state is the adapted layers.
    """

    name = "lora_fit"
    paper = "chen2024generative"

    class Config(AdapterMethod.Config):
        optimizer: Optimizer = pydantic.Field(default="adam", description="optimizer, a new one for each adapter")
        learning_rate: float = pydantic.Field(default=3e-3, ge=0, description="constant step size")
        steps_per_document: int = pydantic.Field(default=5, ge=1, description="optimizer steps per adapter")
        rank: int | None = pydantic.Field(
            default=None,
            ge=1,
            description="rank of each adapter; null: hidden size / 32, which is 128 for 4,096 as in the paper",
        )
        scale: float = pydantic.Field(default=1, gt=0, description="factor of each adapter's update (alpha / rank)")
        targets: Targets = pydantic.Field(
            default="attention_output",
            description="layers to adapt: attention, attention_output (its last layer, as in the paper) or mlp of each "
            "block, all linear layers of the blocks, or everything (these, the embeddings and the output layer)",
        )
        initialization: Initialization = pydantic.Field(
            default="kaiming", description="of the random factor: kaiming (peft's default) or orthonormal"
        )

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        """Weights that can change: adapters are merged into them."""
        return ("float_weights",)

    @classmethod
    def search_space(cls, config: Any) -> SearchSpace:
        """That of the base class, with larger step sizes for adaptive optimizers: each adapter starts from zero."""
        space = super().search_space(config)
        return space if config.optimizer == "sgd" else {**space, "learning_rate": Range(low=1e-3, high=1e-1, log=True)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.rank: int = self.config.rank or max(1, lm.model.config.hidden_size // 32)
        self.adapted = target_modules(lm.model, self.config.targets)
        self.fitted: Tensor
        self.register("fitted", torch.tensor(0))

    def build_adapter(self) -> Adapter:
        c, seed = self.config, seed_for(self.seed, "adapter", int(self.fitted))
        return Adapter(self.lm, self.rank, c.scale * self.rank, self.adapted, c.initialization, seed)

    def observe(self, document: Document) -> None:
        super().observe(document)
        if self.is_adapted:  # false for a document without tokens
            self.merge()
            self.fitted += 1
