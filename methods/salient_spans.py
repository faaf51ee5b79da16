from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from torch import Tensor

from bench import BaseModel, GradientMethod, MethodConfig, TokenBatch
from bench.data.tagger import NUMBER_TYPES, load_tagger


class SalientSpans(GradientMethod):
    """Online fine-tuning on named entities and dates only.

    A token has weight 1 if any of its characters is in a named entity, else 0. Amounts do not count as entities;
    ``keep_numbers`` is the control that includes them. A document without an entity is skipped; the code of Hu et al.
    2023 takes a step with a gradient of 0 there, in which Adam's momentum still moves the weights. Only the loss is
    weighted; the model reads the whole text (Salient Spans in Hu et al. 2023, after the masks of Guu et al. 2020).
    Costs a tagger's pass and one forward and one backward pass per step.
    """

    name = "salient_spans"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        """The salient tokens."""

        tagger: Literal["auto", "spacy", "rules"] = pydantic.Field(
            default="auto",
            description="spaCy's en_core_web_sm, rules for capitals and dates, or auto: spaCy if installed, else rules",
        )
        keep_numbers: bool = pydantic.Field(
            default=False, description="count numbers, amounts, times of day and percentages as entities"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.tagger = load_tagger(self.config.tagger)

    @classmethod
    def depends_on(cls, config: Any) -> Mapping[str, str | Path]:
        """The tagger."""
        return {**super().depends_on(config), "tagger": load_tagger(config.tagger).name}

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """1 for every token with a character in an entity, else 0."""
        text = batch.document.text
        salient = [0.0] * len(text)
        for start, end, kind in self.tagger.entities(text):
            if self.config.keep_numbers or kind not in NUMBER_TYPES:
                salient[start:end] = [1.0] * (end - start)
        return batch.per_token(salient)

    def notes(self) -> dict[str, Any]:
        """The tagger in use."""
        return {"tagger": self.tagger.name}
