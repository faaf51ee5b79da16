from __future__ import annotations

from pathlib import Path

import pydantic

from methods.parts.adapter_method import AdapterMethod
from methods.parts.adapters import Adapter, Initialization, Targets


class Lora(AdapterMethod):
    """Online fine-tuning of low-rank adapters on frozen weights (LoRA, Hu et al. 2022), all tokens weighted equally.

    Costs a forward and a backward pass per step, with gradients for few weights. The state is the adapter, rank x
    (inputs + outputs) numbers per adapted layer.
    """

    name = "lora"
    paper = "hu2022lora"

    class Config(AdapterMethod.Config):
        rank: int = pydantic.Field(default=16, ge=1, description="rank of each layer's update")
        alpha: float = pydantic.Field(default=16, gt=0, description="scales the update by alpha / rank")
        targets: Targets = pydantic.Field(
            default="all",
            description="layers to adapt: attention, attention_output (its last layer) or mlp of each block, "
            "all linear layers of the blocks, or everything (these, the embeddings and the output layer)",
        )
        initialization: Initialization = pydantic.Field(
            default="kaiming", description="of the random factor: kaiming (peft's default) or orthonormal"
        )

    def build_adapter(self) -> Adapter:
        c = self.config
        return Adapter(self.lm, c.rank, c.alpha, c.targets, c.initialization, self.seed)

    def export(self, folder: str | Path) -> None:
        """Write the adapter as a peft adapter of the base."""
        self.adapter.save(folder)
