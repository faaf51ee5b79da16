"""Fine-tuning methods that keep documents to learn from them again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bench.contract.config import MethodConfig
from bench.contract.gradient import GradientMethod
from bench.contract.method import packed, unpacked
from bench.data.documents import Document
from bench.lm.base_model import BaseModel

_DOCUMENTS = "method.documents"


class BufferedMethod(GradientMethod):
    """A gradient method with a buffer of documents, which is part of its state. A segment is a document of its own."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.documents: list[Document] = []
        self.seen = 0
        """Documents since :meth:`reset`."""

    def reset(self) -> None:
        """Restore the base and empty the buffer."""
        super().reset()
        self.documents, self.seen = [], 0

    def state_dict(self) -> dict[str, Tensor]:
        """State of the base class, the buffer, and the number of documents that were seen."""
        buffer = [self.seen, *((document.id, document.text) for document in self.documents)]
        return {**super().state_dict(), _DOCUMENTS: packed(buffer)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state with its buffer."""
        super().load_state_dict(state)
        self.seen, *buffer = unpacked(state[_DOCUMENTS])
        self.documents = [Document(document_id, text) for document_id, text in buffer]
