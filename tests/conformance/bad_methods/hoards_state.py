"""Methods that carry state from one stream to the next."""

from collections.abc import Sequence

import torch

from bench import Conditioning, Document, Method, Question
from bench.contract.config import MethodConfig
from bench.lm.base_model import BaseModel


class HoardsTexts(Method):
    """Keeps the texts in a list that reset does not empty, and puts them before every question."""

    name = "hoards_texts"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.texts: list[str] = []

    def observe(self, document: Document) -> None:
        self.texts.append(document.text[:20])

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=["\n".join(self.texts)] * len(questions))


class HoardsTensor(Method):
    """Sums embeddings into a tensor that it did not register."""

    name = "hoards_tensor"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.memory = torch.zeros(1, lm.model.config.hidden_size)

    def observe(self, document: Document) -> None:
        self.memory += self.lm.embeddings(self.lm.tokens(document).token_ids).detach().sum(0)

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(prefix_embeddings=[self.memory] * len(questions))


class NeverRestores(Method):
    """Changes the base's weights, and its reset does nothing."""

    name = "never_restores"
    paper = "none"

    def reset(self) -> None:
        pass

    def observe(self, document: Document) -> None:
        self.lm.model.lm_head.weight.data.add_(0.01)


class LeavesHook(Method):
    """Registers a hook on the base and does not remove it."""

    name = "leaves_hook"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        lm.model.model.norm.register_forward_hook(lambda module, inputs, output: output * 1.5)

    def observe(self, document: Document) -> None:
        pass
