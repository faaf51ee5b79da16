"""Reads the gold answers off the stack frame of its caller."""

import inspect

from bench import Conditioning, Document, Method


class Frames(Method):
    """Reads gold answers off the caller's frame."""

    name = "a2_frames"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions):
        due = next((frame.frame.f_locals["due"] for frame in inspect.stack() if "due" in frame.frame.f_locals), None)
        if due is None:
            return Conditioning()
        return Conditioning(text=[f"{q.text} {d.gold.answers[0]}" for q, d in zip(questions, due, strict=True)])
