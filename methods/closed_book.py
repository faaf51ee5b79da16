from bench import Document, Method


class ClosedBook(Method):
    """The base model without adaptation.

    The floor for every method. Costs nothing.
    """

    name = "closed_book"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass
