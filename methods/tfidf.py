import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Document, Episode, GradientMethod, MethodConfig, TokenBatch
from methods.parts.words import find_words, words


class Tfidf(GradientMethod):
    """Online fine-tuning in which each token is weighted by the TF-IDF of its word.

    A word weighs more the rarer it is and the more often the document repeats it. With n documents, df of which contain
    the word,

        entry = tf x (ln((1 + n) / (1 + df)) + 1), divided by the Euclidean norm of the document's entries,

    for lower-cased words of two or more characters. This is scikit-learn's definition, as in the code of Hu et al.
    2023, which counts in the documents of all splits, the test split included. Here an unseen word has df = 0, and in
    scripts without spaces all pairs of neighbouring characters count as words. A token gets the largest entry among its
    characters, 0 outside words. Weights are below 1, so with SGD the best learning rate is higher than with equal
    weights. Costs one forward and one backward pass per step; counting words costs almost nothing.
    """

    name = "tfidf"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        """Documents in which words are counted, and a threshold of the weights."""

        fit_on: Literal["train", "stream"] = pydantic.Field(
            default="train",
            description="count words in the train split, or (for data without one) in the stream up to and including "
            "the present document",
        )
        quantile: float | None = pydantic.Field(
            default=None,
            ge=0,
            lt=1,
            description="entries at or below this quantile of the train split's have weight 0; null: no threshold",
        )

        @pydantic.field_validator("quantile")
        @classmethod
        def _needs_all_documents(cls, quantile: float | None, info: pydantic.ValidationInfo) -> float | None:
            if quantile is not None and info.data.get("fit_on") == "stream":
                raise ValueError("a quantile is of the train split; set fit_on=train or leave quantile out")
            return quantile

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.words: Tensor
        self.counts: Tensor
        self.documents: Tensor
        self.threshold: Tensor
        self.register("words", torch.tensor([-1]))  # hashes of all words, sorted, after a -1 that is not a hash
        self.register("counts", torch.tensor([0]))  # documents with the word
        self.register("documents", torch.tensor(0))
        self.register("threshold", torch.tensor(0.0, dtype=torch.double))

    @classmethod
    def learns_offline(cls, config: Any) -> bool:
        """True if words of the train split are counted."""
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
        """Count the document's words if fit_on=stream, and learn from it."""
        if self.config.fit_on == "stream":
            self.count([document.text])
        super().observe(document)

    def count(self, texts: Iterable[str]) -> None:
        """Count the words of documents."""
        hashes = [_hashes(set(words(text))) for text in texts]
        counts = torch.cat([self.counts, torch.ones(sum(map(len, hashes)), dtype=torch.long)])
        self.words, places = torch.cat([self.words, *hashes]).unique(return_inverse=True)
        self.counts = torch.zeros(len(self.words), dtype=torch.long).index_add_(0, places, counts)
        self.documents = self.documents + len(hashes)

    def entries(self, text: str) -> dict[str, float]:
        """TF-IDF of every word of a document."""
        frequency = Counter(words(text))
        hashes = _hashes(frequency)
        places = torch.searchsorted(self.words, hashes).clamp(max=len(self.words) - 1)
        document_counts = torch.where(self.words[places] == hashes, self.counts[places], 0)
        idf = torch.log((1 + self.documents) / (1 + document_counts.double())) + 1
        values = torch.tensor(list(frequency.values()), dtype=torch.double) * idf
        return dict(zip(frequency, (values / values.norm()).tolist(), strict=True))

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """The largest entry above the threshold among each token's characters, else 0."""
        text, entries, threshold = batch.document.text, self.entries(batch.document.text), self.threshold.item()
        weights = [0.0] * len(text)
        for word, start, end in find_words(text):
            value = entries[word]
            if value > threshold:
                weights[start:end] = [max(value, weight) for weight in weights[start:end]]
        return batch.per_token(weights)


def _hashes(vocabulary: Iterable[str]) -> Tensor:
    """Hashes of words, so that counts are tensors; with 63 bits, collisions are unlikely."""
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in vocabulary)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.long)
