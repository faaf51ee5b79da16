from collections.abc import Sequence
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, MethodConfig, Question
from bench.contract.search import Range, SearchSpace
from bench.errors import BenchError
from methods.parts.retrieval import RetrievalMethod, best
from methods.parts.words import words


class Bm25(RetrievalMethod):
    """Retrieval by BM25: the documents that share the most informative words with a question are put before it.

    Nothing is learned. Documents are scored over lower-cased words of two or more characters (in scripts without
    spaces, all pairs of neighbouring characters), with the word counts of the documents seen so far (Robertson and
    Zaragoza 2009; ``bm25s`` computes the variants of Lù 2024). Ties go to the later document. Costs nothing per
    document, an index of all documents per probe, and a longer prompt per question. The state is the text of all
    documents.
    """

    name = "bm25"
    paper = "robertson2009bm25"

    class Config(MethodConfig):
        """Scoring of documents, and their number."""

        k: int = pydantic.Field(default=1, ge=1, description="documents before each question")
        k1: float = pydantic.Field(
            default=1.5, ge=0, description="saturation of a word's count; the higher, the more repetitions count"
        )
        b: float = pydantic.Field(
            default=0.75, ge=0, le=1, description="length normalisation, from 0 (none) to 1 (full)"
        )
        delta: float = pydantic.Field(
            default=0.5, ge=0, description="bonus of bm25l and bm25+ for each word that occurs"
        )
        method: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = pydantic.Field(
            default="lucene", description="variant of BM25, by its name in bm25s"
        )

    @classmethod
    def search_space(cls, config: Any) -> SearchSpace:
        """The number of documents, and the usual range of the scoring's constants."""
        return {"k": (1, 2, 3, 5), "k1": Range(low=0.5, high=3), "b": Range(low=0, high=1)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        _import_bm25s()  # fail before the stream begins if it is missing

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The documents with the highest scores."""
        return [best(scores, self.config.k) for scores in self.scores([question.text for question in questions])]

    def scores(self, texts: Sequence[str]) -> list[Tensor]:
        """Scores of all documents, shape (documents,), for each text."""
        config, corpus = self.config, [words(document.text) for document in self.documents]
        if not any(corpus):
            return [torch.zeros(len(corpus))] * len(texts)
        index = _import_bm25s().BM25(k1=config.k1, b=config.b, delta=config.delta, method=config.method)
        index.index(corpus, show_progress=False)
        queries = [index.get_tokens_ids(words(text)) for text in texts]
        return [torch.from_numpy(index.get_scores_from_ids(query)) for query in queries]


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise BenchError("bm25s is not installed. Run `pip install bm25s`, or leave the method out.") from None
    return bm25s
