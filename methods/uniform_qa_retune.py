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
    """Uniform online fine-tuning whose model is tuned for question answering again before it answers.

    Learning documents unlearns how to answer; a few steps on the questions of the ``qa_train`` split, closed book,
    bring that back (Uniform + QA-tune in Hu et al. 2023). They begin anew from the adapted weights at every probe and
    are undone after it, so that the stream goes on from weights that have seen documents only. Tuning stops early by
    the loss on questions held out of it (the paper's code: by the F1 of decoded answers), and the weights of the
    lowest loss answer. Costs what uniform fine-tuning costs, at most ``retune_steps`` more steps at each probe, and two
    copies of the weights meanwhile.
    """

    name = "uniform_qa_retune"
    paper = "hu2023camels"
    learns_from = "qa_train"

    class Config(GradientMethod.Config):
        """Hyper-parameters of the tuning before answers; the paper's code has no limit on its steps."""

        retune_optimizer: Literal["sgd", "adam", "adamw", "adafactor"] = pydantic.Field(
            default="adam", description="rule that turns gradients into steps"
        )
        retune_learning_rate: float = pydantic.Field(default=2.5e-5, ge=0, description="constant step size")
        retune_batch: int = pydantic.Field(
            default=16, ge=1, description="questions in a step (16 in the CaMeLS code, which meant 64)"
        )
        retune_steps: int = pydantic.Field(default=32, ge=0, description="most steps")
        validate_every: int = pydantic.Field(default=16, ge=1, description="steps between two validations")
        patience: int = pydantic.Field(default=3, ge=1, description="validations in a row without a gain that end it")
        held_out: int = pydantic.Field(default=64, ge=1, description="questions to validate on; at most half of them")

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.questions: list[Episode] = []

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Keep the questions and answers, each as an episode of its own; nothing is learned yet."""
        self.questions = [
            Episode(episode.document, (question,), (answers,))
            for episode in episodes
            for question, answers in zip(episode.questions, episode.answers, strict=True)
        ]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Tune the adapted model on questions; on leaving, its weights and flags are what they were, bit for bit."""
        before, learning = self._weights(), [p.requires_grad for p in self.lm.model.parameters()]
        try:
            self.retune()
            yield
        finally:
            self._set_weights(before)
            for parameter, learns in zip(self.lm.model.parameters(), learning, strict=True):
                parameter.requires_grad_(learns)

    def retune(self) -> None:
        """Steps on the answers' loss, of which the weights of the lowest held-out loss remain."""
        config, generator = self.config, torch.Generator().manual_seed(seed_for(self.seed, "retune"))
        order = torch.randperm(len(self.questions), generator=generator).tolist()
        held_out = [self.questions[i] for i in order[: min(config.held_out, len(order) // 2)]]
        rest = [self.questions[i] for i in order[len(held_out) :]]
        if not held_out:
            return
        parameters = dict(self.lm.model.named_parameters())
        self.lm.model.requires_grad_(True)
        optimizer = build_optimizer(config.retune_optimizer, parameters.values(), config.retune_learning_rate)
        lowest, best, waited = self._loss(held_out), self._weights(), 0
        batches = self._batches(rest, generator)
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
        """Batches without end, in a new order each time round."""
        while True:
            for batch in torch.randperm(len(questions), generator=generator).split(self.config.retune_batch):
                yield [questions[i] for i in batch.tolist()]

    @torch.no_grad()
    def _loss(self, questions: list[Episode]) -> float:
        """Mean over batches, each counted by its questions, of the answers' loss."""
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
