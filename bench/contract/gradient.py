"""Adaptation by gradient: the base class of every method that fine-tunes on the documents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor
from torch.nn import Parameter, functional

from bench.contract.config import MethodConfig
from bench.contract.method import Method
from bench.contract.search import Range, SearchSpace
from bench.data.documents import Document, Segment
from bench.errors import Diverged
from bench.lm.base_model import BaseModel, TokenBatch
from bench.lm.probe import Ability
from bench.lm.recompute import recomputed_layers

Optimizer = Literal["sgd", "adam", "adamw", "adafactor"]
"""An optimizer that :func:`build_optimizer` knows."""


def build_optimizer(name: Optimizer, parameters: Iterable[Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer with PyTorch's defaults and a constant rate; only AdamW has weight decay (0.01).

    Its kernels are fused: each step goes over the parameters once, in a quarter of the time. ``adafactor`` has none; it
    neither scales steps by the size of the parameters nor uses relative steps.
    """
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=learning_rate, scale_parameter=False, relative_step=False)
    kinds: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[name](parameters, lr=learning_rate, fused=True)


@dataclass(frozen=True)
class Weighed:
    """Weights of a document's tokens, shape (tokens,), without gradient."""

    document: Document
    weights: Tensor


class GradientMethod(Method):
    """Fine-tuning on each document as it arrives, by gradient steps on its weighted next-token loss.

    A subclass overrides :meth:`token_weights`, :meth:`trainable_parameters` or :meth:`loss_divisor`.
    """

    class Config(MethodConfig):
        """Hyper-parameters of online fine-tuning."""

        optimizer: Optimizer = pydantic.Field(
            default="adam", description="optimizer, whose state is kept for the whole stream"
        )
        learning_rate: float = pydantic.Field(default=1e-4, ge=0, description="constant step size")
        steps_per_document: int = pydantic.Field(default=1, ge=1, description="optimizer steps on each document")
        clip_norm: float | None = pydantic.Field(
            default=None, gt=0, description="largest global gradient norm; null: no clipping"
        )
        dropout: bool = pydantic.Field(default=False, description="use the base's dropout while learning")
        end_of_text: bool = pydantic.Field(
            default=False, description="learn the end-of-text token after each document too, with weight 1"
        )
        gradient_checkpointing: bool = pydantic.Field(
            default=False, description="keep the inputs of layers alone for the backward pass: less memory, more time"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self._optimizer: torch.optim.Optimizer | None = None
        self._names: list[str] = []
        self.last_weights: Weighed | None = None
        """Token weights of the last document; None if they were all 1."""

    @classmethod
    def search_space(cls, config: Any) -> SearchSpace:
        """The step size, in a range that fits the optimizer, and the steps on each document."""
        low, high = (1e-3, 1.0) if config.optimizer == "sgd" else (1e-6, 1e-2)
        return {"learning_rate": Range(low=low, high=high, log=True), "steps_per_document": (1, 2, 3, 5)}

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        """Weights that can change."""
        return ("float_weights",)

    def token_weights(self, batch: TokenBatch) -> Tensor | None:
        """Weight of each token's loss, shape (tokens,), without gradient. Default: None, which weighs every token 1.

        It is asked for once, before the first step on a document, or before each step if it is None. A document whose
        tokens all weigh 0 is skipped.
        """
        return None

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """Names and parameters that learn. Default: all of the model."""
        parameters: Iterable[tuple[str, Parameter]] = self.lm.model.named_parameters()
        return parameters

    def loss_divisor(self, batch: TokenBatch) -> float:
        """Divisor of a document's summed loss. Default: its number of tokens, so that the loss is a mean.

        With ``end_of_text`` the batch has the end-of-text token.
        """
        return len(batch)

    def reset(self) -> None:
        """Restore the base and drop the optimizer."""
        super().reset()
        self.drop_optimizer()
        self.last_weights = None

    def drop_optimizer(self) -> None:
        """Drop the optimizer; the next step makes a new one over the parameters that are then trainable."""
        self._optimizer = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the trainable parameters, made on first use; only these get gradients from then on."""
        if self._optimizer is None:
            trainable = dict(self.trainable_parameters())
            self._names = list(trainable)
            self.lm.model.requires_grad_(False)
            for parameter in trainable.values():
                parameter.requires_grad_(True)
            self._optimizer = build_optimizer(self.config.optimizer, trainable.values(), self.config.learning_rate)
        return self._optimizer

    @property
    def learning(self) -> list[tuple[str, Parameter]]:
        """Names and parameters in the optimizer."""
        parameters = itertools.chain.from_iterable(group["params"] for group in self.optimizer.param_groups)
        return list(zip(self._names, parameters, strict=True))

    def observe(self, document: Document) -> None:
        """Take ``steps_per_document`` optimizer steps on the document's weighted loss.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        batch = self.lm.tokens(document)
        if len(batch) == 0:
            return
        self.last_weights = None
        weights = self._weigh(batch)
        if weights is not None and not weights.any():
            return
        optimizer = self.optimizer
        self.lm.model.train(self.config.dropout)
        losses = []
        for _ in range(self.config.steps_per_document):
            optimizer.zero_grad(set_to_none=True)
            losses.append(self.backward(batch))
            self.step()
        for loss in torch.stack(losses).tolist():  # read once, since a GPU is waited for
            if not math.isfinite(loss):
                other = "--dtype bfloat16 or " if self.lm.dtype == torch.float16 else ""  # 65,504 is its largest number
                raise Diverged(f"The loss became {loss}; {other}a lower learning rate may help.")
        optimizer.zero_grad(set_to_none=True)
        if self.config.dropout:
            self.lm.model.eval()

    def step(self) -> None:
        """Clip the gradients if ``clip_norm`` is set, and take an optimizer step."""
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter for _, parameter in self.learning], self.config.clip_norm)
        self.optimizer.step()

    def _weigh(self, batch: TokenBatch) -> Tensor | None:
        """The document's :meth:`token_weights`, which :attr:`last_weights` keeps for further steps."""
        if self.last_weights is None or self.last_weights.document is not batch.document:
            weights = self.token_weights(batch)
            if weights is not None and weights.shape != (len(batch),):
                raise ValueError(
                    f"token_weights has the shape {tuple(weights.shape)} for a batch of {len(batch)} tokens: it is one "
                    f"weight for each of batch.token_ids, without the context."
                )
            self.last_weights = None if weights is None else Weighed(batch.document, weights.detach())
        return None if self.last_weights is None else self.last_weights.weights

    def backward(self, batch: TokenBatch) -> Tensor:
        """Add the gradient of the document's loss, sum of weight x -log p over the divisor, window by window.

        The first step after a scoring uses the graph of the scoring. Returns the loss (nats), a number on the device.
        """
        weights = self._weigh(batch)
        if self.config.end_of_text and not _continues(batch.document):
            batch = batch.followed_by(self.lm.eos_id)
            weights = None if weights is None else functional.pad(weights, (0, 1), value=1.0)
        divisor = self.loss_divisor(batch)
        position, total = 0, torch.zeros((), device=self.lm.device)
        with recomputed_layers(self.lm.model) if self.config.gradient_checkpointing else nullcontext():
            for log_probs in self._log_probs(batch):
                window = slice(position, position + len(log_probs))
                position = window.stop
                weighted = log_probs if weights is None else log_probs * weights[window].to(log_probs)
                loss = -weighted.sum() / divisor
                loss.backward()
                total += loss.detach()
        return total

    def _log_probs(self, batch: TokenBatch) -> Iterable[Tensor]:
        scored, self.scored = self.scored, None  # a graph can be used once
        if scored is not None and scored.document is batch.document and not self.config.end_of_text:
            return scored.log_probs
        return self.reading.log_probs(self.lm, batch)

    @property
    def learns_from_scoring(self) -> bool:
        """True unless dropout, ``end_of_text`` or ``gradient_checkpointing`` is on, which scoring runs without."""
        return not (self.config.dropout or self.config.end_of_text or self.config.gradient_checkpointing)

    def before_scoring(self) -> None:
        """Make the optimizer, so that the right parameters get gradients."""
        _ = self.optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """The model's weights, the registered tensors, and the optimizer's state by parameter name."""
        state = super().state_dict()
        if self._optimizer is not None:
            for name, parameter in self.learning:
                for key, value in self._optimizer.state.get(parameter, {}).items():
                    if value is not None:  # plain numbers travel as tensors, and come back as numbers
                        state[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the weights, the registered tensors and the optimizer's state."""
        super().load_state_dict(state)
        self.drop_optimizer()
        saved = {name: value for name, value in state.items() if name.startswith("optimizer.")}
        if not saved:
            return
        plain = ("RMS",) + (("step",) if self.config.optimizer == "adafactor" else ())
        for name, parameter in self.learning:
            prefix = f"optimizer.{name}."
            own = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
            if own:
                self.optimizer.state[parameter] = {
                    key: value.item() if key in plain else value.detach().clone() for key, value in own.items()
                }


def _continues(document: Document) -> bool:
    """True for a segment after which its document goes on."""
    return isinstance(document, Segment) and not document.last
