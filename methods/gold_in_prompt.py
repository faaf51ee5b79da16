from collections.abc import Sequence

from bench import Conditioning, Document, EvidencedQuestion, Method, Question


class GoldInPrompt(Method):
    """Control: the document with the answer is put before each question.

    The ceiling for knowledge gained: what the base can read when nothing has to be remembered. It is not an adaptation
    method, because it is given the right document. Costs a longer prompt per question.
    """

    name = "gold_in_prompt"
    paper = "none"
    sees_evidence = True

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[q.evidence.text for q in questions if isinstance(q, EvidencedQuestion)])
