"""Methods that misuse the next-token hook, flush, and weights for questions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bench import Document, Method
from tests.conformance.good_methods.learns_in_pairs import LearnsInPairs
from tests.conformance.good_methods.nearest_tokens import NearestToken
from tests.conformance.good_methods.question_adapters import QuestionAdapters


class AddsProbability(NearestToken):
    """Adds the vote to the base's probabilities and does not take it from anywhere."""

    name = "adds_probability"
    paper = "none"

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        return torch.logaddexp(log_probs, super().mix_next_token(log_probs, hidden, ids))


class ReadsTheNextToken(NearestToken):
    """Gives probability to the token that comes next in the text that is scored."""

    name = "reads_the_next_token"
    paper = "none"

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        votes = torch.zeros_like(log_probs)
        votes[:-1].scatter_(1, ids[len(ids) - len(log_probs) + 1 :, None], 0.5)
        votes[-1] = 0.5 * log_probs[-1].exp()
        return torch.logaddexp(log_probs - torch.tensor(2.0).log(), votes.log())


class LosesWhatWaits(LearnsInPairs):
    """Does not save the documents that it has not learned, so that a probe in mid-stream loses them."""

    name = "loses_what_waits"
    paper = "none"

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        del state["method.waiting"]
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
        super(LearnsInPairs, self).load_state_dict(state)


class LeaksAdapters(QuestionAdapters):
    """Takes the adapter of the last question only out of the base when the next probe begins."""

    name = "leaks_adapters"
    paper = "none"

    @contextmanager
    def using(self, key: int) -> Iterator[None]:
        weight = self.lm.model.get_output_embeddings().weight
        weight.data += 0.1 * self.counts[key][:, None]
        yield

    @contextmanager
    def answering(self) -> Iterator[None]:
        weight = self.lm.model.get_output_embeddings().weight
        before = weight.detach().clone()
        yield
        weight.data.copy_(before)


class PoolsOverTheText(Method):
    """Adds the mean state of the whole text to each, and so tells each position of the tokens after it."""

    name = "pools_over_the_text"
    paper = "none"
    handle: RemovableHandle | None = None

    def observe(self, document: Document) -> None:
        if self.handle is None:
            self.handle = self.lm.model.get_output_embeddings().register_forward_pre_hook(self.pool)

    def pool(self, _: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] + inputs[0].mean(1, keepdim=True),)

    def reset(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None
        super().reset()
