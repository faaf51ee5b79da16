"""Methods that do not save or load their whole state."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bench import Conditioning, Document, GradientMethod, Method, Question


class ForgetsTheStep(GradientMethod):
    """Decays the learning rate by a counter that it does not save."""

    name = "forgets_the_step"
    paper = "none"
    count = 0

    def reset(self) -> None:
        super().reset()
        self.count = 0

    def observe(self, document: Document) -> None:
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate / self.count
        super().observe(document)


class ForgetsTheTexts(Method):
    """Remembers texts in a list that it does not save."""

    name = "forgets_the_texts"
    paper = "none"
    texts: tuple[str, ...] = ()

    def reset(self) -> None:
        super().reset()
        self.texts = ()

    def observe(self, document: Document) -> None:
        self.texts = (*self.texts, document.text[:20])

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=[" ".join(self.texts)] * len(questions))


class SavesNumbers(Method):
    """Saves a plain number among the tensors."""

    name = "saves_numbers"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "count": 3}


class LoadsNothing(GradientMethod):
    """Saves its state but does not load it."""

    name = "loads_nothing"
    paper = "none"

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass
