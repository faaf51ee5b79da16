"""Fault: the constructor replaces the forward pass of the base."""

from bench import Document, Method


class WrapsForward(Method):
    """Wraps the forward pass of the base."""

    name = "n4_attr_on_module"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        model = self.lm.model
        original = type(model).forward

        def forward(*args, **kwargs):
            out = original(model, *args, **kwargs)
            out.logits = out.logits * 1.5
            return out

        model.forward = forward

    def observe(self, document: Document) -> None:
        pass
