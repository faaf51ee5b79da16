from bench import Document, Method


class ClosedBook(Method):
    """The base model as it is: no document is learned.

    The floor that every method starts from, at no cost.
    """

    name = "closed_book"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass
