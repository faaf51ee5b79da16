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


class UpdatesEverySecond(GradientMethod):
    """Collects documents in a list that it does not save, and updates on all of them when there are enough."""

    name = "updates_every_second"
    paper = "none"
    every = 2
    waiting: tuple[Document, ...] = ()

    def reset(self) -> None:
        super().reset()
        self.waiting = ()

    def observe(self, document: Document) -> None:
        self.waiting = (*self.waiting, document)
        if len(self.waiting) == self.every:
            for waiting in self.waiting:
                super().observe(waiting)
            self.waiting = ()


class UpdatesEveryFourth(UpdatesEverySecond):
    """The same, every fourth document."""

    name = "updates_every_fourth"
    paper = "none"
    every = 4


class UpdatesEveryEighth(UpdatesEverySecond):
    """The same, every eighth document."""

    name = "updates_every_eighth"
    paper = "none"
    every = 8


class UpdatesEverySixteenth(UpdatesEverySecond):
    """The same, every sixteenth document."""

    name = "updates_every_sixteenth"
    paper = "none"
    every = 16


class UpdatesLate(UpdatesEverySecond):
    """Updates on sixteen documents before it reads the seventeenth."""

    name = "updates_late"
    paper = "none"
    every = 17

    def begin_document(self) -> None:
        if len(self.waiting) == 16:
            for waiting in self.waiting:
                GradientMethod.observe(self, waiting)
            self.waiting = ()


class RehearsesTheFirst(GradientMethod):
    """Trains on the first document again with every fifth one, and saves neither that document nor the count."""

    name = "rehearses_the_first"
    paper = "none"
    seen: tuple[Document, ...] = ()

    def reset(self) -> None:
        super().reset()
        self.seen = ()

    def observe(self, document: Document) -> None:
        self.seen = (*self.seen, document)
        super().observe(document if len(self.seen) % 5 else self.seen[0])
