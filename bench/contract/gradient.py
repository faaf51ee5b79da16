"""Adaptation by gradient: the shared machinery of every method that fine-tunes on the documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import Parameter

from bench.contract.config import MethodConfig
from bench.contract.method import Method
from bench.data.documents import Document
from bench.errors import Diverged
from bench.lm.base_model import BaseModel, TokenBatch


def build_optimizer(name: str, parameters: Iterable[Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer with its usual constants and a constant rate; no weight decay except AdamW's usual 0.01.

    ``adafactor`` neither scales by the parameters' size nor sets a relative step.
    """
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=learning_rate, scale_parameter=False, relative_step=False)
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    optimizer: Any = kinds[name]
    built: torch.optim.Optimizer = optimizer(parameters, lr=learning_rate)
    return built


class GradientMethod(Method):
    """Fine-tuning on every document as it arrives: gradient steps on its weighted next-token loss.

    A subclass overrides :meth:`token_weights` (what to learn from) or :meth:`trainable_parameters` (what may learn).
    """

    class Config(MethodConfig):
        """Hyper-parameters of online fine-tuning."""

        optimizer: Literal["sgd", "adam", "adamw", "adafactor"] = pydantic.Field(
            default="adam", description="rule that turns gradients into steps; its state lasts for the whole stream"
        )
        learning_rate: float = pydantic.Field(default=1e-4, ge=0, description="constant step size")
        steps_per_document: int = pydantic.Field(default=1, ge=1, description="optimizer steps on each document")
        clip_norm: float | None = pydantic.Field(
            default=None, gt=0, description="largest global gradient norm; null does not clip"
        )
        dropout: bool = pydantic.Field(default=False, description="keep the base's dropout on while learning")
        loss_divisor: Literal["tokens", "padded"] = pydantic.Field(
            default="tokens",
            description="divide the summed loss by the document's tokens, or by padded_length whatever its length",
        )
        padded_length: int = pydantic.Field(
            default=1023, ge=1, description="the divisor of loss_divisor=padded (1,023 in the CaMeLS code)"
        )

    grid: ClassVar[Mapping[str, Any]] = {"learning_rate": (1e-4, 2.5e-5, 6.25e-6, 1.5625e-6)}

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self._optimizer: torch.optim.Optimizer | None = None
        self._names: list[str] = []

    def token_weights(self, batch: TokenBatch) -> Tensor | None:
        """Weight of each token's loss, shape (tokens,), without gradient; None weighs every token 1 (the default)."""
        return None

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """Names and parameters that learn; all of the model's by default."""
        parameters: Iterable[tuple[str, Parameter]] = self.lm.model.named_parameters()
        return parameters

    def reset(self) -> None:
        """Back to the base's weights; the optimizer starts afresh."""
        super().reset()
        self._optimizer = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters, made when it is first needed."""
        if self._optimizer is None:
            learning = list(self.trainable_parameters())
            self._names = [name for name, _ in learning]
            self.lm.model.requires_grad_(False)
            for _, parameter in learning:
                parameter.requires_grad_(True)
            self._optimizer = build_optimizer(
                self.config.optimizer, [parameter for _, parameter in learning], self.config.learning_rate
            )
        return self._optimizer

    def observe(self, document: Document) -> None:
        """Take ``steps_per_document`` optimizer steps on the document's weighted loss.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        batch = self.lm.tokens(document)
        if len(batch) == 0:
            return
        optimizer = self.optimizer
        self.lm.model.train(self.config.dropout)
        for _ in range(self.config.steps_per_document):
            optimizer.zero_grad(set_to_none=True)
            loss = self.backward(batch)
            if not math.isfinite(loss):
                raise Diverged(f"The loss became {loss}; a lower learning rate may help.")
            self.step()
        optimizer.zero_grad(set_to_none=True)
        if self.config.dropout:
            self.lm.model.eval()

    def step(self) -> None:
        """One step of the optimizer on the gradients at hand, clipped if so configured."""
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._learning(), self.config.clip_norm)
        self.optimizer.step()

    def backward(self, batch: TokenBatch) -> float:
        """Add the gradient of the document's loss, sum of weight x -log p over the divisor, window by window.

        The first step on a document that was scored uses the graph of its scoring. Returns the loss (nats).
        """
        weights = self.token_weights(batch)
        divisor = len(batch) if self.config.loss_divisor == "tokens" else self.config.padded_length
        position, total = 0, 0.0
        for log_probs in self._log_probs(batch):
            piece = slice(position, position + len(log_probs))
            position = piece.stop
            weighted = log_probs if weights is None else log_probs * weights[piece].to(log_probs)
            loss = -weighted.sum() / divisor
            loss.backward()
            total += loss.item()
        return total

    def _log_probs(self, batch: TokenBatch) -> Iterable[Tensor]:
        scored, self.lm.scored = self.lm.scored, None
        if scored is not None and scored[0] is batch.document:
            return scored[1]
        return self.reading.log_probs(self.lm, batch)

    @property
    def learns_from_scoring(self) -> bool:
        """Scoring is without dropout, so that its graph serves unless dropout is asked for."""
        learns: bool = not self.config.dropout and self.optimizer is not None  # the optimizer says what needs gradients
        return learns

    def state_dict(self) -> dict[str, Tensor]:
        """The model's weights, the registered tensors and the optimizer's state by parameter name."""
        state = super().state_dict()
        if self._optimizer is not None:
            for name, parameter in zip(self._names, self._learning(), strict=True):
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    if value is not None:  # plain numbers travel as tensors, and come back as numbers
                        state[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights, the registered tensors and the optimizer's state."""
        super().load_state_dict(state)
        self._optimizer = None
        saved = {name: value for name, value in state.items() if name.startswith("optimizer.")}
        if not saved:
            return
        optimizer = self.optimizer
        plain = ("RMS",) + (("step",) if self.config.optimizer == "adafactor" else ())
        for name, parameter in zip(self._names, self._learning(), strict=True):
            prefix = f"optimizer.{name}."
            own = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
            if own:
                optimizer.state[parameter] = {
                    key: value.item() if key in plain else value.detach().clone() for key, value in own.items()
                }

    def _learning(self) -> list[Parameter]:
        assert self._optimizer is not None
        return list(itertools.chain.from_iterable(group["params"] for group in self._optimizer.param_groups))
