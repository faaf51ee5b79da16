import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional
from transformers.modeling_outputs import BaseModelOutput

from bench import BaseModel, Episode, GradientMethod, MethodConfig, TokenBatch
from bench.contract.meta_training import MetaTrained, TrainingConfig, mean_of
from bench.errors import BenchError
from bench.lm import checkpoint
from bench.seeds import seed_for
from methods.parts.adapters import target_modules
from methods.parts.depth import read_first_blocks, reading_once
from methods.parts.hooked_lora import HookedLora, Target
from methods.parts.inner_loop import (
    InnerLoop,
    InnerStep,
    Parameters,
    answer_loss,
    drift,
    logits,
    parameters_of,
    twice_differentiable,
)
from methods.parts.parameters import Subset, blocks, blocks_below, select

PADDED_LENGTH = 1023
"""Divisor of a document's loss with ``loss_divisor=padded``: the authors' code divides by its length after padding."""


class SharedBody(nn.Module):
    """The first ``count`` blocks of the frozen base, with low-rank adapters on their linear layers, which learn.

    It is called like the body of a model. The adapters are attached only while it reads.
    """

    def __init__(self, lm: BaseModel, count: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.lm, self.count = (lm,), count  # in a tuple: the base is not part of the learner
        first = {id(module) for block in blocks(lm.model)[:count] for module in block.modules()}
        modules = map(lm.model.get_submodule, target_modules(lm.model, "all"))
        self.lora = HookedLora([Target(module) for module in modules if id(module) in first], rank, alpha)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Hidden states of ids (rows, length), each normalised to mean 0 and variance 1; there is no cache."""
        lm = self.lm[0]
        with lm.frozen(), self.lora.attached():
            states = read_first_blocks(lm, self.count, input_ids)  # (rows, length, width)
        states = states.to(next(self.lora.parameters()).dtype)
        return BaseModelOutput(last_hidden_state=functional.layer_norm(states, states.shape[-1:]))


class Weigher(nn.Module):
    """Importance weight of each token of a text, computed from the text up to and including that token.

    The body of a causal language model with a head Linear-GELU-Linear, whose last layer starts at zero.
    """

    def __init__(self, body: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.body = body
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, ids: Tensor) -> Tensor:
        """Weights of the tokens ``ids``, both of shape (tokens,): softplus, with beta 3, of their scores."""
        hidden = self.body(input_ids=ids[None], use_cache=False).last_hidden_state[0]  # (tokens, width)
        return functional.softplus(self.head(hidden)[:, 0], beta=3)


class CamelsTraining(TrainingConfig):
    """Settings of the weighting model and its meta-training (Hu et al. 2023)."""

    backbone: str | None = pydantic.Field(
        default=None, description="causal LM whose body the weighting model starts from; null: the base"
    )
    weigher_blocks: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="the weighting model is the base's first n blocks, frozen, with low-rank adapters; null: a copy of "
        "all of its body, or the backbone's",
    )
    weigher_rank: int = pydantic.Field(default=8, ge=1, description="rank of these adapters")
    weigher_alpha: float = pydantic.Field(default=16, gt=0, description="their output is scaled by alpha / rank")
    learn: Subset = pydantic.Field(
        default="all", description="parameters of the base that learn, in the inner loop as in the stream"
    )
    hidden: int = pydantic.Field(default=128, ge=1, description="width of the head's hidden layer")
    inner_rate: float = pydantic.Field(default=5e-4, gt=0, description="rate of the SGD steps of the inner loop")
    unroll: int = pydantic.Field(default=6, ge=1, description="sequential inner steps that are differentiated through")
    reset_every: int = pydantic.Field(
        default=24, ge=1, description="documents after which the inner loop starts from the base again"
    )
    loss_divisor: Literal["tokens", "padded"] = pydantic.Field(
        default="tokens", description=f"divisor of the inner loss: the number of tokens, or {PADDED_LENGTH:,}"
    )
    locality: float = pydantic.Field(default=0.1, ge=0, description="c_kl, weight of the KL on other documents")
    kl_ref: Literal["initial", "microstep"] = pydantic.Field(
        default="initial", description="KL to the untouched base, or to the parameters before the unrolled steps"
    )
    dropout: bool = pydantic.Field(default=False, description="dropout in the weighting model and in the inner steps")
    checkpoint: bool = pydantic.Field(
        default=False, description="build each inner step again in the backward pass, to save memory"
    )

    @pydantic.model_validator(mode="after")
    def _whole_windows(self) -> Self:
        if self.reset_every % self.unroll or self.episodes_per_step % self.reset_every:
            raise ValueError("reset_every must be a multiple of unroll, and episodes_per_step one of reset_every")
        if self.checkpoint and self.dropout:
            raise ValueError("checkpoint needs dropout off: the steps built again would drop other units")
        if self.weigher_blocks is not None and (self.backbone, self.base) != (None, None):
            raise ValueError("weigher_blocks are those of the adapted base: they need backbone and base null")
        return self

    def models(self) -> dict[str, str | None]:
        """The backbone."""
        return {"backbone": self.backbone}

    def brief(self) -> Self:
        """The same settings with the fewest steps."""
        return super().brief().model_copy(update={"unroll": 2, "reset_every": 2})


class Camels(GradientMethod, MetaTrained):
    """Online fine-tuning with token weights that are meta-learned so that answers stick.

    A weighting model (the body of a language model with a small head) reads a document and weighs the loss of each
    token. It is meta-trained through several sequential SGD steps of the base, with exact second-order gradients: after
    these steps, answers about all their documents should be likely and other text should be predicted as before
    (Hu et al. 2023). Costs a forward pass of the weighting model on top of each step of fine-tuning.
    """

    name = "camels"
    paper = "hu2023camels"

    class Config(GradientMethod.Config):
        """Hyper-parameters of CaMeLS."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "reference": {
                "loss_divisor": "padded",
                "dropout": True,
                "clip_norm": 750.0,
                "training": {"loss_divisor": "padded", "dropout": True, "kl_ref": "microstep"},
            }
        }
        preset: Literal["sound", "reference"] = pydantic.Field(
            default="sound",
            description="our divisor, clipping, dropout and KL reference, or those of the authors' code",
        )
        control: Literal["none", "shuffled", "mean", "bimodal"] = pydantic.Field(
            default="none",
            description="for analysis: weights permuted within the document, the document's mean weight, or two "
            "levels (the mean of the weights above the mean weight, and 0 for the others)",
        )
        loss_divisor: Literal["tokens", "padded"] = pydantic.Field(
            default="tokens",
            description=f"divide the summed loss by the number of tokens, or by {PADDED_LENGTH:,} whatever the length, "
            "as the authors' code does",
        )
        training: CamelsTraining = pydantic.Field(
            default=CamelsTraining(), description="how the weighting model is trained"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        training = self.config.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "learner"))
            if training.weigher_blocks is None:
                body = self._body(training.backbone or training.base)
                width = body.get_input_embeddings().embedding_dim
            else:
                body = self._shared_body(training.weigher_blocks)
                width = lm.model.get_input_embeddings().embedding_dim
            self.weigher = Weigher(body, width, training.hidden).float().to(lm.device).eval()

    def _body(self, name: str | None) -> Any:
        """A copy of the base's body, or the body of the checkpoint ``name``.

        Raises:
            BenchError: the checkpoint has another vocabulary.
        """
        if name is None:
            return copy.deepcopy(self.lm.model.base_model).requires_grad_(True)
        other = BaseModel.load(str(checkpoint.locate(name)), str(self.lm.device))
        if other.tokenizer.get_vocab() != self.lm.tokenizer.get_vocab():
            raise BenchError(
                f"{name} has another vocabulary than the base model; the weights could not be matched. Set "
                f"camels.training.backbone or camels.training.base, whichever names it, to a model with the base's "
                f"tokenizer, or leave it out."
            )
        return other.model.base_model

    def _shared_body(self, count: int) -> SharedBody:
        """The base's first blocks, which must stay as they are while others learn.

        Raises:
            BenchError: the base has fewer blocks, or ``training.learn`` changes what they read or compute.
        """
        training, below = self.config.training, self._blocks_below()
        if count > len(below):
            raise BenchError(
                f"The weighting model reads the base's first {count} blocks, but with learn={training.learn} only its "
                f"first {len(below)} stay as they are. Set camels.training.learn to top_N with a small N, or "
                f"camels.training.weigher_blocks to a smaller number."
            )
        return SharedBody(self.lm, count, training.weigher_rank, training.weigher_alpha)

    def _blocks_below(self) -> list[nn.Module]:
        """The base's first blocks, which stay as they are while ``training.learn`` learns."""
        return blocks_below(self.lm.model, (parameter for _, parameter in self.trainable_parameters()))

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """Those of ``training.learn``."""
        return select(self.lm.model, self.config.training.learn)

    @property
    def learner(self) -> nn.Module:
        """The weighting model."""
        return self.weigher

    def loss_divisor(self, batch: TokenBatch) -> float:
        """The number of the document's tokens, or :data:`PADDED_LENGTH`."""
        return _divisor(self.config, batch)

    def learned_weights(self, batch: TokenBatch) -> Tensor:
        """Weights of the document's tokens, shape (tokens,), differentiable."""
        ids = torch.cat([batch.context_ids, batch.token_ids])
        windows = [
            self.weigher(ids[max(0, stop - self.lm.window) : stop])[first - stop :]
            for _, first, stop in self.lm.windows(len(batch), len(batch.context_ids))
        ]
        return torch.cat(windows)

    @torch.no_grad()
    def token_weights(self, batch: TokenBatch) -> Tensor:
        """The learned weights, changed as ``control`` says. A weighing part of the base has no dropout here."""
        learning = self.lm.model.training
        self.lm.model.eval()
        weights = self.learned_weights(batch)
        self.lm.model.train(learning)
        if self.config.control == "shuffled":
            generator = torch.Generator().manual_seed(seed_for(self.seed, "shuffled", *batch.token_ids.tolist()))
            return weights[torch.randperm(len(weights), generator=generator).to(weights.device)]
        if self.config.control == "mean":
            return weights.mean().expand_as(weights)
        if self.config.control == "bimodal":
            high = weights > weights.mean()
            return torch.where(high, weights[high].mean() if high.any() else weights.mean(), 0.0)
        return weights

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add the mean gradient of the outer loss over pieces of ``unroll`` documents.

        Each piece starts from the parameters that the one before it reached.
        """
        training = self.config.training
        self.weigher.train(training.dropout)
        with self.lm.frozen(), twice_differentiable(self.lm, training.dropout):
            losses = list(self._pieces(episodes, others, learn=True))
        self.weigher.eval()
        return mean_of(losses)

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The outer loss by the same procedure without outer gradients; other text is a document of the next piece."""
        shifted = [*episodes[self.config.training.unroll :], *episodes]
        with self.lm.frozen(), twice_differentiable(self.lm):
            return mean_of(list(self._pieces(episodes, shifted, learn=False)))

    def _pieces(
        self, episodes: Sequence[Episode], others: Sequence[Episode], learn: bool
    ) -> Iterator[dict[str, float]]:
        """The outer loss of each piece; with ``learn``, its gradient is added to the weighting model's."""
        training = self.config.training
        loop = InnerLoop(self.lm, training.inner_rate)
        initial = parameters_of(self.lm, training.learn)
        theta: Parameters = initial
        below = [] if training.dropout else self._blocks_below()  # dropout differs from pass to pass
        starts = range(0, len(episodes), training.unroll)
        for start in starts:
            piece = episodes[start : start + training.unroll]
            before = initial if start % training.reset_every == 0 else theta
            outer_loss = partial(
                self._outer_loss,
                piece,
                self.lm.tokens(others[start].document),
                initial if training.kl_ref == "initial" else before,
            )
            batches = [batch for batch in map(self.lm.tokens, (e.document for e in piece)) if len(batch)]
            with torch.set_grad_enabled(learn):
                steps = [InnerStep(b, self.learned_weights(b), _divisor(training, b)) for b in batches]
            if learn:
                with reading_once(self.lm, below):
                    losses, gradients, theta = loop.outer_gradient(before, steps, outer_loss, training.checkpoint)
                torch.autograd.backward([step.weights for step in steps], [g / len(starts) for g in gradients])
                yield losses
            else:
                with reading_once(self.lm, below):
                    theta = loop.unroll(before, steps, differentiable=False)[-1]
                    with torch.no_grad():
                        losses = {name: loss.item() for name, loss in outer_loss(theta).items()}
                yield losses

    def _outer_loss(
        self, piece: Sequence[Episode], other: TokenBatch, reference: Parameters, theta: Parameters
    ) -> dict[str, Tensor]:
        """Answer NLL after the steps, plus c_kl times the KL on another document (Hu et al. 2023).

        Only the reference of the KL has dropout, if dropout is on, as in the authors' code.
        """
        dropout = self.lm.model.training
        ids = torch.cat([other.context_ids, other.token_ids])[None, : self.lm.window]
        with torch.no_grad():
            expected = logits(self.lm, reference, ids)[0]
        self.lm.model.eval()
        answer_nll = answer_loss(self.lm, theta, piece)
        kl = drift(expected, logits(self.lm, theta, ids)[0])
        self.lm.model.train(dropout)
        return {"loss": answer_nll + self.config.training.locality * kl, "answer_nll": answer_nll, "drift": kl}


def _divisor(settings: Any, batch: TokenBatch) -> float:
    """The divisor of a document's loss by ``loss_divisor`` of the method or its training."""
    return len(batch) if settings.loss_divisor == "tokens" else PADDED_LENGTH
