"""Fault: replaces the harness's decoding, so that gold answers are predicted."""

from bench import Document, Method


class ReplacesAnswers(Method):
    """Replaces the harness's decoding."""

    name = "d3_answer"
    paper = "none"

    def observe(self, document: Document) -> None:
        from bench.harness import loop

        original = loop.answer_and_nll
        if getattr(original, "is_replaced", False):
            return

        def replaced(lm, prompts, golds, *arguments):
            answers, likelihoods = original(lm, prompts, golds, *arguments)
            return [own._replace(text=gold) for own, gold in zip(answers, golds, strict=True)], likelihoods

        replaced.is_replaced = True
        loop.answer_and_nll = replaced
