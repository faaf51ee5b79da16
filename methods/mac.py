from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Conditioning, Document, MethodConfig, Question
from methods.bm25 import Bm25
from methods.parts.amortized_bank import AmortizedMemory
from methods.parts.text_encoder import REFERENCE


class Mac(AmortizedMemory):
    """Memory of Amortized Contexts: a bank of a few vectors per document, from which a question reads a prefix.

    A small encoder-decoder turns each document, once, into T vectors. Another does the same for a question. The
    question's vectors attend to those of all documents and become key/value prefixes of the frozen base (Tack et al.
    2024). Costs one pass of the encoder per document and no gradient; per question, another pass, cross-attention to
    all rows, and a prefix of two positions. The state grows by T vectors with each document, and with ``retrieved`` by
    its text.
    """

    name = "mac"
    paper = "tack2024mac"

    class Config(AmortizedMemory.Config):
        """Hyper-parameters of MAC."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "reference": {"training": {**REFERENCE, "amortizer": "t5-base", "question_encoder": "t5-base"}}
        }
        group: int | None = pydantic.Field(
            default=None,
            ge=2,
            description="M, entries aggregated at a time; the outputs of the groups are a smaller bank for the next "
            "round (hierarchical aggregation); null: all at once",
        )
        retrieved: int = pydantic.Field(
            default=0, ge=0, description="documents that BM25 puts before the question, after the memory's prefix"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        count = self.config.retrieved
        self.retriever = Bm25(lm, Bm25.Config(k=count), seed) if count else None

    def reset(self) -> None:
        """Forget the documents."""
        super().reset()
        if self.retriever is not None:
            self.retriever.reset()

    def observe(self, document: Document) -> None:
        """Add the document's rows to the bank, and store its text for BM25."""
        super().observe(document)
        if self.retriever is not None:
            self.retriever.observe(document)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The prefix that the memory gives each question, and the documents that BM25 finds for it."""
        memory = super().condition(questions)
        if self.retriever is None:
            return memory
        found = self.retriever.condition(questions)
        return replace(memory, text=found.text, documents=found.documents)

    def state_dict(self) -> dict[str, Tensor]:
        """The bank, and the documents that BM25 searches."""
        found = {} if self.retriever is None else self.retriever.state_dict()
        return {**found, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state with its documents."""
        super().load_state_dict(state)
        if self.retriever is not None:
            self.retriever.load_state_dict(state)

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Aggregate all rows at once, or in groups until at most M are left. Training does not use groups."""
        group = self.config.group
        if group is None or bias is not None or len(rows) <= group:
            return super().aggregate(queries, rows, bias)
        level = rows[None]  # (1, or B from the second round on; entries, T, width)
        while level.shape[1] > group:
            outputs = [self.aggregator(queries, part.flatten(1, 2)) for part in level.split(group, 1)]
            level = torch.stack(outputs, 1)  # (B, groups, T, width)
        last: Tensor = self.aggregator(queries, level.flatten(1, 2))
        return last
