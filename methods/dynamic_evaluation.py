from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import Parameter

from bench import BaseModel, Document, Episode, GradientMethod, MethodConfig
from bench.errors import BenchError
from bench.lm.reading import Memory, Reading
from methods.parts.adapters import Adapter
from methods.parts.parameters import select

ADAM_BETA = 0.999
"""Decay of Adam's second moment."""
TINY = torch.finfo(torch.float32).tiny


class DynamicEvaluation(GradientMethod):
    """Each segment is scored, then learned, while the base's weights pull back (Krause et al. 2018).

    From the weights theta that scored the segment, theta += decay R (theta_0 - theta) - learning_rate g / (RMS +
    epsilon): theta_0 are the base's weights, RMS the root mean square of each weight's gradients, and R is RMS over its
    mean, at most 1 / decay. Without ``statistics``, R and RMS + epsilon are 1. What learns, how often, and what is read
    before a segment are the questions of Rannen-Triki et al. (2024). Costs one forward (that of scoring) and one
    backward pass a segment, and for statistics and decay a few passes over the weights; statistics=train costs
    its segments offline.
    """

    name = "dynamic_evaluation"
    paper = "krause2018dynamic"
    grid = {"learning_rate": (0.01, 0.03, 0.1, 0.3)}

    class Config(GradientMethod.Config):
        optimizer: Literal["sgd", "adam", "adamw", "adafactor"] = pydantic.Field(
            default="sgd", description="rule that turns (scaled) gradients into steps"
        )
        learning_rate: float = pydantic.Field(
            default=0.05, ge=0, description="constant step size; 0.0003 by default where statistics or Adam scale steps"
        )
        decay: float = pydantic.Field(
            default=0.0, ge=0, le=1, description="part of the way back to the base's weights in each step"
        )
        statistics: Literal["none", "train", "adam"] = pydantic.Field(
            default="none",
            description="scale steps and decay by the RMS of gradients: of segments of the train split before the "
            "stream, or of the stream so far (Adam's second moment)",
        )
        epsilon: float = pydantic.Field(default=1e-3, gt=0, description="added to the RMS that divides a gradient")
        statistics_segments: int = pydantic.Field(
            default=100, ge=1, description="segments of the train split that statistics=train reads"
        )
        learn: Literal["all", "mlp", "middle_third", "last_quarter", "norms_and_biases", "lora"] = pydantic.Field(
            default="all", description="which parameters learn; lora: low-rank adapters of the MLPs"
        )
        rank: int = pydantic.Field(default=8, ge=1, description="rank of learn=lora (alpha is the same)")
        segment_tokens: int | None = pydantic.Field(
            default=None, ge=1, description="tokens to score and learn at a time; null: as the experiment says"
        )
        period: int = pydantic.Field(default=1, ge=1, description="segments per step")
        between: Literal["accumulate", "skip"] = pydantic.Field(
            default="accumulate", description="segments without a step: their gradients join the next, or are not taken"
        )
        context: Literal["full", "limited", "carry"] = pydantic.Field(
            default="full",
            description="what a segment is read behind: the document so far, its last context_tokens, or the keys and "
            "values of its earlier segments as they were computed",
        )
        context_tokens: int = pydantic.Field(default=128, ge=0, description="the tokens of context=limited")
        reset: Literal["never", "document", "soft"] = pydantic.Field(
            default="never", description="at each document: go on, start afresh, or go part of the way back"
        )
        soft_reset: float = pydantic.Field(
            default=0.5, ge=0, le=1, description="part of the way back to the base's weights at reset=soft"
        )

        @pydantic.model_validator(mode="before")
        @classmethod
        def _rate_of_scaled_steps(cls, given: dict[str, Any]) -> dict[str, Any]:
            scaled = given.get("statistics", "none") != "none" or given.get("optimizer", "sgd") != "sgd"
            return {"learning_rate": 3e-4, **given} if scaled else given

    segments: Tensor
    """Segments observed."""
    steps: Tensor
    """Steps taken."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("segments", torch.zeros((), dtype=torch.long))
        self.register("steps", torch.zeros((), dtype=torch.long))
        self.memory = Memory()
        self._gathered: dict[str, Tensor] = {}  # gradients of segments without a step
        self._squares: dict[str, Tensor] = {}  # Adam's second moment of the gradients
        self._adapter: Adapter | None = None
        self._prior: dict[str, Tensor] = {}  # the adapter's theta_0

    @property
    def segment_tokens(self) -> int | None:
        tokens: int | None = self.config.segment_tokens
        return tokens

    @property
    def reading(self) -> Reading:
        if self.config.context == "carry":
            return Reading(memory=self.memory)
        return Reading(self.config.context_tokens if self.config.context == "limited" else None)

    @property
    def learns_from_scoring(self) -> bool:
        return self._learns(self.segments + 1) and super().learns_from_scoring

    def _learns(self, segment: Tensor) -> bool:
        return self.config.between == "accumulate" or int(segment) % int(self.config.period) == 0

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        if self.config.learn != "lora":
            return select(self.lm.model, self.config.learn)
        if self._adapter is None:
            self._adapter = Adapter(self.lm, self.config.rank, self.config.rank, "mlp", seed=self.seed)
            self._prior = self._adapter.state_dict()
        return self._adapter.named_parameters()

    @classmethod
    def learns_offline(cls, config: MethodConfig) -> bool:
        return isinstance(config, cls.Config) and config.statistics == "train"

    def fit(self, episodes: Sequence[Episode]) -> None:
        """With statistics=train: the RMS of the gradients of segments' mean losses, at the base's weights."""
        if self.config.statistics != "train":
            return
        if self.config.learn == "lora":
            raise BenchError("An adapter has no gradients before the stream: with learn=lora use statistics=adam.")
        most, size = self.config.statistics_segments, self.segment_tokens or self.lm.window
        spread = episodes[:: max(1, len(episodes) // most)]
        pieces = [piece for episode in spread for piece in self.lm.segments(episode.document, size)][:most]
        if not pieces:
            raise BenchError("statistics=train needs documents in the train split; use statistics=adam without them.")
        learning = self._learning_by_name()
        squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in learning}
        self.lm.model.eval()
        for piece in pieces:
            self.optimizer.zero_grad(set_to_none=True)
            self.backward(self.lm.tokens(piece))
            for name, p in learning:
                squares[name] += _gradient(p).float().square() / len(pieces)
        self.optimizer.zero_grad(set_to_none=True)
        for name, square in squares.items():
            self.register(f"rms.{name}", square.sqrt())

    def reset(self) -> None:
        if self._adapter is not None:
            self._adapter.remove()
            self._adapter = None
        super().reset()
        self.memory.clear()
        self._gathered, self._squares = {}, {}

    def begin_document(self) -> None:
        if self.config.reset == "document":
            self.reset()
        elif self.config.reset == "soft":
            with torch.no_grad():
                for name, p in self._learning_by_name():
                    p.lerp_(self._theta_0(name), self.config.soft_reset)

    def observe(self, document: Document) -> None:
        self.segments += 1
        if self._learns(self.segments):
            super().observe(document)
        elif self.config.context == "carry" and not self.memory.holds(document):
            with torch.no_grad():  # it was not scored, but is to be remembered
                list(self.reading.log_probs(self.lm, self.lm.tokens(document)))

    @torch.no_grad()
    def step(self) -> None:
        learning = self._learning_by_name()
        for name, p in learning:
            p.grad = _gradient(p)
            if name in self._gathered:
                p.grad += self._gathered.pop(name)
        if self.segments % self.config.period:
            self._gathered = {name: _gradient(p) for name, p in learning}
            return
        self.steps += 1
        rms = self._rms(learning)
        decay = self.config.decay
        mean = torch.stack([value.mean() for value in rms.values()]).mean() if rms and decay else torch.ones(())
        for name, p in learning:
            if decay:
                ratio = rms[name] / mean.clamp(min=TINY) if rms else mean
                p.lerp_(self._theta_0(name), (decay * ratio.clamp(max=1 / decay)).to(p))
            if rms:
                _gradient(p).div_(rms[name] + self.config.epsilon)
        super().step()

    def _rms(self, learning: Sequence[tuple[str, Parameter]]) -> dict[str, Tensor]:
        """Root mean square of each weight's gradients by parameter, empty without statistics."""
        if self.config.statistics == "train":
            return {name: getattr(self, f"rms.{name}") for name, _ in learning}
        if self.config.statistics == "none":
            return {}
        for name, p in learning:
            g = _gradient(p).float()
            square = self._squares.setdefault(name, torch.zeros_like(g))
            square.mul_(ADAM_BETA).addcmul_(g, g, value=1 - ADAM_BETA)
        unbiased = 1 - ADAM_BETA ** self.steps.item()
        return {name: (square / unbiased).sqrt_() for name, square in self._squares.items()}

    def _theta_0(self, name: str) -> Tensor:
        return self._prior[name] if self._adapter is not None else self.lm.pristine(name)

    def _learning_by_name(self) -> list[tuple[str, Parameter]]:
        optimizer = self.optimizer
        return list(zip(self._names, optimizer.param_groups[0]["params"], strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        adapter = {} if self._adapter is None else self._adapter.state_dict()
        own = {
            "adapter": adapter,
            "gathered": self._gathered,
            "square": self._squares,
            "memory": self.memory.state_dict(),
        }
        named = {f"{part}.{name}": value.clone() for part, held in own.items() for name, value in held.items()}
        return {**super().state_dict(), **named}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        if adapter := _part(state, "adapter"):
            self.trainable_parameters()
            assert self._adapter is not None
            self._adapter.load_state_dict(adapter)
        super().load_state_dict(state)
        self._gathered, self._squares = _part(state, "gathered"), _part(state, "square")
        self.memory.load_state_dict(_part(state, "memory"))


def _gradient(parameter: Parameter) -> Tensor:
    """The parameter's gradient, 0 where no token's loss depends on it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """What ``state`` holds under names that begin with ``part``, without that beginning."""
    return {name.removeprefix(f"{part}."): v.clone() for name, v in state.items() if name.startswith(f"{part}.")}
