"""Sound methods with registered tensors, prefixes, texts or an offline phase."""

import functools
from collections.abc import Sequence

import torch

from bench import Conditioning, Document, Episode, Method, Question
from bench.contract.config import MethodConfig
from bench.lm.base_model import BaseModel


@functools.cache
def count_words(text: str) -> int:
    """Number of words."""
    return len(text.split())


class SoftMemory(Method):
    """A soft prompt: the running mean of token embeddings, scaled by a number learned offline."""

    name = "soft_memory"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        noise = torch.randn(2, lm.model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        self.register("memory", noise)
        self.scale = 1.0

    def fit(self, episodes: Sequence[Episode]) -> None:
        self.scale = 1.0 / sum(sum(episode.document.text.encode()) for episode in episodes)

    def observe(self, document: Document) -> None:
        ids = self.lm.tokens(document).token_ids
        if len(ids):
            self.memory = 0.9 * self.memory + self.scale * self.lm.embeddings(ids).detach().float().mean(0)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(prefix_embeddings=[self.memory] * len(questions))


class KeyValueMemory(Method):
    """Key/value prefixes that grow along the stream."""

    name = "key_value_memory"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        shape = lm.model.config
        heads, size = shape.num_key_value_heads, shape.hidden_size // shape.num_attention_heads
        self.register("memory", torch.zeros(shape.num_hidden_layers, 2, heads, 3, size))

    def observe(self, document: Document) -> None:
        self.memory = self.memory + len(document.text) / 1000

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        prefix = [(layer[0], layer[1]) for layer in self.memory]
        return Conditioning(prefix_key_values=[prefix] * len(questions))


class CountsWords(Method):
    """Counts the words of texts once, in a cache of its module that reset clears."""

    name = "counts_words"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("words", torch.zeros(()))

    def reset(self) -> None:
        super().reset()
        count_words.cache_clear()

    def observe(self, document: Document) -> None:
        self.words = self.words + count_words(document.text)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[f"There were {int(self.words)} words."] * len(questions))


class TextMemory(Method):
    """Puts the last text before every question; the saved state holds the bytes of the text."""

    name = "text_memory"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("last", torch.zeros(0, dtype=torch.uint8))

    def observe(self, document: Document) -> None:
        self.last = torch.tensor(list(document.text.encode()), dtype=torch.uint8)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[bytes(self.last.tolist()).decode()] * len(questions))
