from collections.abc import Sequence
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, MethodConfig, Question
from bench.errors import BenchError
from methods.parts.retrieval import RetrievalMethod, best
from methods.parts.words import words


class Bm25(RetrievalMethod):
    """The documents that share the most telling words with a question stand before it; nothing is learned.

    Documents are scored by BM25 over lower-cased words of two characters or more (Robertson and Zaragoza 2009; the
    variants of Lù 2024, whose package ``bm25s`` computes them), with the word counts of the documents seen so far. Of
    equal scores the later document's counts as the higher. Observing costs nothing; a probe pays for indexing
    what was seen, and each question for a longer prompt. The state is the text of all documents.
    """

    name = "bm25"
    paper = "robertson2009bm25"
    grid = {"k": (1, 2, 3)}

    class Config(MethodConfig):
        """How documents are scored, and how many are given."""

        k: int = pydantic.Field(default=1, ge=1, description="documents before each question")
        k1: float = pydantic.Field(default=1.5, ge=0, description="how slowly a word's repetitions stop to count")
        b: float = pydantic.Field(default=0.75, ge=0, le=1, description="how far long documents are marked down")
        delta: float = pydantic.Field(default=0.5, ge=0, description="what bm25l and bm25+ add for holding a word")
        method: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = pydantic.Field(
            default="lucene", description="variant of BM25, as bm25s names them"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        _package()  # a missing one is told before the stream begins

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The documents of the highest scores."""
        return [best(scores, self.config.k) for scores in self.scores([question.text for question in questions])]

    def scores(self, texts: Sequence[str]) -> list[Tensor]:
        """The score of every document, shape (documents,), for each text that asks."""
        config, held = self.config, [words(document.text) for document in self.documents]
        if not any(held):
            return [torch.zeros(len(held))] * len(texts)
        index = _package().BM25(k1=config.k1, b=config.b, delta=config.delta, method=config.method)
        index.index(held, show_progress=False)
        asked = [index.get_tokens_ids(words(text)) for text in texts]
        return [torch.from_numpy(index.get_scores_from_ids(known)) for known in asked]


def _package() -> Any:
    try:
        import bm25s
    except ImportError:
        raise BenchError("bm25s is not installed. Run `pip install bm25s`, or leave the method out.") from None
    return bm25s
