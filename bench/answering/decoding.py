"""Decoding of answers: part of the protocol, the same for every method of a board."""

from __future__ import annotations

from typing import Literal

import pydantic


class Decoding(pydantic.BaseModel):
    """Greedy decoding by default, or (diverse) beam search if the installed transformers offers it.

    Hu et al. (2023) and Tack et al. (2024) use diverse beam search.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strategy: Literal["greedy", "beam", "diverse_beam"] = "greedy"
    max_new_tokens: int = pydantic.Field(default=16, ge=1)
    beams: int = pydantic.Field(default=1, ge=1)
    groups: int = pydantic.Field(default=1, ge=1)
    diversity_penalty: float = pydantic.Field(default=0.0, ge=0)
