from collections.abc import Sequence

from bench import Question
from methods.parts.retrieval import RetrievalMethod


class FullContext(RetrievalMethod):
    """The most recent part of the stream that fits into the window is put before each question, newest document last.

    A reference for what the base can do as long as nothing has to be remembered for longer than its window. Costs
    nothing per document and a full window per question. The state is the text of all documents, although only the end
    is ever read.
    """

    name = "full_context"
    paper = "none"

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The newest documents, the same for all questions, back to the first that does not fit as a whole."""
        room = self.lm.window - max((len(self.lm.encode(question.text)) for question in questions), default=0)
        tail: list[int] = []
        for position in reversed(range(len(self.documents))):
            if room <= 0:
                break
            tail.append(position)
            room -= len(self.lm.encode(f"{self.documents[position].text}\n"))
        return [tail] * len(questions)
