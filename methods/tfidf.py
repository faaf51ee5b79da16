import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Document, Episode, GradientMethod, MethodConfig, TokenBatch
from methods.parts.words import WORD, words


class Tfidf(GradientMethod):
    """Online fine-tuning in which a token weighs the TF-IDF of its word.

    Rare words weigh more, the more often a document repeats them. With n documents of which df hold the word,

        entry = tf x (ln((1 + n) / (1 + df)) + 1), divided by the Euclidean norm of the document's entries,

    for lower-cased words of two characters or more (the definition of scikit-learn, as in TF-IDF of Hu et al. 2023; but
    a word that no counted document holds has df = 0 rather than no weight). A token takes the largest entry among its
    characters, 0 outside of words. Weights are below 1, so that the best learning rate is higher than uniform's.
    Costs what uniform fine-tuning costs; counting words is next to nothing.
    """

    name = "tfidf"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        """Where words are counted."""

        fit_on: Literal["train", "stream"] = pydantic.Field(
            default="train",
            description="count words in the train split, or in the documents of the stream so far, this one included",
        )
        quantile: float | None = pydantic.Field(
            default=None,
            ge=0,
            lt=1,
            description="weigh 0 what is not above this quantile of all entries of the train split; null weighs all",
        )

        @pydantic.field_validator("quantile")
        @classmethod
        def _needs_all_documents(cls, quantile: float | None, info: pydantic.ValidationInfo) -> float | None:
            if quantile is not None and info.data.get("fit_on") == "stream":
                raise ValueError("a quantile is taken over the train split; set fit_on=train or leave it out")
            return quantile

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.words: Tensor
        self.counts: Tensor
        self.documents: Tensor
        self.threshold: Tensor
        self.register("words", torch.tensor([-1]))  # hashes of all words, sorted, behind one that is no word's
        self.register("counts", torch.tensor([0]))  # documents that hold the word
        self.register("documents", torch.tensor(0))
        self.register("threshold", torch.tensor(0.0, dtype=torch.double))

    @classmethod
    def learns_offline(cls, config: Any) -> bool:
        """Only where the words of the train split are counted."""
        counts_train: bool = config.fit_on == "train"
        return counts_train

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Count the words of the train split."""
        texts = [episode.document.text for episode in episodes]
        self.count(texts)
        if self.config.quantile is not None:
            entries = [value for text in texts for value in self.entries(text).values()] or [0.0]
            self.threshold = torch.tensor(np.quantile(entries, self.config.quantile), dtype=torch.double)

    def observe(self, document: Document) -> None:
        """Count the document's words, if those of the stream are to be counted; then learn from it."""
        if self.config.fit_on == "stream":
            self.count([document.text])
        super().observe(document)

    def count(self, texts: Iterable[str]) -> None:
        """Add documents to those in which words are counted."""
        hashes = [_hashes(set(words(text))) for text in texts]
        known = [self.words, *hashes]
        counts = torch.cat([self.counts, torch.ones(sum(map(len, hashes)), dtype=torch.long)])
        self.words, places = torch.cat(known).unique(return_inverse=True)
        self.counts = torch.zeros(len(self.words), dtype=torch.long).index_add_(0, places, counts)
        self.documents = self.documents + len(hashes)

    def entries(self, text: str) -> dict[str, float]:
        """The TF-IDF of every word of a document."""
        frequency = Counter(words(text))
        hashes = _hashes(frequency)
        places = torch.searchsorted(self.words, hashes).clamp(max=len(self.words) - 1)
        holding = torch.where(self.words[places] == hashes, self.counts[places], 0)
        idf = torch.log((1 + self.documents) / (1 + holding.double())) + 1
        values = torch.tensor(list(frequency.values()), dtype=torch.double) * idf
        return dict(zip(frequency, (values / values.norm()).tolist(), strict=True))

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """The largest entry above the threshold among each token's characters, else 0."""
        text, entries, threshold = batch.document.text, self.entries(batch.document.text), self.threshold.item()
        weights = [0.0] * len(text)
        for match in WORD.finditer(text):
            value = entries[match[0].lower()]
            if value > threshold:
                weights[match.start() : match.end()] = [value] * len(match[0])
        return batch.per_token(weights)


def _hashes(found: Iterable[str]) -> Tensor:
    """Words as numbers, so that counts are tensors: 63 bits of a hash, in which no two words are likely to meet."""
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in found)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.long)
