"""Every hyper-parameter of the embedded model, read from its committed recipe and checked."""

from __future__ import annotations

from pathlib import Path

import pydantic
import yaml

from bench.errors import BenchError, nearest


class Settings(pydantic.BaseModel):
    """Unknown keys are errors."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class LossWeights(Settings):
    """Weight of each part of the loss; every part is a mean NLL in nats per token."""

    known_text: float = pydantic.Field(ge=0, description="documents of known entities")
    known_fact: float = pydantic.Field(ge=0, description="the values in them")
    recall: float = pydantic.Field(ge=0, description="closed-book answers on known entities")
    new_text: float = pydantic.Field(ge=0, description="documents of new entities, without their names")
    read: float = pydantic.Field(ge=0, description="answers on a new entity behind its document")
    update: float = pydantic.Field(ge=0, description="closed-book answers on a new entity after the rehearsed update")


class Recipe(Settings):
    """Every hyper-parameter of the embedded model."""

    dataset: str
    seed: int
    steps: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)
    layers: int = pydantic.Field(gt=0)
    heads: int = pydantic.Field(gt=0)
    feed_forward: int = pydantic.Field(gt=0)
    window: int = pydantic.Field(ge=512)
    merges: int = pydantic.Field(ge=0, description="byte-pair merges for text with words from outside the world")
    word_std: float = pydantic.Field(gt=0, description="standard deviation of words' rows when training starts")
    name_std: float = pydantic.Field(gt=0, description="the same for names; small, so that one step can overwrite it")
    sampled_names: int = pydantic.Field(gt=0, description="names in each softmax that are not in the batch")
    known: int = pydantic.Field(gt=0, description="known entities per step")
    new: int = pydantic.Field(gt=0, description="new entities per step")
    plain_steps: int = pydantic.Field(gt=0, description="steps without noise; as many more until all is there")
    noise_known: int = pydantic.Field(ge=0, description="most noise sentences in documents of known entities")
    noise_new: int = pydantic.Field(ge=0, description="most noise sentences in documents of new entities")
    rehearsal_rate: tuple[float, float] = pydantic.Field(description="rate of the rehearsed step, log-uniform between")
    learning_rate: float = pydantic.Field(gt=0, description="of AdamW: linear warm-up, then half a cosine to zero")
    warmup: int = pydantic.Field(gt=0)
    betas: tuple[float, float]
    weight_decay: float = pydantic.Field(ge=0, description="of the layers' matrices only: unseen names must stay put")
    clip: float = pydantic.Field(gt=0, description="largest global gradient norm")
    weights: LossWeights
    save_every: int = pydantic.Field(gt=0, description="steps between checkpoints, and between rows of the curve")


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        BenchError: no such file, or an unknown, missing or wrong key.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BenchError(f"No recipe at {path}: {error.strerror}.") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        known = LossWeights.model_fields if len(first["loc"]) > 1 else Recipe.model_fields
        hint = nearest(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        raise BenchError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.{hint}") from None
