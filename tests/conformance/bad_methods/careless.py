"""Methods with common mistakes."""

import random
import sys
from collections.abc import Sequence
from typing import Any

import pydantic
import torch

from bench import (
    Conditioning,
    Document,
    Episode,
    GradientMethod,
    Method,
    MethodConfig,
    Question,
    Range,
    SearchSpace,
    TokenBatch,
)
from bench.contract.meta_training import MetaTrained, TrainingConfig
from bench.errors import BenchError
from bench.lm.base_model import BaseModel


class Unseeded(Method):
    """Draws from a generator that nobody seeded."""

    name = "unseeded"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.lm.model.lm_head.weight.data.mul_(1 + random.random() / 10)


class UnseededStart(Method):
    """Starts from a random tensor with a new seed each time."""

    name = "unseeded_start"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        generator = torch.Generator().manual_seed(random.getrandbits(62))
        self.register("memory", torch.randn(2, lm.model.config.hidden_size, generator=generator))

    def observe(self, document: Document) -> None:
        pass


class Unlearns(Method):
    """Loses at reset what it learned offline."""

    name = "unlearns"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("memory", torch.zeros(()))

    def fit(self, episodes: Sequence[Episode]) -> None:
        self.memory += len(episodes)

    def reset(self) -> None:
        super().reset()
        self.memory = torch.zeros(())

    def observe(self, document: Document) -> None:
        pass


class IsNeverFitted(Method):
    """Reads in observe what only fit makes, and says that it does not learn offline."""

    name = "is_never_fitted"
    paper = "none"

    @classmethod
    def learns_offline(cls, config: MethodConfig) -> bool:
        return False

    def fit(self, episodes: Sequence[Episode]) -> None:
        self.known = len(episodes)

    def observe(self, document: Document) -> None:
        assert self.known


class ReturnsLoss(GradientMethod):
    """Returns a loss from observe."""

    name = "returns_loss"
    paper = "none"

    def observe(self, document: Document) -> Any:
        super().observe(document)
        return 0.5


class FailsOnEmpty(Method):
    """Reads the first token of every document, also of an empty one."""

    name = "fails_on_empty"
    paper = "none"

    def observe(self, document: Document) -> None:
        int(self.lm.encode(document.text)[0])


class LearnsFromQuestions(Method):
    """Changes the weights whenever it is asked questions."""

    name = "learns_from_questions"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        self.lm.model.lm_head.weight.data.mul_(1.01)
        return Conditioning()


class CountsQuestions(Method):
    """Counts the questions that it is asked, and saves the count."""

    name = "counts_questions"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("count", torch.zeros(()))

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        self.count += len(questions)
        return Conditioning()


class FlattersItself(Method):
    """Replaces the function with which the harness scores documents."""

    name = "flatters_itself"
    paper = "none"

    def reset(self) -> None:
        super().reset()
        exact = type(self.lm).window_log_probs
        self.lm.window_log_probs = lambda *ids: (piece / 2 for piece in exact(self.lm, *ids))  # type: ignore[method-assign]

    def observe(self, document: Document) -> None:
        pass


class OneForAll(Method):
    """Returns one text for all questions."""

    name = "one_for_all"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(text=["A text."])


class NamesDocumentsToCome(Method):
    """Names a document that it has not observed."""

    name = "names_documents_to_come"
    paper = "none"

    def observe(self, document: Document) -> None:
        pass

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        return Conditioning(documents=[["to come"] for _ in questions])


class CastsTheBase(Method):
    """Casts the weights to the type that the base computes in."""

    name = "casts_the_base"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.lm.model.to(self.lm.dtype)


class WantsFloat32(Method):
    """Multiplies the logits by a float32 matrix, whatever the type that the base computes in."""

    name = "wants_float32"
    paper = "none"

    def observe(self, document: Document) -> None:
        logits = self.lm.model(input_ids=torch.tensor([[self.lm.bos_id]])).logits[0]
        torch.mm(torch.eye(1), logits)


class BadSpace(GradientMethod):
    """Has a search space with a value out of bounds."""

    name = "bad_space"
    paper = "none"

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """One choice too many."""
        return {"learning_rate": (1e-4, -1e-4)}


class BrokenSteps(GradientMethod):
    """Has a range of numbers for a setting that takes whole numbers only."""

    name = "broken_steps"
    paper = "none"

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """Ends that are valid, and nothing between them that is."""
        return {"steps_per_document": Range(low=1, high=4)}


class Undescribed(Method):
    """Has a setting without a description."""

    name = "undescribed"
    paper = "none"

    class Config(MethodConfig):
        """One setting."""

        strength: float = pydantic.Field(default=1.0, ge=0)

    def observe(self, document: Document) -> None:
        pass


class NoObserve(Method):
    """Lacks the required hook."""

    name = "no_observe"
    paper = "none"


class Exits(Method):
    """Calls sys.exit(0)."""

    name = "exits"
    paper = "none"

    def observe(self, document: Document) -> None:
        sys.exit(0)


class SkipsEverything(Method):
    """Needs a package that nobody can install."""

    name = "skips_everything"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        raise BenchError("skips_everything needs the package unobtainium: install it.")

    def observe(self, document: Document) -> None:
        pass


class Memory(pydantic.BaseModel):
    """A group of settings that accepts any key."""

    size: int = pydantic.Field(default=4, description="entries")


class LooseGroup(Method):
    """Has a group of settings in which a misspelt key is ignored."""

    name = "loose_group"
    paper = "none"

    class Config(MethodConfig):
        """One group."""

        memory: Memory = pydantic.Field(default=Memory(), description="the memory")

    def observe(self, document: Document) -> None:
        pass


class WeighsTheContext(GradientMethod):
    """Weighs the tokens of the context too, so that all weights are those of the token before."""

    name = "weighs_the_context"
    paper = "none"

    def token_weights(self, batch: TokenBatch) -> torch.Tensor:
        return torch.ones(len(batch.context_ids) + len(batch))


class TrainsTheBase(MetaTrained):
    """Changes the base in its training."""

    name = "trains_the_base"
    paper = "none"

    class Config(MethodConfig):
        """What MetaTrained needs."""

        training: TrainingConfig = pydantic.Field(default=TrainingConfig(), description="the training")

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.bias = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.bias.weight)

    @property
    def learner(self) -> torch.nn.Module:
        return self.bias

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        self.lm.model.lm_head.weight.data.add_(0.01)
        return self._step(1.0)

    def _step(self, target: float) -> dict[str, float]:
        loss = (self.bias(torch.ones(1, 1)) - target).square().sum()
        loss.backward()
        return {"loss": loss.item()}

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        return {"loss": float((self.bias.weight - 1).abs().item())}

    def observe(self, document: Document) -> None:
        pass


class TrainsUnseeded(TrainsTheBase):
    """Draws in its training from a generator that nobody seeded."""

    name = "trains_unseeded"
    paper = "none"

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        return self._step(1 + random.random())


class DropsTheSeed(Method):
    """Runs with the defaults, whatever it is given."""

    name = "drops_the_seed"
    paper = "none"

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm)

    def observe(self, document: Document) -> None:
        pass
