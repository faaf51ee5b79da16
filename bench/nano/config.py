"""Hyper-parameters of the embedded model, read from its recipe and validated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pydantic

from bench.settings import Settings, read_recipe


class LossWeights(Settings):
    """Weights of the parts of the loss that need no update; each part is a mean NLL in nats per token."""

    known_text: float = pydantic.Field(ge=0, description="documents of known entities")
    known_fact: float = pydantic.Field(ge=0, description="fact values in documents of known entities")
    recall: float = pydantic.Field(ge=0, description="closed-book answers on known entities")
    new_text: float = pydantic.Field(ge=0, description="documents of new entities, except their names")
    read: float = pydantic.Field(ge=0, description="answers on a new entity after its document")


class NanoConfig(Settings):
    """Hyper-parameters of the embedded model."""

    dataset: str
    seed: int
    steps: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)
    layers: int = pydantic.Field(gt=0)
    heads: int = pydantic.Field(gt=0)
    feed_forward: int = pydantic.Field(gt=0)
    window: int = pydantic.Field(ge=512)
    merges: int = pydantic.Field(ge=0, description="byte-pair merges, for words that are not of the world")
    word_std: float = pydantic.Field(gt=0, description="standard deviation of the initial embeddings of words")
    name_std: float = pydantic.Field(gt=0, description="the same for names; small, so that one step can overwrite them")
    sampled_names: int = pydantic.Field(gt=0, description="names in each softmax besides those of the batch")
    known: int = pydantic.Field(gt=0, description="known entities per step")
    new: int = pydantic.Field(gt=0, description="new entities per step")
    plain_steps: int = pydantic.Field(gt=0, description="steps without noise, then as many in which it rises")
    noise_known: int = pydantic.Field(ge=0, description="maximum noise sentences per document of a known entity")
    noise_new: int = pydantic.Field(ge=0, description="maximum noise sentences per document of a new entity")
    rehearsal: float = pydantic.Field(
        ge=0,
        description="weight of the loss (nats per token) on closed-book answers on a new entity after the rehearsed "
        "update; 0 trains without that update",
    )
    rehearsal_rate: tuple[pydantic.PositiveFloat, pydantic.PositiveFloat] = pydantic.Field(
        description="range of the rehearsed rate, drawn log-uniformly"
    )
    learning_rate: float = pydantic.Field(gt=0, description="of AdamW: linear warm-up, half a cosine to zero")
    warmup: int = pydantic.Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float = pydantic.Field(ge=0, description="on the layers' matrices only: unseen names must not change")
    clip: float = pydantic.Field(gt=0, description="largest global gradient norm")
    weights: LossWeights
    save_every: int = pydantic.Field(gt=0, description="steps between checkpoints, and between rows of the curve")

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> NanoConfig:
        if self.width % (2 * self.heads):
            raise ValueError("width must be a multiple of twice the heads")
        if self.rehearsal_rate[0] > self.rehearsal_rate[1]:
            raise ValueError("rehearsal_rate states the lower bound first")
        return self

    def weight(self, part: str) -> float:
        """Weight of a part of the loss: one of ``weights``, or ``update``, the loss after the rehearsed update."""
        return self.rehearsal if part == "update" else float(getattr(self.weights, part))

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate in a step, counted from 0: the lower of the warm-up and the cosine."""
        return min((step + 1) / self.warmup, (1 + math.cos(math.pi * step / self.steps)) / 2)


def load_config(path: Path, assignments: Sequence[str] = ()) -> NanoConfig:
    """The config in a recipe file; changed and refused as :func:`bench.settings.read_recipe` says."""
    return read_recipe(NanoConfig, path, assignments)
