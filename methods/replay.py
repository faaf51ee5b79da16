import pydantic
import torch
from torch import Tensor

from bench import Document, TokenBatch
from methods.parts.document_buffer import BufferedMethod, stored


class Replay(BufferedMethod):
    """Uniform online fine-tuning that replays earlier documents from a small buffer, against forgetting.

    Each step's loss is the mean over the new document and ``replays`` documents drawn from the buffer (experience
    replay, Chaudhry et al. 2019). The buffer is a reservoir: a uniform sample of all documents so far (Vitter 1985).
    Costs 1 + ``replays`` forward and backward passes per step. The state is the changed weights and the buffer.
    """

    name = "replay"
    paper = "chaudhry2019tiny"

    class Config(BufferedMethod.Config):
        """Hyper-parameters of online fine-tuning, and the buffer."""

        buffer: int = pydantic.Field(default=64, ge=1, description="most documents in the buffer")
        replays: int = pydantic.Field(default=1, ge=0, description="documents of the buffer in each step")

    def observe(self, document: Document) -> None:
        """Learn from the document and from documents of the buffer, then offer it to the buffer."""
        super().observe(document)
        self.seen += 1
        place = len(self.documents)
        if place < self.config.buffer:
            self.documents.append(stored(document))
        elif (place := int(torch.randint(self.seen, ()))) < self.config.buffer:
            self.documents[place] = stored(document)

    def backward(self, batch: TokenBatch) -> Tensor:
        """Add the gradients of the new document and of the replayed ones."""
        drawn = torch.randperm(len(self.documents))[: self.config.replays].tolist()
        self.parts = 1 + len(drawn)
        loss = super().backward(batch)
        for i in drawn:
            loss += super().backward(self.lm.tokens(self.documents[i]))
        return loss

    def loss_divisor(self, batch: TokenBatch) -> float:
        """Tokens times the number of documents in the step."""
        return len(batch) * self.parts
