from collections.abc import Sequence

from bench import Question
from methods.parts.retrieval import RetrievalMethod


class FullContext(RetrievalMethod):
    """As much of the stream as fits into the window stands before each question, the newest document last.

    What a base can do without any method, as long as nothing has to be kept for longer than its window. Observing
    costs nothing, each question a full window. The state is the text of all documents, of which only the tail is
    ever read.
    """

    name = "full_context"
    paper = "none"

    def rank(self, questions: Sequence[Question]) -> Sequence[Sequence[int]]:
        """The same for all: the newest documents, back to that which only in part still fits beside the questions."""
        room = self.lm.window - max((len(self.lm.encode(question.text)) for question in questions), default=0)
        tail: list[int] = []
        for position in reversed(range(len(self.documents))):
            if room <= 0:
                break
            tail.append(position)
            room -= len(self.lm.encode(f"{self.documents[position].text}\n"))
        return [tail] * len(questions)
