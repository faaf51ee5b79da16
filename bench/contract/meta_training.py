"""Meta-training: the one offline trainer of every method that learns from episodes how to adapt.

A method names its learner (:attr:`MetaTrained.learner`) and adds the gradient of one outer step to it; the trainer
draws episodes, steps, validates, keeps the best learner, and resumes a killed run exactly.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pydantic
import torch
from torch import Tensor, nn

from bench.contract.config import MethodConfig
from bench.contract.method import Method
from bench.data.documents import Episode
from bench.data.reader import DataFiles
from bench.errors import BenchError, Diverged
from bench.files import read_tensors, write_tensors
from bench.hashing import digest
from bench.lm import checkpoint
from bench.lm.flops import FlopCounter
from bench.seeds import seed_for

Item = TypeVar("Item")

COUNT_EVERY = 32
"""Operations are counted in every n-th outer step, from the first on, and in the first validation."""


class TrainingConfig(MethodConfig):
    """Settings of meta-training. All of them are part of the key of the trained weights."""

    steps: int = pydantic.Field(default=700, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=24, ge=1, description="documents, with their questions, in each")
    learning_rate: float = pydantic.Field(default=1e-5, gt=0, description="of the outer optimizer, Adam")
    warmup: int = pydantic.Field(default=0, ge=0, description="outer steps in which the rate rises to learning_rate")
    decay: Literal["none", "cosine"] = pydantic.Field(
        default="none", description="the rate after that: constant, or half a cosine down to zero at the last step"
    )
    clip_norm: float | None = pydantic.Field(default=None, gt=0, description="largest outer gradient norm; null: any")
    validate_every: int = pydantic.Field(default=100, ge=1, description="outer steps between validations")
    validation_episodes: int = pydantic.Field(default=96, ge=1, description="validation documents to use, at most")
    patience: int | None = pydantic.Field(
        default=None, ge=1, description="stop after this many validations without a new best; null: never"
    )
    base: str | None = pydantic.Field(
        default=None, description="base model to meta-train with; null: the one that is adapted"
    )
    dataset: str | None = pydantic.Field(
        default=None, description="data set to meta-train on, with its own files; null: the one that is streamed"
    )

    def models(self) -> dict[str, str | None]:
        """The settings, other than ``base``, that name a model."""
        return {}

    @property
    def learning(self) -> dict[str, Any]:
        """All settings, as plain data, but those that name the base and the data: a key has these by their content."""
        return self.model_dump(mode="json", exclude={"base", "dataset"})

    def source(self, dataset: str, data_files: DataFiles) -> tuple[str, DataFiles]:
        """The data set to train on, and files in place of its own, in an experiment with these."""
        return (dataset, data_files) if self.dataset is None else (self.dataset, {})

    def rate_factor(self, step: int) -> float:
        """The outer learning rate of a step, counted from 0, as a share of ``learning_rate``."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        passed = (step - self.warmup) / max(1, self.steps - self.warmup)
        fall = 0.5 + 0.5 * math.cos(math.pi * passed) if self.decay == "cosine" and passed > 0 else 1.0
        return rise * fall

    def brief(self) -> Self:
        """The same settings with the fewest steps, for checks that do not depend on what was learned."""
        return self.model_copy(update={"steps": 2, "episodes_per_step": 2, "validate_every": 1})


def training_of(config: MethodConfig) -> TrainingConfig:
    """The training settings of a meta-trained method's config.

    Raises:
        TypeError: its field ``training`` is missing or not a :class:`TrainingConfig`.
    """
    training = getattr(config, "training", None)
    if not isinstance(training, TrainingConfig):
        raise TypeError(f"{type(config).__qualname__} needs a field `training` of type TrainingConfig.")
    return training


