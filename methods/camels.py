import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import pydantic
import torch
from torch import Tensor, nn

from bench import BaseModel, Episode, GradientMethod, MethodConfig, TokenBatch
from bench.contract.meta_training import MetaTrained, Training
from bench.errors import BenchError
from bench.lm import checkpoint as models
from bench.seeds import seed_for
from methods.parts.inner_loop import (
    Parameters,
    answer_loss,
    drift,
    logits,
    parameters_of,
    twice_differentiable,
    unroll,
    weight_gradients,
)


class Weigher(nn.Module):
    """Importance weight of each token of a text, from the text up to and including that token.

    The body of a causal language model, and a head Linear-GELU-Linear whose last layer starts at zero.
    """

    def __init__(self, body: nn.Module, width: int, hidden: int, bounded: bool) -> None:
        super().__init__()
        self.body, self.bounded = body, bounded
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)
        self.log_rate = nn.Parameter(torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        """Weights of tokens ``ids``, both of shape (tokens,): softplus with beta 3, or a sigmoid if bounded."""
        hidden = self.body(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        out = self.head(hidden)[:, 0]
        weights = torch.sigmoid(out) if self.bounded else nn.functional.softplus(out, beta=3)
        return self.log_rate.exp() * weights


class CamelsTraining(Training):
    """How the weighting model is trained (Hu et al. 2023)."""

    backbone: str | None = pydantic.Field(
        default=None, description="causal LM whose body the weighting model starts from; null: that of the base"
    )
    hidden: int = pydantic.Field(default=128, ge=1, description="width of the head's hidden layer")
    bounded: bool = pydantic.Field(default=False, description="weights by a sigmoid, not a softplus")
    inner_rate: float = pydantic.Field(default=5e-4, gt=0, description="rate of the SGD steps of the inner loop")
    learn_inner_rate: bool = pydantic.Field(
        default=False, description="learn a factor on the inner rate; at test it scales all weights"
    )
    unroll: int = pydantic.Field(default=6, ge=1, description="sequential inner steps that are differentiated through")
    reset_every: int = pydantic.Field(
        default=24, ge=1, description="documents after which the base goes back; until then it is carried on"
    )
    loss_divisor: Literal["tokens", "padded"] = pydantic.Field(
        default="tokens", description="divisor of the inner loss: the document's tokens, or padded_length"
    )
    padded_length: int = pydantic.Field(default=1023, ge=1, description="the divisor of loss_divisor=padded")
    locality: float = pydantic.Field(default=0.1, ge=0, description="c_kl, weight of the KL on other documents")
    kl_ref: Literal["initial", "microstep"] = pydantic.Field(
        default="initial", description="KL to the untouched base, or to the base before the unrolled steps"
    )
    dropout: bool = pydantic.Field(default=False, description="dropout in the weighting model and in the inner steps")
    checkpoint: bool = pydantic.Field(
        default=False, description="build each inner step again on the way back, to save memory"
    )

    @pydantic.model_validator(mode="after")
    def _whole_windows(self) -> Self:
        if self.reset_every % self.unroll or self.episodes_per_step % self.reset_every:
            raise ValueError("reset_every must be a multiple of unroll, and episodes_per_step one of reset_every")
        if self.checkpoint and self.dropout:
            raise ValueError("checkpoint needs dropout off: the steps built again would drop other units")
        return self

    def models(self) -> dict[str, str | None]:
        """The backbone."""
        return {"backbone": self.backbone}

    def brief(self) -> Self:
        """The same in the fewest steps."""
        return super().brief().model_copy(update={"unroll": 2, "reset_every": 2})


class Camels(GradientMethod, MetaTrained):
    """Online fine-tuning with token weights that were meta-learned to make what is asked about stick.

    A weighting model (the body of a language model with a small head) reads a document and weighs each token's loss.
    It is meta-trained through several sequential SGD steps of the base, with exact second-order gradients: after
    them, answers about all their documents should be likely and other text predicted as before (Hu et al. 2023).
    Costs a forward pass of the weighting model on top of each step of fine-tuning.
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
            default="sound", description="the values used here, or those of the authors' code"
        )
        control: Literal["none", "shuffled", "mean", "bimodal"] = pydantic.Field(
            default="none",
            description="for analysis: weights permuted within the document, each document's mean weight, or two "
            "levels (0, and above the mean weight the mean of those)",
        )
        training: CamelsTraining = pydantic.Field(
            default=CamelsTraining(), description="how the weighting model is trained"
        )

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        plan = self.config.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(plan.seed, "learner"))
            body = self._body(plan.backbone or plan.base)
            width = body.get_input_embeddings().embedding_dim
            self.weigher = Weigher(body, width, plan.hidden, plan.bounded).float().to(lm.device).eval()
        self.weigher.log_rate.requires_grad_(plan.learn_inner_rate)

    def _body(self, name: str | None) -> Any:
        """A copy of the base's own body, or that of the checkpoint ``name``.

        Raises:
            BenchError: the checkpoint has another vocabulary.
        """
        if name is None:
            return copy.deepcopy(self.lm.model.base_model).requires_grad_(True)
        other = BaseModel.load(str(models.locate(name)), str(self.lm.device))
        if other.tokenizer.get_vocab() != self.lm.tokenizer.get_vocab():
            raise BenchError(f"{name} has another vocabulary than the base model; the weights could not be matched.")
        return other.model.base_model

    @property
    def learner(self) -> nn.Module:
        """The weighting model."""
        return self.weigher

    def weigh(self, batch: TokenBatch) -> Tensor:
        """Weights of the document's tokens, shape (tokens,), differentiable."""
        everything = torch.cat([batch.context_ids, batch.token_ids])
        pieces = [
            self.weigher(everything[max(0, stop - self.lm.window) : stop])[first - stop :]
            for _, first, stop in self.lm.windows(len(batch), len(batch.context_ids))
        ]
        return torch.cat(pieces)

    @torch.no_grad()
    def token_weights(self, batch: TokenBatch) -> Tensor:
        """The learned weights, or what the control makes of them."""
        weights = self.weigh(batch)
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
        """One outer step: windows of documents, each unrolled in pieces of ``unroll``, the base carried between."""
        plan = self.config.training
        self.weigher.train(plan.dropout)
        with twice_differentiable(self.lm, plan.dropout):
            parts = list(self._pieces(episodes, others, differentiable=True))
        self.weigher.eval()
        return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The outer loss in the same procedure without outer gradients; the other text is that of the next piece."""
        shifted = [*episodes[self.config.training.unroll :], *episodes]
        with twice_differentiable(self.lm):
            parts = list(self._pieces(episodes, shifted, differentiable=False))
        return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}

    def _pieces(
        self, episodes: Sequence[Episode], others: Sequence[Episode], differentiable: bool
    ) -> Iterator[dict[str, float]]:
        plan = self.config.training
        initial = parameters_of(self.lm)
        count = len(range(0, len(episodes), plan.unroll))
        theta: Parameters = initial
        for start in range(0, len(episodes), plan.unroll):
            piece, before = episodes[start : start + plan.unroll], theta
            if start % plan.reset_every == 0:
                before = initial
            batches = [batch for batch in map(self.lm.tokens, (e.document for e in piece)) if len(batch)]
            divisors = [len(b) if plan.loss_divisor == "tokens" else plan.padded_length for b in batches]
            elsewhere = self.lm.tokens(others[start].document)
            parts: dict[str, float] = {}

            outer_loss = partial(self._outer_loss, piece, elsewhere, initial, before, parts)
            with torch.set_grad_enabled(differentiable):
                weights = [self.weigh(batch) for batch in batches]
            if differentiable:
                loss, slopes, theta = weight_gradients(
                    self.lm, before, batches, weights, plan.inner_rate, divisors, outer_loss, plan.checkpoint
                )
                torch.autograd.backward(weights, [slope / count for slope in slopes])
            else:
                theta = unroll(self.lm, before, batches, weights, plan.inner_rate, divisors, differentiable=False)[-1]
                with torch.no_grad():
                    loss = outer_loss(theta).item()
            yield {"loss": loss, **parts}

    def _outer_loss(
        self,
        piece: Sequence[Episode],
        elsewhere: TokenBatch,
        initial: Parameters,
        before: Parameters,
        parts: dict[str, float],
        reached: Parameters,
    ) -> Tensor:
        """Answer NLL after the steps, plus c_kl times the KL on another document (Hu et al. 2023).

        Only the KL's "before" has dropout, if any has, as in the authors' code.
        """
        plan, dropout = self.config.training, self.lm.model.training
        ids = torch.cat([elsewhere.context_ids, elsewhere.token_ids])[None, : self.lm.window]
        with torch.no_grad():
            reference = logits(self.lm, initial if plan.kl_ref == "initial" else before, ids)[0]
        self.lm.model.eval()
        answers = answer_loss(self.lm, reached, piece)
        kl = drift(reference, logits(self.lm, reached, ids)[0])
        self.lm.model.train(dropout)
        parts.update(answer_nll=answers.item(), drift=kl.item())
        loss: Tensor = answers + plan.locality * kl
        return loss
