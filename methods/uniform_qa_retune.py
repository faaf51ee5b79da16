from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pydantic

from bench import BaseModel, Episode, GradientMethod, MethodConfig
from bench.answering.retune import Retune
from bench.answering.retuning import retuned


class UniformQaRetune(GradientMethod):
    """Uniform online fine-tuning, with the model tuned for question answering again before each probe.

    Fine-tuning on documents makes the model forget how to answer questions. A few steps on closed-book questions of the
    ``qa_train`` split restore this (Uniform + QA-tune in Hu et al. 2023). At every probe they start from the adapted
    weights, and they are undone after it: the stream continues from weights trained on documents only. An experiment
    with ``retune`` does the same for every method, with closed book as the control: name ``uniform`` there. Costs one
    forward and one backward pass per step, at most ``retune.steps`` more steps per probe, and copies of the weights
    during it.
    """

    name = "uniform_qa_retune"
    paper = "hu2023camels"
    learns_from = "qa_train"

    class Config(GradientMethod.Config):
        """Hyper-parameters of fine-tuning, and of the tuning at probes."""

        retune: Retune = pydantic.Field(default=Retune(), description="the tuning at probes")

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self.episodes: Sequence[Episode] = ()

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Store the questions with their answers for the tuning at probes."""
        self.episodes = episodes

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Tune the adapted model on the questions; on exit its weights are what they were, bit for bit."""
        with retuned(self.lm, self.episodes, self.config.retune, self.seed):
            yield
