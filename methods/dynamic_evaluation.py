from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import pydantic
import torch
from torch import Tensor
from torch.nn import Parameter

from bench import BaseModel, Document, Episode, MethodConfig
from bench.contract.gradient import Optimizer
from bench.contract.meta_training import evenly_spaced
from bench.contract.search import Range, SearchSpace
from bench.errors import BenchError
from bench.lm.probe import Ability
from bench.lm.reading import CarriedCache, Reading
from methods.parts.adapter_method import AdapterMethod
from methods.parts.adapters import Adapter
from methods.parts.parameters import Subset, select

ADAM_BETA = 0.999
"""Decay of Adam's second moment."""
TINY = torch.finfo(torch.float32).tiny


class DynamicEvaluation(AdapterMethod):
    """Fine-tuning on each segment after it is scored, with a decay towards the base's weights (Krause et al. 2018).

    The step from the weights theta that scored a segment with gradient g is

        theta += decay R (theta_0 - theta) - learning_rate g / (RMS + epsilon),

    where theta_0 are the base's weights, RMS is the root mean square of each weight's gradients, and R is RMS over its
    mean, at most 1 / decay. Without ``statistics``, R and RMS + epsilon are 1. Settings choose the parameters that
    learn, the segments per step and the context of a segment, as studied by Rannen-Triki et al. (2024).

    With ``statistics=train`` many rows of a matrix, such as embeddings of words that the train split lacks, may have no
    gradient there. By default their RMS is taken to be the mean of the other rows'. The paper's formula gives them RMS
    0 (``unseen=epsilon``): they step at learning_rate / epsilon, and the method detects words that are new.

    Gradients that wait for the step of a ``period`` are not in the weights when questions are asked. The statistics are
    over gradients of single segments; those of Krause et al. are over batches of 100 sequences, so that their rates,
    decays and epsilons do not transfer. With a rate and a decay of 0 nothing is learned: the static model, with the
    context that is set.

    Costs one backward pass per segment, on the graph of the scoring, and a few passes over the weights for statistics
    and decay; statistics=train also costs a forward and a backward pass per segment offline.
    """

    name = "dynamic_evaluation"
    paper = "krause2018dynamic"

    class Config(AdapterMethod.Config):
        optimizer: Optimizer = pydantic.Field(default="sgd", description="optimizer, applied to the (scaled) gradients")
        learning_rate: float = pydantic.Field(
            default=0.05,
            ge=0,
            description="constant step size; 0.0003 by default with statistics or an optimizer that scales steps",
        )
        clip_norm: float | None = pydantic.Field(
            default=None, gt=0, description="largest global norm of the (scaled) gradients; null: no clipping"
        )
        decay: float = pydantic.Field(
            default=0.0, ge=0, le=1, description="fraction of the way back to the base's weights per step"
        )
        statistics: Literal["none", "train", "adam"] = pydantic.Field(
            default="none",
            description="scale steps and decay by the RMS of gradients: of segments of the train split (train) or of "
            "the stream so far (adam, its second moment)",
        )
        unseen: Literal["mean", "epsilon"] = pydantic.Field(
            default="mean",
            description="RMS of a matrix's rows (a vector's entries) without any gradient in statistics=train: the "
            "mean over the other rows, or 0, so that they step at learning_rate / epsilon: a detector of new words",
        )
        epsilon: float = pydantic.Field(default=1e-3, gt=0, description="added to the RMS before division")
        statistics_segments: int = pydantic.Field(
            default=100, ge=1, description="segments of the train split for statistics=train, evenly spaced"
        )
        learn: Subset | Literal["lora"] = pydantic.Field(
            default="all", description="parameters that learn; lora: low-rank adapters of the MLPs"
        )
        rank: int = pydantic.Field(default=8, ge=1, description="rank (and alpha) of learn=lora")
        segment_tokens: int | None = pydantic.Field(
            default=None, ge=1, description="tokens to score and learn at a time; null: as the experiment says"
        )
        period: int = pydantic.Field(default=1, ge=1, description="segments per step")
        between: Literal["accumulate", "skip"] = pydantic.Field(
            default="accumulate",
            description="segments without a step: add their gradients to the next step, or skip them",
        )
        context: Literal["full", "limited", "carry"] = pydantic.Field(
            default="full",
            description="context of a segment: the document so far (half a window if not all fits), its last "
            "context_tokens, or the cached keys and values of its earlier segments",
        )
        context_tokens: int = pydantic.Field(default=128, ge=0, description="tokens of context=limited")
        reset: Literal["never", "document", "soft"] = pydantic.Field(
            default="never",
            description="at each new document: continue, return to the base, or go part of the way back",
        )
        soft_reset: float = pydantic.Field(
            default=0.5, ge=0, le=1, description="fraction of the way back to the base's weights with reset=soft"
        )

        @pydantic.model_validator(mode="before")
        @classmethod
        def _lower_rate_for_scaled_steps(cls, values: dict[str, Any]) -> dict[str, Any]:
            scaled = values.get("statistics", "none") != "none" or values.get("optimizer", "sgd") != "sgd"
            return {"learning_rate": 3e-4, **values} if scaled else values

        @pydantic.model_validator(mode="after")
        def _accumulates_each_gradient_once(self) -> Self:
            if self.steps_per_document > 1 and self.period > 1 and self.between == "accumulate":
                raise ValueError("with several steps_per_document, use period=1 or between=skip")
            return self

        @pydantic.model_validator(mode="after")
        def _computes_the_cache_once(self) -> Self:
            if self.context == "carry" and self.gradient_checkpointing:
                raise ValueError("context=carry keeps keys and values of layers: it has no gradient_checkpointing")
            return self

        @pydantic.model_validator(mode="after")
        def _has_gradients_before_the_stream(self) -> Self:
            if self.learn == "lora" and self.statistics == "train":
                raise ValueError("half of a new adapter has no gradients: with learn=lora, use statistics=adam")
            return self

    segments: Tensor
    """Segments observed."""
    steps: Tensor
    """Steps taken."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.register("segments", torch.zeros((), dtype=torch.long))
        self.register("steps", torch.zeros((), dtype=torch.long))
        self.cache = CarriedCache()
        self._is_fitting = False
        self._accumulated: dict[str, Tensor] = {}  # gradients since the last step
        self._second_moment: dict[str, Tensor] = {}  # Adam's, of the gradients
        self._initial_adapter: dict[str, Tensor] = {}  # the adapter's theta_0

    @classmethod
    def search_space(cls, config: Any) -> SearchSpace:
        """The base class's, with smaller step sizes if steps are scaled, and one step on accumulated gradients."""
        space = dict(super().search_space(config))
        if config.statistics != "none":
            space["learning_rate"] = Range(low=1e-5, high=1e-3, log=True)
        if config.period > 1 and config.between == "accumulate":
            del space["steps_per_document"]
        return space

    @property
    def segment_tokens(self) -> int | None:
        return self.config.segment_tokens or super().segment_tokens

    @property
    def reading(self) -> Reading:
        if self.config.context == "carry":
            return Reading() if self._is_fitting else Reading(cache=self.cache)  # its segments are of many documents
        return Reading(self.config.context_tokens if self.config.context == "limited" else None)

    @property
    def learns_from_scoring(self) -> bool:
        return super().learns_from_scoring and self._learns_from(self.segments + 1)

    def _learns_from(self, segment: Tensor) -> bool:
        if self.config.learning_rate == 0 and self.config.decay == 0:
            return False
        return self.config.between == "accumulate" or int(segment) % int(self.config.period) == 0

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        if self.config.learn == "lora":
            return super().trainable_parameters()
        return select(self.lm.model, self.config.learn)

    def build_adapter(self) -> Adapter:
        adapter = Adapter(self.lm, self.config.rank, self.config.rank, "mlp", seed=self.seed)
        self._initial_adapter = adapter.state_dict()
        return adapter

    @classmethod
    def learns_offline(cls, config: MethodConfig) -> bool:
        return isinstance(config, cls.Config) and config.statistics == "train"

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        assert isinstance(config, cls.Config)
        carried: Sequence[Ability] = ("carried_cache",) if config.context == "carry" else ()
        return (*carried, "gradients" if config.learn == "lora" else "float_weights")

    def fit(self, episodes: Sequence[Episode]) -> None:
        """With statistics=train, compute the RMS of the gradients of segments' mean losses at the base's weights."""
        if self.config.statistics != "train":
            return
        most, size = self.config.statistics_segments, self.segment_tokens or self.lm.window
        # not all documents, which would take long to cut; and one more than segments, or else documents of equal length
        # would give their first segments alone
        spread = evenly_spaced(episodes, most + 1)
        segments = evenly_spaced([s for episode in spread for s in self.lm.segments(episode.document, size)], most)
        if not segments:
            raise BenchError("statistics=train needs documents in the train split. Without them use statistics=adam.")
        learning = self.learning
        squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in learning}
        self.lm.model.eval()
        self._is_fitting = True
        for segment in segments:
            self.optimizer.zero_grad(set_to_none=True)
            self.backward(self.lm.tokens(segment))
            for name, p in learning:
                squares[name] += _gradient(p).float().square() / len(segments)
        self._is_fitting = False
        self.optimizer.zero_grad(set_to_none=True)
        for name, square in squares.items():
            rows = square.sqrt().reshape(len(square) if square.ndim else 1, -1)
            has_gradient = rows.any(1)
            if self.config.unseen == "mean" and has_gradient.any():
                rows[~has_gradient] = rows[has_gradient].mean(0)
            self.register(f"rms.{name}", rows.reshape(square.shape))

    def reset(self) -> None:
        super().reset()
        self.cache.clear()
        self._accumulated, self._second_moment = {}, {}

    def begin_document(self) -> None:
        if self.config.reset == "document":
            self.reset()
        elif self.config.reset == "soft":
            with torch.no_grad():
                for name, p in self.learning:
                    p.lerp_(self._theta_0(name), self.config.soft_reset)

    def observe(self, document: Document) -> None:
        self.segments += 1
        if self._learns_from(self.segments):
            super().observe(document)
        elif self.config.context == "carry" and not self.cache.is_last_segment(document):
            with torch.no_grad():  # it was not scored, but belongs in the cache
                list(self.reading.log_probs(self.lm, self.lm.tokens(document)))

    @torch.no_grad()
    def step(self) -> None:
        learning = self.learning
        for name, p in learning:
            p.grad = _gradient(p)
            if name in self._accumulated:
                p.grad += self._accumulated.pop(name)
        if self.segments % self.config.period:
            self._accumulated = {name: _gradient(p) for name, p in learning}
            return
        self.steps += 1
        rms = self._rms(learning)
        decay = self.config.decay
        means = [value.mean().to(self.lm.device) for value in rms.values()] if decay else []
        mean = torch.stack(means).mean() if means else torch.ones(())
        for name, p in learning:
            if decay:
                ratio = rms[name] / mean.clamp(min=TINY).to(rms[name].device) if rms else mean
                p.lerp_(self._theta_0(name), (decay * ratio.clamp(max=1 / decay)).to(p))
            if rms:
                _gradient(p).div_(rms[name] + self.config.epsilon)
        super().step()

    def _rms(self, learning: Sequence[tuple[str, Parameter]]) -> dict[str, Tensor]:
        """Root mean square of each weight's gradients, by parameter; empty without statistics."""
        if self.config.statistics == "train":
            return {name: getattr(self, f"rms.{name}") for name, _ in learning}
        if self.config.statistics == "none":
            return {}
        for name, p in learning:
            g = _gradient(p).float()
            square = self._second_moment.setdefault(name, torch.zeros_like(g))
            square.mul_(ADAM_BETA).addcmul_(g, g, value=1 - ADAM_BETA)
        correction = 1 - ADAM_BETA ** self.steps.item()  # of the bias towards 0
        return {name: (square / correction).sqrt_() for name, square in self._second_moment.items()}

    def _theta_0(self, name: str) -> Tensor:
        return self._initial_adapter[name] if self.is_adapted else self.lm.pristine(name)

    def state_dict(self) -> dict[str, Tensor]:
        parts = {"gathered": self._accumulated, "square": self._second_moment, "memory": self.cache.state_dict()}
        named = {f"{part}.{name}": value.clone() for part, values in parts.items() for name, value in values.items()}
        return {**super().state_dict(), **named}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reset()
        super().load_state_dict(state)
        self._accumulated, self._second_moment = _part(state, "gathered"), _part(state, "square")
        self.cache.load_state_dict(_part(state, "memory"))


def _gradient(parameter: Parameter) -> Tensor:
    """The parameter's gradient, 0 if no token's loss depends on it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of ``state`` whose names begin with ``part``, without this prefix."""
    return {name.removeprefix(f"{part}."): v.clone() for name, v in state.items() if name.startswith(f"{part}.")}
