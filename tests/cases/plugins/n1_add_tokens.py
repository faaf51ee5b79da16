"""Fault: the constructor adds tokens to the tokenizer."""

from bench import Document, Method


class AddsTokens(Method):
    """Adds tokens of its own to the tokenizer, as markers."""

    name = "n1_add_tokens"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lm.tokenizer.add_tokens(["<fact>", "<question>"])

    def observe(self, document: Document) -> None:
        pass
