"""Decoding of answers: part of the protocol, the same for every method of a board."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from bench.settings import Settings


class Decoding(Settings):
    """Greedy decoding by default, or beam search, in one group of beams or (``diverse_beam``) in several.

    Hu et al. (2023) and Tack et al. (2024) use diverse beam search with 12 beams in 4 groups and a penalty of 10.
    """

    strategy: Literal["greedy", "beam", "diverse_beam"] = "greedy"
    max_new_tokens: int = pydantic.Field(default=16, ge=1)
    beams: int = pydantic.Field(default=1, ge=1)
    groups: int = pydantic.Field(default=1, ge=1)
    diversity_penalty: float = pydantic.Field(default=0.0, ge=0)

    @pydantic.model_validator(mode="after")
    def _fits_the_strategy(self) -> Self:
        if self.strategy == "greedy" and self.beams > 1:
            raise ValueError("greedy decoding has no beams: state strategy: beam, or diverse_beam")
        if self.strategy != "diverse_beam" and (self.groups > 1 or self.diversity_penalty):
            raise ValueError("only strategy: diverse_beam has groups and a diversity_penalty")
        if self.beams % self.groups:
            raise ValueError(f"{self.beams} beams cannot be divided into {self.groups} groups of one size")
        return self
