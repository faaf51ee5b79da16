"""Methods that change documents or questions, which they may only read."""

from collections.abc import Sequence

from bench import Conditioning, Document, Method, Question


class MutatesDocuments(Method):
    """Cleans the text in place, although documents are frozen."""

    name = "mutates_documents"
    paper = "none"

    def observe(self, document: Document) -> None:
        object.__setattr__(document, "text", document.text.lower())


class MarksDocuments(Method):
    """Adds an attribute to every document."""

    name = "marks_documents"
    paper = "none"

    def observe(self, document: Document) -> None:
        document.__dict__["seen"] = True


class MutatesQuestions(Method):
    """Rewrites the questions."""

    name = "mutates_questions"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        for question in questions:
            object.__setattr__(question, "text", question.text.upper())
        return Conditioning()
