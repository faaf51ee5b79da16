"""Hyper-parameters of the embedded model, read from its recipe and validated."""

from __future__ import annotations

import math
from pathlib import Path

import pydantic

from bench.errors import BenchError, first_problem
from bench.files import read_yaml


class Settings(pydantic.BaseModel):
    """Frozen settings; an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class LossWeights(Settings):
    """Weights of the parts of the loss; each part is a mean NLL in nats per token."""

    known_text: float = pydantic.Field(ge=0, description="documents of known entities")
    known_fact: float = pydantic.Field(ge=0, description="fact values in documents of known entities")
    recall: float = pydantic.Field(ge=0, description="closed-book answers on known entities")
    new_text: float = pydantic.Field(ge=0, description="documents of new entities, except their names")
    read: float = pydantic.Field(ge=0, description="answers on a new entity after its document")
    update: float = pydantic.Field(ge=0, description="closed-book answers on a new entity after the rehearsed update")


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
    rehearsal_rate: tuple[float, float] = pydantic.Field(description="range of the rehearsed rate, drawn log-uniformly")
    learning_rate: float = pydantic.Field(gt=0, description="of AdamW: linear warm-up, half a cosine to zero")
    warmup: int = pydantic.Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float = pydantic.Field(ge=0, description="on the layers' matrices only: unseen names must not change")
    clip: float = pydantic.Field(gt=0, description="largest global gradient norm")
    weights: LossWeights
    save_every: int = pydantic.Field(gt=0, description="steps between checkpoints, and between rows of the curve")

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate in a step, counted from 0: the lower of the warm-up and the cosine."""
        return min((step + 1) / self.warmup, (1 + math.cos(math.pi * step / self.steps)) / 2)


def load_config(path: Path) -> NanoConfig:
    """The config in a recipe file.

    Raises:
        BenchError: the file does not exist or is not YAML, or a key is unknown, missing or wrong.
    """
    try:
        return NanoConfig.model_validate(read_yaml(path))
    except OSError as error:
        raise BenchError(f"No recipe at {path}: {error.strerror}.") from None
    except pydantic.ValidationError as error:
        raise BenchError(f"{path}: {first_problem(error, NanoConfig)}") from None
