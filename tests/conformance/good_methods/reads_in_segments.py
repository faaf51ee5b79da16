"""Online fine-tuning in segments of a length of its own."""

import torch
from torch import Tensor

from bench import Document, GradientMethod, Reading, TokenBatch
from bench.lm.reading import CarriedCache


class ReadsInSegments(GradientMethod):
    """Learns each segment of a document less than the one before it."""

    name = "reads_in_segments"
    paper = "none"

    @property
    def segment_tokens(self) -> int:
        return 8

    @property
    def reading(self) -> Reading:
        return Reading(context_tokens=4)

    def begin_document(self) -> None:
        self.part = 0

    def observe(self, document: Document) -> None:
        self.part += 1
        super().observe(document)

    def token_weights(self, batch: TokenBatch) -> Tensor:
        if len(batch) > self.segment_tokens:
            raise ValueError("This is not a segment.")
        return torch.full((len(batch),), 1 / self.part, device=self.lm.device)


class CarriesACache(ReadsInSegments):
    """The same, but a segment sees the keys and values of all earlier ones, computed before their updates."""

    name = "carries_a_cache"
    paper = "none"

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.cache = CarriedCache()

    @property
    def reading(self) -> Reading:
        return Reading(cache=self.cache)

    def reset(self) -> None:
        super().reset()
        self.cache.clear()
