"""Fine-tuning methods that keep documents to learn from them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bench.contract.config import MethodConfig
from bench.contract.gradient import GradientMethod
from bench.contract.method import packed, unpacked
from bench.data.documents import Document, Segment
from bench.lm.base_model import BaseModel

_DOCUMENTS = "method.documents"


class BufferedMethod(GradientMethod):
    """A gradient method with a buffer of documents, which is part of its state.

    A segment is learned again as a document of its own: with its tokens, but without those before it.
    """

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
        buffer = [self.seen, *map(_fields, self.documents)]
        return {**super().state_dict(), _DOCUMENTS: packed(buffer)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state with its buffer."""
        super().load_state_dict(state)
        self.seen, *buffer = unpacked(state[_DOCUMENTS])
        self.documents = [_document(*fields) for fields in buffer]


def stored(document: Document) -> Document:
    """A copy for the buffer, without what is not learned again: title, date and, of a segment, the tokens before it."""
    return _document(*_fields(document))


def _fields(document: Document) -> tuple[Any, ...]:
    """What the state has of a document. A segment's tokens and whether it is the last do not follow from its text."""
    own = (document.token_ids, document.offsets, document.last) if isinstance(document, Segment) else ()
    return (document.id, document.text, *own)


def _document(document_id: str, text: str, *own: Any) -> Document:
    if not own:
        return Document(document_id, text)
    token_ids, offsets, last = own
    spans = tuple((start, end) for start, end in offsets)
    return Segment(document_id, text, token_ids=tuple(token_ids), offsets=spans, last=last)
