"""Base class of retrieval methods: they store the documents, and the model reads some of them again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from bench.contract.config import MethodConfig
from bench.contract.method import Conditioning, Method, packed, unpacked
from bench.data.documents import Document, Question
from bench.lm.base_model import BaseModel

_DOCUMENTS = "method.documents"


class RetrievalMethod(Method):
    """Stores every document, or every segment if documents are cut, and puts some of them before each question.

    The base does not change. A subclass selects the documents in :meth:`rank`. They are joined by newlines, the best
    last and so next to the question; text that does not fit into the window is cut from the worst. Before the first
    document, questions are answered closed book.
    """

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.documents: list[Document] = []

    @abstractmethod
    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """Positions in ``self.documents``, which is not empty, of each question's documents, best first."""

    def reset(self) -> None:
        """Forget the documents."""
        super().reset()
        self.documents = []

    def observe(self, document: Document) -> None:
        """Store the document."""
        self.documents.append(Document(document.id, document.text))

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The documents selected by :meth:`rank`, as text."""
        if not self.documents:
            return Conditioning()
        selections = [[self.documents[i] for i in ranking] for ranking in self.rank(questions)]
        return Conditioning(
            text=["\n".join(document.text for document in reversed(selection)) for selection in selections],
            documents=[list(dict.fromkeys(document.id for document in selection)) for selection in selections],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """State of the base class and the documents."""
        return {
            **super().state_dict(),
            _DOCUMENTS: packed([(document.id, document.text) for document in self.documents]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state with its documents."""
        super().load_state_dict(state)
        self.documents = [Document(document_id, text) for document_id, text in unpacked(state[_DOCUMENTS])]


def best(scores: Tensor, k: int) -> list[int]:
    """Positions of the ``k`` highest scores, best first. Of equal scores the later is better: newer news supersedes."""
    order = scores.flip(0).argsort(descending=True, stable=True)[:k]
    return [len(scores) - 1 - i for i in order.tolist()]
