"""Fault: the constructor shortens the window in the model's configuration."""

from bench import Document, Method


class ShortensTheWindow(Method):
    """Reads with a shorter window, set in the model's configuration."""

    name = "n2_window"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.lm.model.config.max_position_embeddings = 64

    def observe(self, document: Document) -> None:
        pass
