"""Sees the evidence although its class does not say so: an attribute of the instance does."""

from bench import Conditioning, Document, Method


class EvidenceInstance(Method):
    """Turns on sees_evidence for the instance only, so that the board would not mark it."""

    name = "k1_evidence_instance"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sees_evidence = True

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions):
        return Conditioning(text=[q.evidence.text if hasattr(q, "evidence") else "" for q in questions])
