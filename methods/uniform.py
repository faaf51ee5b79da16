from collections.abc import Iterable

import pydantic
from torch.nn import Parameter

from bench import GradientMethod
from methods.parts.parameters import Subset, select


class Uniform(GradientMethod):
    """Online fine-tuning on every document, with the same weight for every token.

    The standard baseline (Uniform in Hu et al. 2023): gradient steps on each document's mean next-token loss as it
    arrives. ``learn`` limits it to a part of the model: with ``embeddings`` it is a control for methods whose gain may
    be that of single words. Costs one forward and one backward pass per step.
    """

    name = "uniform"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        learn: Subset = pydantic.Field(default="all", description="parameters that learn")

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        return select(self.lm.model, self.config.learn)
