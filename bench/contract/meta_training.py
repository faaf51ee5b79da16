"""Meta-training: the one offline trainer of every method that learns from episodes how to adapt.

A method says what is trained (:attr:`MetaTrained.learner`) and what one outer step adds to its gradient; the trainer
draws episodes, steps, validates, keeps the best, and resumes a killed run exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from bench.contract.config import MethodConfig
from bench.contract.method import Method
from bench.data.documents import Episode
from bench.errors import BenchError, Diverged
from bench.seeds import seed_for


class Training(MethodConfig):
    """How a method is meta-trained. Everything in it is part of the artifact's identity."""

    steps: int = pydantic.Field(default=700, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=24, ge=1, description="documents, with their questions, in each")
    learning_rate: float = pydantic.Field(default=1e-5, gt=0, description="of the outer optimizer, Adam")
    warmup: int = pydantic.Field(default=0, ge=0, description="outer steps in which the rate rises to learning_rate")
    decay: Literal["none", "cosine"] = pydantic.Field(
        default="none", description="the rate after that: constant, or half a cosine down to zero at the last step"
    )
    clip_norm: float | None = pydantic.Field(default=None, gt=0, description="largest outer gradient norm; null: any")
    validate_every: int = pydantic.Field(default=100, ge=1, description="outer steps between validations")
    validation_episodes: int = pydantic.Field(default=96, ge=1, description="most validation documents to use")
    patience: int | None = pydantic.Field(
        default=None, ge=1, description="stop after so many validations without a new best; null: never"
    )
    base: str | None = pydantic.Field(
        default=None, description="base model it is meta-trained with, if not the one adapted; null: that one"
    )
    seed: int = pydantic.Field(default=0, description="seed of the order of episodes and of the untrained learner")

    def models(self) -> dict[str, str | None]:
        """The settings, other than ``base``, that name a model."""
        return {}

    def rate(self, step: int) -> float:
        """The outer learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        left = (step - self.warmup) / max(1, self.steps - self.warmup)
        fall = 0.5 + 0.5 * math.cos(math.pi * left) if self.decay == "cosine" and left > 0 else 1.0
        return self.learning_rate * rise * fall

    def brief(self) -> Self:
        """The same in the fewest steps: for checks that look at everything but what was learned."""
        return self.model_copy(update={"steps": 2, "episodes_per_step": 2, "validate_every": 1})


class MetaTrained(Method):
    """A method with a learner that is meta-trained on the train split, once, by ``run_bench.py train``.

    What was learned is an artifact (``bench.run.artifacts``) that every cell loads. A subclass's ``Config`` has a field
    ``training`` of a kind of :class:`Training`. The learner's saved buffers are kept and resumed with its parameters.
    """

    progress: float = 0.0
    """The share of the outer steps that is done, while training."""

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """All that meta-training changes, its parameters in float32; it is no part of the base model."""

    @abstractmethod
    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add to the learner's gradients those of the outer loss on the episodes.

        ``others`` are as many other train episodes (text to stay unchanged on, distractors). Returns the parts of the
        loss (nats) under ``loss`` and names of its own. The base must be left as it was found.
        """

    @abstractmethod
    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The parts of the outer loss on validation episodes; the lowest ``loss`` is the best learner."""

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Meta-train here and now, in memory; the last tenth of the episodes is for validation."""
        held_out = max(1, len(episodes) // 10)
        Trainer(self, episodes[:-held_out], episodes[-held_out:]).run()


Say = Callable[[str], None]


class Trainer:
    """A meta-training run: the learner, its optimizer and curve, saved in ``file`` and resumed from there.

    Raises:
        BenchError: the checkpoint is of another run.
    """

    prefixes: ClassVar = ("learner.", "best.", "optimizer.")

    def __init__(
        self,
        method: MetaTrained,
        train: Sequence[Episode],
        validation: Sequence[Episode],
        file: Path | None = None,
        identity: str = "",
    ) -> None:
        self.method, self.file = method, file
        self.plan: Training = method.config.training
        usable = [episode for episode in train if episode.questions]
        if not usable:
            raise BenchError("Meta-training needs documents with questions, and the train split has none.")
        self.train = usable
        self._turn, self._order = -1, [0]
        self.validation = self._spread([e for e in validation if e.questions] or usable, self.plan.validation_episodes)
        self.identity = hashlib.sha256(f"{identity} {self.plan.model_dump_json()}".encode()).hexdigest()
        self.parameters = dict(method.learner.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.plan.learning_rate)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []
        self.best = self._copy()
        self.best_step = 0
        if file is not None and file.is_file():
            self._load(file)

    @staticmethod
    def _spread(episodes: Sequence[Episode], most: int) -> list[Episode]:
        count = min(most, len(episodes))
        return [episodes[i * len(episodes) // count] for i in range(count)]

    def run(self, say: Say = lambda _: None) -> None:
        """Train to the end, and leave the best learner in the method.

        Raises:
            Diverged: the outer gradient became NaN or infinite.
        """
        if not self.curve:
            self._validate()
            self._save()
        while not self._finished():
            started = time.perf_counter()
            self._advance()
            self.seconds += time.perf_counter() - started
            if self.step % self.plan.validate_every == 0 or self.step == self.plan.steps:
                self._validate()
                self._save()
                say(self._progress())
        self.method.learner.load_state_dict(self.best)

    def _finished(self) -> bool:
        stale = len([row for row in self.curve if row["step"] > self.best_step])
        return self.step >= self.plan.steps or (self.plan.patience is not None and stale >= self.plan.patience)

    def _advance(self) -> None:
        count = self.plan.episodes_per_step
        self.method.progress = self.step / self.plan.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step)
        torch.manual_seed(seed_for(self.plan.seed, "outer step", self.step))
        drawn = [self._episode(2 * count * self.step + i) for i in range(2 * count)]
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.method.outer_step(drawn[:count], drawn[count:])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.clip_norm or float("inf"))
        if not torch.isfinite(norm):
            raise Diverged(
                f"The outer gradient became {norm.item()} in step {self.step}; a lower learning rate may help."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.recent.append({**losses, "gradient_norm": norm.item()})

    def _episode(self, index: int) -> Episode:
        """The episode at a place of the endless sequence of shuffled passes over the train split."""
        turn, place = divmod(index, len(self.train))
        if turn != self._turn:
            generator = torch.Generator().manual_seed(seed_for(self.plan.seed, "pass", turn))
            self._turn, self._order = turn, torch.randperm(len(self.train), generator=generator).tolist()
        return self.train[self._order[place]]

    def _validate(self) -> None:
        torch.manual_seed(seed_for(self.plan.seed, "validation"))
        started = time.perf_counter()
        found = self.method.validate(self.validation)
        means = {f"train_{key}": _mean([row[key] for row in self.recent]) for key in (self.recent or [{}])[0]}
        row = {"step": float(self.step), **{f"validation_{key}": value for key, value in found.items()}, **means}
        if not self.curve or found["loss"] < min(earlier["validation_loss"] for earlier in self.curve):
            self.best, self.best_step = self._copy(), self.step
        self.curve.append(row)
        self.recent.clear()
        self.seconds += time.perf_counter() - started

    def _progress(self) -> str:
        left = self.seconds / self.step * (self.plan.steps - self.step) / 60
        told = " ".join(f"{key} {value:.4g}" for key, value in self.curve[-1].items() if key != "step")
        return f"step {self.step}/{self.plan.steps}, {left:.0f} min left: {told}"

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.method.learner.state_dict().items()}

    def _save(self) -> None:
        """Write the checkpoint in one piece or not at all."""
        from safetensors.torch import save_file

        if self.file is None:
            return
        tensors = {f"learner.{name}": value for name, value in self._copy().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        progress = {
            "step": self.step,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "curve": self.curve,
            "identity": self.identity,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"progress": json.dumps(progress)})
        os.replace(partial, self.file)

    def _load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                progress: dict[str, Any] = json.loads(file.metadata()["progress"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise BenchError(f"{path} is cut short or damaged ({error}); delete it to start afresh.") from None
        if progress["identity"] != self.identity:
            raise BenchError(f"{path} is of other settings, code or data; delete it to start afresh.")
        learner, self.best, moments = (_under(prefix, tensors) for prefix in self.prefixes)
        device = next(iter(self.parameters.values())).device
        self.method.learner.load_state_dict(learner)
        for name, parameter in self.parameters.items():
            state = _under(f"{name}.", moments)
            if state:
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(device) for key, value in state.items()
                }
        self.best = {name: value.to(device) for name, value in self.best.items()}
        self.step, self.best_step = progress["step"], progress["best_step"]
        self.seconds, self.curve = progress["seconds"], progress["curve"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
