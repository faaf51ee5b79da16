from typing import Any, Literal

import pydantic
from torch import Tensor

from bench import BaseModel, Document, GradientMethod, MethodConfig, TokenBatch
from bench.data.tagger import NUMBER_TYPES, load_tagger


class SalientSpans(GradientMethod):
    """Online fine-tuning on named entities and dates only.

    A token weighs 1 if any of its characters is in a named entity, else 0, so that the model learns who, where and when
    but not how much: amounts are left out (``keep_numbers`` is the control that takes them in). A document without an
    entity is passed over. The loss is weighted, the input stays whole (Salient Spans in Hu et al. 2023, after the masks
    of Guu et al. 2020). Costs what uniform fine-tuning costs, and a tagger's pass over each document.
    """

    name = "salient_spans"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        """What counts as salient."""

        tagger: Literal["auto", "spacy", "rules"] = pydantic.Field(
            default="auto",
            description="spaCy's en_core_web_sm, capitals and dates by rules, or spaCy where it is installed",
        )
        keep_numbers: bool = pydantic.Field(
            default=False, description="let numbers, amounts, times of day and percentages count as entities"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.tagger = load_tagger(self.config.tagger)

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """1 for every token with a character in an entity that is kept, else 0."""
        text = batch.document.text
        salient = [0.0] * len(text)
        for start, end, kind in self.tagger.entities(text):
            if self.config.keep_numbers or kind not in NUMBER_TYPES:
                salient[start:end] = [1.0] * (end - start)
        return batch.per_token(salient)

    def observe(self, document: Document) -> None:
        """A step on the entities, if there are any: a gradient of 0 would still move weights by their momentum."""
        if self.token_weights(self.lm.tokens(document)).any():
            super().observe(document)

    def notes(self) -> dict[str, Any]:
        """Which tagger was used."""
        return {"tagger": self.tagger.name}
