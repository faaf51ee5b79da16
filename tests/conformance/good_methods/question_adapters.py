"""Weights for each question: a retrieved change of the output layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from bench import Conditioning, Document, Method, Question


class QuestionAdapters(Method):
    """Keeps a bias for each document's tokens, and answers each question with that of the most similar document."""

    name = "question_adapters"
    paper = "none"

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.register("counts", torch.zeros(0, len(self.lm.tokenizer)))  # (documents, vocabulary)

    def observe(self, document: Document) -> None:
        tokens = self.lm.tokens(document).token_ids
        self.counts = torch.cat([self.counts, torch.bincount(tokens, minlength=self.counts.shape[1])[None].float()])

    def flush(self) -> None:
        self.index = self.counts.clamp(max=1)  # only questions need it

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        if not len(self.counts):
            return Conditioning()
        scores = [self.index[:, self.lm.encode(question.text)].sum(1) for question in questions]
        return Conditioning(weights=[int(score.argmax()) for score in scores])

    @contextmanager
    def using(self, key: int) -> Iterator[None]:
        weight = self.lm.model.get_output_embeddings().weight
        before = weight.detach().clone()
        weight.data += 0.1 * self.counts[key][:, None]
        yield
        weight.data.copy_(before)