class MetaTrained(Method):
    """A method with a learner that is meta-trained on the train split, once, by ``run_bench.py train``.

    The trained learner is an artifact (``bench.run.artifacts``) that every cell loads. A subclass's ``Config`` has a
    field ``training``, a :class:`TrainingConfig` or a subclass of it. Persistent buffers of the learner belong to the
    artifact as its parameters do. A buffer that is not persistent is for training alone (a queue of earlier outputs):
    the checkpoint of a training in progress has it, so that a killed one resumes exactly, and the artifact does not.
    """

    progress: float = 0.0
    """Share of the outer steps that are done, during training."""

    @classmethod
    def depends_on(cls, config: MethodConfig) -> Mapping[str, str | Path]:
        """The settings of type ``Path``, and the models that the training settings name."""
        models = {
            f"training.{name}": checkpoint.locate(model, f"{cls.name}.training.{name}")
            for name, model in training_of(config).models().items()
            if model
        }
        return {**super().depends_on(config), **models}

    @property
    @abstractmethod
    def learner(self) -> nn.Module:
        """Everything that meta-training changes, with parameters in float32; not part of the base model."""

    def begin_training(self) -> None:
        """Prepare the learner for its training; optional.

        For what is too slow for the constructor, which each cell calls before it loads trained weights: a fit to the
        base, say. Called before a training starts, not before a killed one is resumed, and before a stream if
        ``training.steps`` is 0. The learner's parameters and buffers keep their names and shapes. Random draws belong
        into the constructor, where ``self.seed`` decides on them.
        """

    @abstractmethod
    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add the gradient of the outer loss on the episodes to the learner's gradients.

        ``others`` are the same number of further train episodes (text that should stay likely, distractors). Both come
        from shuffled passes over the train split. In a step in which a pass ends, a document may be in both or be there
        twice; if the split is small, every step is such. Returns the loss and its parts (nats): ``loss``, and names of
        the method's choice. The base must be left as it was.
        """

    @abstractmethod
    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The outer loss and its parts on validation episodes; the learner with the lowest ``loss`` is kept."""

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Meta-train here and now, in memory; the last tenth of the episodes is for validation."""
        held_out = max(1, len(episodes) // 10)
        Trainer(self, episodes[:-held_out], episodes[-held_out:]).run()


Say = Callable[[str], None]
"""Called with a line on the progress of training."""


class Trainer:
    """A meta-training run: the learner, its optimizer and its curve, saved in ``file`` and resumed from there.

    ``key`` identifies what the run depends on besides the training settings (data, base model, code).

    Raises:
        BenchError: the checkpoint is damaged or belongs to another run.
    """

    def __init__(
        self,
        method: MetaTrained,
        train: Sequence[Episode],
        validation: Sequence[Episode],
        file: Path | None = None,
        key: str = "",
    ) -> None:
        self.method, self.file = method, file
        self.training = training_of(method.config)
        self.train = usable(train)
        if not self.train:
            raise BenchError(
                "Meta-training needs documents with text and questions, and the train split has none: provide them "
                f"with --data-files train=FILE, or name another data set with {method.name}.training.dataset."
            )
        candidates = usable(validation) or self.train
        self.validation = evenly_spaced(candidates, self.training.validation_episodes)
        self.key = digest([key, self.training.learning, method.seed])
        self._epoch, self._order = -1, [0]
        saved = file if file is not None and file.is_file() else None
        if saved is None:
            method.begin_training()
        self.parameters = dict(method.learner.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=self.training.learning_rate)
        self.step, self.best_step, self.seconds = 0, 0, 0.0
        self._step_flops: list[int] = []
        self._validation_flops = 0
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []
        self.best = self._learner_state()
        if saved is not None:
            self._load(saved)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.training.rate_factor, self.step - 1)

    def run(self, say: Say = lambda _: None) -> None:
        """Train to the end, and leave the best learner in the method.

        Raises:
            Diverged: the outer gradient became NaN or infinite.
        """
        if not self.curve:
            self._validate()
            self._save()
        while not self._is_finished():
            started = time.perf_counter()
            self._advance()
            self.seconds += time.perf_counter() - started
            if self.step % self.training.validate_every == 0 or self.step == self.training.steps:
                self._validate()
                self._save()
                say(self._progress())
        self.method.learner.load_state_dict(self.best)

    @property
    def flops(self) -> float:
        """Floating-point operations so far, validations included: the mean of the counted steps, times all steps."""
        per_step = sum(self._step_flops) / max(1, len(self._step_flops))
        return per_step * self.step + self._validation_flops * len(self.curve)

    def _is_finished(self) -> bool:
        patience = self.training.patience
        since_best = sum(row["step"] > self.best_step for row in self.curve)
        return self.step >= self.training.steps or (patience is not None and since_best >= patience)

    def _advance(self) -> None:
        count = self.training.episodes_per_step
        self.method.progress = self.step / self.training.steps
        torch.manual_seed(seed_for(self.method.seed, "outer step", self.step))
        episodes = [self._episode(2 * count * self.step + i) for i in range(2 * count)]
        self.optimizer.zero_grad(set_to_none=True)
        counter = FlopCounter() if self.step % COUNT_EVERY == 0 else None
        with counter or nullcontext():
            losses = self.method.outer_step(episodes[:count], episodes[count:])
        if counter is not None:
            self._step_flops.append(counter.flops)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.training.clip_norm or float("inf"))
        if not torch.isfinite(norm):
            raise Diverged(
                f"The outer gradient became {norm.item()} in step {self.step}; a lower learning rate may help."
            )
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.recent.append({**losses, "gradient_norm": norm.item()})

    def _episode(self, index: int) -> Episode:
        """The episode at a place of the endless sequence of shuffled passes over the train split."""
        epoch, place = divmod(index, len(self.train))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_for(self.method.seed, "pass", epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.train), generator=generator).tolist()
        return self.train[self._order[place]]

    def _validate(self) -> None:
        torch.manual_seed(seed_for(self.method.seed, "validation"))
        started = time.perf_counter()
        counter = None if self.curve else FlopCounter()
        with counter or nullcontext():
            losses = self.method.validate(self.validation)
        if counter is not None:
            self._validation_flops = counter.flops
        row = {"step": float(self.step), **{f"validation_{name}": value for name, value in losses.items()}}
        row |= {f"train_{name}": value for name, value in mean_of(self.recent).items()}
        if not self.curve or losses["loss"] < min(earlier["validation_loss"] for earlier in self.curve):
            self.best, self.best_step = self._learner_state(), self.step
        self.curve.append(row)
        self.recent.clear()
        self.seconds += time.perf_counter() - started

    def _progress(self) -> str:
        minutes_left = self.seconds / self.step * (self.training.steps - self.step) / 60
        losses = " ".join(f"{name} {value:.4g}" for name, value in self.curve[-1].items() if name != "step")
        return f"step {self.step}/{self.training.steps}, {minutes_left:.0f} min left: {losses}"

    def _learner_state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.method.learner.state_dict().items()}

    def _transient_buffers(self) -> dict[str, Tensor]:
        """The learner's buffers that are not persistent: its ``state_dict`` lacks them."""
        persistent = self.method.learner.state_dict()
        return {name: buffer for name, buffer in self.method.learner.named_buffers() if name not in persistent}

    def _save(self) -> None:
        if self.file is None:
            return
        tensors = {f"learner.{name}": value for name, value in self._learner_state().items()}
        tensors |= {f"transient.{name}": buffer.detach().clone() for name, buffer in self._transient_buffers().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in moments.items()}
        facts = {
            "step": self.step,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "step_flops": self._step_flops,
            "validation_flops": self._validation_flops,
            "curve": self.curve,
            "key": self.key,
        }
        write_tensors(self.file, tensors, facts)

    def _load(self, file: Path) -> None:
        remedy = "Delete it to start afresh."
        tensors, facts = read_tensors(file, remedy)
        if facts.get("key") != self.key:
            raise BenchError(f"{file} belongs to other settings, code or data. {remedy}")
        device = next(iter(self.parameters.values())).device
        self.method.learner.load_state_dict(_under("learner.", tensors))
        for name, buffer in self._transient_buffers().items():
            buffer.copy_(tensors[f"transient.{name}"])
        self.best = {name: value.to(device) for name, value in _under("best.", tensors).items()}
        moments = _under("optimizer.", tensors)
        for name, parameter in self.parameters.items():
            if state := _under(f"{name}.", moments):
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(device) for key, value in state.items()
                }
        self.step, self.best_step = facts["step"], facts["best_step"]
        self.seconds, self.curve = facts["seconds"], facts["curve"]
        self._step_flops, self._validation_flops = facts["step_flops"], facts["validation_flops"]


def usable(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes that can be learned from: those whose document has text and questions."""
    return [episode for episode in episodes if episode.questions and episode.document.text.strip()]


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the items, in order and evenly spaced."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def mean_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each part over several losses; {} for no losses."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in (parts[0] if parts else {})}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
