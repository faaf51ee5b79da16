"""Recipes of question-answering tuning: what a tuned base is made from."""

from __future__ import annotations

import math
from typing import Literal

import pydantic

from bench.data.prompt_format import PLAIN, PromptFormat
from bench.paths import MODELS
from bench.settings import Settings

DEFAULT = MODELS / "smollm2-qa" / "recipe.yaml"
"""The recipe of the committed adapter."""


class QaRecipe(Settings):
    """Everything that a tuned base depends on, besides the data and the weights of the base.

    A step reads a number of ``qa_train`` documents and asks every question on each of them, with the document in the
    prompt. Some of the questions are also asked without it.
    """

    base: str = pydantic.Field(description="an embedded name, a local folder or a hub id")
    prompt: PromptFormat = PLAIN
    datasets: list[str] = pydantic.Field(
        min_length=1,
        description="they take turns in the documents of a step; one that is listed twice gets two turns",
    )
    documents: int = pydantic.Field(ge=1, description="documents in a step")
    closed_share: float = pydantic.Field(
        ge=0, le=0.5, description="share of a step's items that are asked without the document"
    )
    rank: int | None = pydantic.Field(
        ge=1, description="of LoRA (Hu et al. 2021) on all linear layers but the output layer; null tunes all weights"
    )
    scale: float = pydantic.Field(default=2.0, gt=0, description="alpha / rank of LoRA, a power of two")
    steps: int = pydantic.Field(ge=1)
    learning_rate: float = pydantic.Field(gt=0, description="of AdamW: linear warm-up, then half a cosine to zero")
    warmup: int = pydantic.Field(ge=0, description="steps")
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    clip: float = pydantic.Field(default=1.0, gt=0, description="largest global gradient norm")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    seed: int = 0
    validate_every: int = pydantic.Field(ge=1, description="steps between validations, each with a checkpoint")
    validation_documents: int = pydantic.Field(ge=1, description="qa_validation documents of each dataset, at most")
    patience: int | None = pydantic.Field(
        default=None, ge=1, description="stop after this many validations without a new lowest loss; null: never"
    )

    @pydantic.field_validator("scale")
    @classmethod
    def _is_a_power_of_two(cls, value: float) -> float:
        if math.frexp(value)[0] != 0.5:
            raise ValueError("must be a power of two, so that a merged adapter is the same bits on every machine")
        return value

    @pydantic.field_serializer("prompt")
    def _stated(self, prompt: PromptFormat) -> dict[str, object]:
        """What differs from the plain format, so that a recipe file is short."""
        return prompt.model_dump(mode="json", exclude_defaults=True)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return self.learning_rate * rise * (1 + math.cos(math.pi * step / self.steps)) / 2
