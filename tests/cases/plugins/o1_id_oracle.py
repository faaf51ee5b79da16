"""Finds the document of a question by the rule that makes the ids of questions without one."""

from bench import Conditioning, Document, Method
from bench.data.documents import document_id


class IdOracle(Method):
    """Finds the document behind a question from the question's id alone."""

    name = "o1_id_oracle"
    paper = "none"

    def reset(self):
        super().reset()
        self.documents = []

    def observe(self, document: Document) -> None:
        self.documents.append(document)

    def condition(self, questions):
        found = [[d for d in self.documents if document_id(f"{d.id} {q.text}") == q.id] for q in questions]
        return Conditioning(
            text=[documents[0].text if documents else "" for documents in found],
            documents=[[document.id for document in documents] for documents in found],
        )
