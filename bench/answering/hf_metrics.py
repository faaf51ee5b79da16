"""The scores as ``evaluate.Metric`` classes, defined here so that no network is needed.

``compute(predictions=..., references=...)`` returns the mean under the name used in records. The configuration
``"characters"``, as in ``TokenF1("characters")``, cuts answers into characters in scripts without spaces.
Importing this module imports ``evaluate``; the functions themselves are in ``bench.answering.metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import evaluate

import datasets
from bench.answering import metrics
from bench.data.scripts import Segmentation


class _Metric(evaluate.Metric):  # type: ignore[misc]  # evaluate is untyped
    """A metric that keeps its inputs in memory and writes no cache files."""

    NAME: ClassVar[str]
    """Name of the score in records."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _describe(self, prediction: Any, reference: Any, inputs: str) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=inputs,
            features=datasets.Features({"predictions": prediction, "references": reference}),
        )


class _AnswerMetric(_Metric):
    """Mean over questions of a score of the prediction against the gold answers."""

    @staticmethod
    def score(prediction: str, golds: Sequence[str], segment: Segmentation) -> float:
        """Score of one answer against its golds."""
        raise NotImplementedError

    def __init__(self, config_name: Segmentation = "words", **options: Any) -> None:
        if config_name not in get_args(Segmentation):
            raise ValueError(f"config_name is one of {', '.join(get_args(Segmentation))}, got {config_name!r}.")
        super().__init__(config_name=config_name, **options)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return self._describe(text, datasets.List(text), "predictions: answers; references: a list of golds for each.")

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        scores = [
            self.score(prediction, golds, self.config_name)
            for prediction, golds in zip(predictions, references, strict=True)
        ]
        return {self.NAME: sum(scores) / len(scores)}


class ExactMatch(_AnswerMetric):
    """Share of answers equal to a gold answer after SQuAD 1.1 normalisation."""

    NAME = "em"
    score = staticmethod(metrics.exact_match)


class TokenF1(_AnswerMetric):
    """Mean bag-of-words F1 with the best gold answer after SQuAD 1.1 normalisation."""

    NAME = "f1"
    score = staticmethod(metrics.token_f1)


class PrefixExactMatch(_AnswerMetric):
    """Share of answers that begin with the shortest gold: the exact match in the code of Hu et al. (2023)."""

    NAME = "em_prefix"
    score = staticmethod(metrics.prefix_exact_match)


class ShortestF1(_AnswerMetric):
    """Mean bag-of-words F1 with the shortest gold, as in the code of Hu et al. (2023)."""

    NAME = "f1_shortest"
    score = staticmethod(metrics.shortest_f1)


class _LikelihoodMetric(_Metric):
    """A mean of log-probabilities (nats), given as one list for each text."""

    def _info(self) -> evaluate.MetricInfo:
        return self._describe(
            datasets.List(datasets.Value("float64")),
            datasets.Value("string"),
            "predictions: log-probabilities (nats) of the tokens of each text; references: the texts.",
        )


class AnswerNLL(_LikelihoodMetric):
    """Mean over questions of the mean -log p (nats) of the gold answer's tokens: each question weighs the same."""

    NAME = "answer_nll"

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[str]) -> dict[str, float]:
        return {self.NAME: sum(-math.fsum(p) / len(p) for p in predictions) / len(predictions)}


class TokenNLL(_LikelihoodMetric):
    """Mean -log p (nats) over all tokens of all documents: each token weighs the same."""

    NAME = "token_nll"

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[str]) -> dict[str, float]:
        return {self.NAME: -sum(map(math.fsum, predictions)) / sum(map(len, predictions))}


class BitsPerByte(_LikelihoodMetric):
    """Bits per UTF-8 byte of the documents: comparable between tokenizers."""

    NAME = "bits_per_byte"

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[str]) -> dict[str, float]:
        size = sum(len(text.encode()) for text in references)
        return {self.NAME: metrics.bits_per_byte(-sum(map(math.fsum, predictions)), size)}
