"""The base class of methods that keep the documents themselves and let the model read some of them again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from bench.contract.config import MethodConfig
from bench.contract.method import Conditioning, Method, packed, unpacked
from bench.data.documents import Document, Question
from bench.lm.base_model import BaseModel

_KEPT = "method.documents"


class RetrievalMethod(Method):
    """Keeps every document (segment by segment where they are cut) and puts some before each question.

    The base stays as it is. A subclass says which documents, in :meth:`rank`; those of a question are joined by
    newlines, the best last: it stands next to the question, and what does not fit into the window is cut off from the
    worst. Before the first document questions are answered closed book.
    """

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.documents: list[Document] = []

    @abstractmethod
    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """Positions in ``self.documents``, of which there are some, of those that each question gets, best first."""

    def reset(self) -> None:
        """Forget the documents."""
        super().reset()
        self.documents = []

    def observe(self, document: Document) -> None:
        """Keep the document."""
        self.documents.append(Document(document.id, document.text))

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The documents that :meth:`rank` names, as text."""
        if not self.documents:
            return Conditioning()
        ranked = [[self.documents[i] for i in ranking] for ranking in self.rank(questions)]
        return Conditioning(
            text=["\n".join(document.text for document in reversed(given)) for given in ranked],
            documents=[list(dict.fromkeys(document.id for document in given)) for given in ranked],
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The documents too."""
        return {**super().state_dict(), _KEPT: packed([(document.id, document.text) for document in self.documents])}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the documents over too."""
        super().load_state_dict(state)
        self.documents = [Document(name, text) for name, text in unpacked(state[_KEPT])]


def best(scores: Tensor, k: int) -> list[int]:
    """Positions of the ``k`` highest scores, best first; of equal ones the later is better, for news supersedes."""
    order = scores.flip(0).argsort(descending=True, stable=True)[:k]
    return [len(scores) - 1 - i for i in order.tolist()]
