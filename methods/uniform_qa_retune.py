from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Episode, GradientMethod, MethodConfig
from bench.contract.gradient import build_optimizer
from bench.seeds import seed_for
from methods.parts.inner_loop import answer_loss


class UniformQaRetune(GradientMethod):
    """Uniform online fine-tuning, with the model tuned for question answering again before each probe.

    Fine-tuning on documents makes the model forget how to answer questions. A few steps on closed-book questions of the
    ``qa_train`` split restore this (Uniform + QA-tune in Hu et al. 2023). At every probe they start from the adapted
    weights, and they are undone after it: the stream continues from weights trained on documents only. Early stopping
    is by the loss on held-out questions (by the F1 of decoded answers in the paper's code), and the weights with the
    lowest loss answer. Costs one forward and one backward pass per step, at most ``retune_steps`` more steps per probe,
    and two copies of the weights during a probe.
    """

    name = "uniform_qa_retune"
    paper = "hu2023camels"
    learns_from = "qa_train"

    class Config(GradientMethod.Config):
        """Hyper-parameters of the tuning at probes; the paper's code does not limit its steps."""

        retune_optimizer: Literal["sgd", "adam", "adamw", "adafactor"] = pydantic.Field(
            default="adam", description="optimizer of the tuning at probes"
        )
        retune_learning_rate: float = pydantic.Field(default=2.5e-5, ge=0, description="its constant step size")
        retune_batch: int = pydantic.Field(
            default=16, ge=1, description="questions per step (16 in the CaMeLS code, where 64 was intended)"
        )
        retune_steps: int = pydantic.Field(default=32, ge=0, description="most steps per probe")
        validate_every: int = pydantic.Field(default=16, ge=1, description="steps between validations")
        patience: int = pydantic.Field(
            default=3, ge=1, description="stop after this many validations in a row without a new best"
        )
        held_out: int = pydantic.Field(default=64, ge=1, description="most validation questions; at most half of all")

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.questions: list[Episode] = []

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Store the questions with their answers, one episode each, for the tuning at probes."""
        self.questions = [
            Episode(episode.document, (question,), (answers,))
            for episode in episodes
            for question, answers in zip(episode.questions, episode.answers, strict=True)
        ]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Tune the adapted model on questions; restore its weights and ``requires_grad`` bit for bit on exit."""
        before, flags = self._weights(), [p.requires_grad for p in self.lm.model.parameters()]
        try:
            self.retune()
            yield
        finally:
            self._set_weights(before)
            for parameter, flag in zip(self.lm.model.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    def retune(self) -> None:
        """Take steps on the answers' loss, and keep the weights with the lowest held-out loss."""
        config, generator = self.config, torch.Generator().manual_seed(seed_for(self.seed, "retune"))
        order = torch.randperm(len(self.questions), generator=generator).tolist()
        held_out = [self.questions[i] for i in order[: min(config.held_out, len(order) // 2)]]
        train = [self.questions[i] for i in order[len(held_out) :]]
        if not held_out:
            return
        parameters = dict(self.lm.model.named_parameters())
        self.lm.model.requires_grad_(True)
        optimizer = build_optimizer(config.retune_optimizer, parameters.values(), config.retune_learning_rate)
        lowest, best, waited = self._loss(held_out), self._weights(), 0
        batches = self._batches(train, generator)
        for step in range(1, config.retune_steps + 1):
            self.lm.model.train(config.dropout)
            optimizer.zero_grad(set_to_none=True)
            answer_loss(self.lm, parameters, next(batches)).backward()
            optimizer.step()
            if step % config.validate_every == 0 or step == config.retune_steps:
                loss = self._loss(held_out)
                lowest, best, waited = (loss, self._weights(), 0) if loss < lowest else (lowest, best, waited + 1)
                if waited == config.patience:
                    break
        optimizer.zero_grad(set_to_none=True)
        self._set_weights(best)
        self.lm.model.eval()

    def _batches(self, questions: list[Episode], generator: torch.Generator) -> Iterator[list[Episode]]:
        """Endless batches, in a new order in each epoch."""
        while True:
            for batch in torch.randperm(len(questions), generator=generator).split(self.config.retune_batch):
                yield [questions[i] for i in batch.tolist()]

    @torch.no_grad()
    def _loss(self, questions: list[Episode]) -> float:
        """The answers' loss: a mean over batches, weighted by their number of questions."""
        self.lm.model.eval()
        parameters, size = dict(self.lm.model.named_parameters()), self.config.retune_batch
        batches = [questions[i : i + size] for i in range(0, len(questions), size)]
        return sum(answer_loss(self.lm, parameters, b).item() * len(b) for b in batches) / len(questions)

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.lm.named_tensors()}

    @torch.no_grad()
    def _set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.lm.named_tensors():
            tensor.copy_(weights[name])
