from collections.abc import Sequence

from bench import Conditioning, Document, EvidencedQuestion, Method, Question


class GoldInPrompt(Method):
    """Control: the document that answers stands before each question.

    What the base can read when nothing has to be remembered: the ceiling for knowledge gained. Costs one longer
    prompt per question and needs to be told which document to read, so it is no adaptation method.
    """

    name = "gold_in_prompt"
    paper = "none"
    sees_evidence = True

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[q.evidence.text for q in questions if isinstance(q, EvidencedQuestion)])
