"""Makes of sees_evidence a setting: a property, which is true of the class itself."""

import pydantic

from bench import Conditioning, Document, Method, MethodConfig


class EvidenceProperty(Method):
    """Sees the evidence if its settings say so."""

    name = "k6_sees_evidence_property"
    paper = "none"

    class Config(MethodConfig):
        oracle: bool = pydantic.Field(default=True, description="get the document of each question")

    @property
    def sees_evidence(self):
        return self.config.oracle

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions):
        return Conditioning(text=[q.evidence.text if hasattr(q, "evidence") else "" for q in questions])
