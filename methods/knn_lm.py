import math

import pydantic
import torch
from torch import Tensor

from bench import BaseModel, Document, Method, MethodConfig, Range, SearchSpace


class KnnLm(Method):
    """Nearest-neighbour language model: next tokens of similar contexts in the stream are mixed into the base's.

    Nothing is learned. For each token of a document, the hidden state that predicts it is stored with the token
    (Khandelwal et al. 2020, with the output layer's input as the key). At every position that is scored or answered,
    the ``k`` nearest stored states vote for their tokens with weights softmax(-squared distance / temperature), and the
    result is mixed with the base's distribution. Keys are of the base as it comes; where an experiment retunes it
    before answers, queries are of the retuned one. Costs another forward pass per document and a search over all stored
    tokens per position. The state is a vector per token.
    """

    name = "knn_lm"
    paper = "khandelwal2020knnlm"

    class Config(MethodConfig):
        """Neighbours, and their share in the mixture."""

        k: int = pydantic.Field(default=16, ge=1, description="neighbours at each position")
        share: float = pydantic.Field(
            default=0.25, ge=0, lt=1, description="weight of the neighbours' distribution in the mixture"
        )
        temperature: float = pydantic.Field(
            default=10.0, gt=0, description="divides the squared distances of the neighbours"
        )

    @classmethod
    def search_space(cls, config: MethodConfig) -> SearchSpace:
        """All three settings; the distances depend on the base."""
        return {
            "k": (1, 4, 16, 64),
            "share": Range(low=0.05, high=0.95),
            "temperature": Range(low=0.1, high=1000, log=True),
        }

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        width = lm.model.get_output_embeddings().weight.shape[-1]
        self.keys: Tensor  # (stored tokens, hidden size)
        self.tokens: Tensor  # (stored tokens,)
        self.register("keys", torch.zeros(0, width, device=lm.device))
        self.register("tokens", torch.zeros(0, dtype=torch.long, device=lm.device))
        self._measured = self.keys  # the keys whose squared norms are known
        self._norms = torch.zeros(0, device=lm.device)

    def reset(self) -> None:
        """Empty the bank."""
        super().reset()
        self.squared_norms()  # of the empty bank, in place of those of the last stream

    def observe(self, document: Document) -> None:
        """Store the document's tokens under the hidden states that predict them."""
        self.keys = torch.cat([self.keys, self.lm.hidden(document)])
        self.tokens = torch.cat([self.tokens, self.lm.tokens(document).token_ids])

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        """The mixture's log-probabilities."""
        if not len(self.tokens):
            return log_probs
        # squared distances (T, stored tokens) without the hidden state's own norm, which cancels in the votes
        distances = self.squared_norms() - 2 * hidden @ self.keys.T
        nearest, places = distances.topk(min(self.config.k, len(self.tokens)), largest=False)  # (T, k)
        votes = (-nearest / self.config.temperature).softmax(-1)
        neighbours = torch.zeros_like(log_probs).scatter_add_(1, self.tokens[places], votes)  # (T, V)
        share = self.config.share
        return torch.logaddexp(log_probs + math.log1p(-share), (share * neighbours).log())

    def squared_norms(self) -> Tensor:
        """Those of the keys, (stored tokens,), computed once for each bank and not at each position."""
        if self._measured is not self.keys:
            self._measured, self._norms = self.keys, self.keys.square().sum(1)
        return self._norms
