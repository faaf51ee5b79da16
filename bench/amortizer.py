"""The network that makes a few vectors of a text: a T5 encoder-decoder with learned decoder inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoTokenizer, T5Model

from bench.aggregation import Heads, PrefixHead
from bench.base_model import BaseModel
from bench.errors import BenchError

TOKENS = 4096
"""Most tokens of the vocabulary whose keys and values a prefix head may start from."""


class Amortizer(nn.Module):
    """A text as T vectors: a T5 reads it, its decoder has T learned inputs, and each output a residual net of its own.

    A checkpoint embeds its own tokens; a T5 from scratch is given the base's embeddings, each divided by its root mean
    square (names that training never met differ in scale from other words).
    """

    def __init__(self, body: Any, tokenizer: Any, tokens: int, width: int) -> None:
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        size = body.config.d_model
        self.inputs = nn.Parameter(0.02 * torch.randn(tokens, size))
        self.nets = Heads(tokens, size, width, width, torch.tanh)

    def forward(self, ids: Tensor, mask: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Token ids and their mask (B, tokens) -> (B, T, width); ``embed`` is the base's embedding of tokens."""
        inputs = self.inputs.expand(len(ids), -1, -1)
        given = {"input_ids": ids} if self.tokenizer is not None else {"inputs_embeds": embed(ids)}
        read = self.body(**given, attention_mask=mask, decoder_inputs_embeds=inputs, use_cache=False)
        out: Tensor = self.nets(read.last_hidden_state)
        return out


@torch.no_grad()
def hand_on(attention: Any) -> None:
    """Let a T5's attention start, as the aggregator's, by finding what is alike and handing it on as it is."""
    nn.init.orthogonal_(attention.k.weight)
    nn.init.orthogonal_(attention.v.weight)
    attention.q.weight.copy_(attention.k.weight * attention.key_value_proj_dim**-0.5)
    attention.o.weight.copy_(attention.v.weight.T)


@torch.no_grad()
def unit_embeddings(lm: BaseModel, ids: Tensor) -> Tensor:
    """The base's input embeddings of tokens, each of root mean square 1, in float32."""
    embedded = lm.embeddings(ids).float()
    return functional.rms_norm(embedded, embedded.shape[-1:], eps=1e-8)


@torch.no_grad()
def start_as_tokens(prefix: PrefixHead, lm: BaseModel) -> None:
    """Let the prefix head start as a linear map from unit embeddings to the keys and values of their tokens."""
    layers, _, positions, heads, size = prefix.shape
    ids = torch.randperm(len(lm.tokenizer))[:TOKENS].to(lm.device)
    targets = torch.empty(layers, 2, positions, len(ids), heads * size, device=lm.device)
    for position in range(positions):
        place = torch.full((len(ids), 1), position, device=lm.device)
        cache = lm.model(input_ids=ids[:, None], position_ids=place, use_cache=True).past_key_values
        for layer, kept in enumerate(cache.layers):
            for side, made in enumerate((kept.keys, kept.values)):
                targets[layer, side, position] = made[:, :, 0].flatten(1).float()
    slots = targets.flatten(0, 2)
    embedded = unit_embeddings(lm, ids).expand(len(slots), -1, -1)
    prefix.nets.skip = nn.Parameter(torch.linalg.lstsq(embedded, slots).solution.contiguous())
    prefix.nets.second.zero_()


def checkpoint(folder: Path) -> tuple[Any, Any]:
    """A T5 and its tokenizer.

    Raises:
        BenchError: the folder holds none.
    """
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "t5":
            raise ValueError(f"it holds a model of type {kind}")
        body: Any = T5Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"No T5 could be read from {folder} ({str(error).splitlines()[0]}). Give a folder that save_pretrained "
            f"wrote, with config.json, a tokenizer and .safetensors weights, or leave it out."
        ) from None
    return body, tokenizer
