"""A kNN-LM with one neighbour."""

import torch
from torch import Tensor

from bench import Document, Method

SAME = 1e-3
"""Distance below which two contexts are the same."""


class NearestToken(Method):
    """Mixes in the token that followed the most similar context of the stream."""

    name = "nearest_token"
    paper = "none"

    def __init__(self, *arguments) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.register("keys", torch.zeros(0, self.lm.model.config.hidden_size))
        self.register("tokens", torch.zeros(0, dtype=torch.long))

    def observe(self, document: Document) -> None:
        self.keys = torch.cat([self.keys, self.lm.hidden(document)])
        self.tokens = torch.cat([self.tokens, self.lm.tokens(document).token_ids])

    def mix_next_token(self, log_probs: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        if not len(self.tokens):
            return log_probs
        distances = torch.cdist(hidden, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        # equal contexts, such as all first tokens, differ by rounding: of these the first one
        is_nearest = distances <= distances.min(1, keepdim=True).values + SAME  # (T, stored tokens)
        nearest = self.tokens[is_nearest.int().argmax(1)]  # (T,)
        vote = torch.zeros_like(log_probs).scatter_(1, nearest[:, None], 0.5)
        return torch.logaddexp(log_probs - torch.tensor(2.0).log(), vote.log())
