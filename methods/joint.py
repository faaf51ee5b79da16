import pydantic
import torch

from bench import Document, MethodConfig, SearchSpace
from bench.contract.gradient import Optimizer
from methods.parts.document_buffer import BufferedMethod, stored


class Joint(BufferedMethod):
    """Offline fine-tuning on all documents so far, several times over: a reference for online fine-tuning.

    A control, because it does not keep to one pass: it stores every document, and at each probe it starts from the base
    and goes through all of them ``passes`` times, in a new random order each time. Nothing is learned between probes.
    Costs ``passes`` forward and backward passes for each document so far at every probe. The state is all documents.
    """

    name = "joint"
    paper = "none"
    control = True

    class Config(BufferedMethod.Config):
        """Hyper-parameters of fine-tuning."""

        optimizer: Optimizer = pydantic.Field(default="adam", description="optimizer, a new one at each probe")
        passes: int = pydantic.Field(default=3, ge=1, description="times that each document is learned at a probe")

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """The step size, and the passes in place of steps on each document."""
        return {"learning_rate": super().search_space(config)["learning_rate"], "passes": (1, 2, 3, 5)}

    @property
    def learns_from_scoring(self) -> bool:
        """False: nothing is learned while documents are scored."""
        return False

    def observe(self, document: Document) -> None:
        """Store the document."""
        self.documents.append(stored(document))

    def flush(self) -> None:
        """Learn from all documents so far."""
        for _ in range(self.config.passes):
            for i in torch.randperm(len(self.documents)).tolist():
                super().observe(self.documents[i])
