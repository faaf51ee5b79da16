"""The probe of a base: in which ways of reading it computes the same, tried once on a few tokens.

Reading a text alone, without a cache and without padding, is the reference. Each other way is compared with it, in
float32. What agrees is used; where something does not, the harness reads in a slower way, or refuses what cannot be
right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from bench.errors import BenchError
from bench.lm.batch import Batch, CachedBatch, RereadBatch, Row
from bench.lm.placement import is_offloaded
from bench.lm.quantized import is_quantized

if TYPE_CHECKING:
    from bench.lm.base_model import BaseModel

Ability = Literal["padding", "soft_prompts", "key_value_prefixes", "carried_cache", "float_weights", "gradients"]
"""What a method may need of a base beyond text: see the fields of :class:`Abilities`."""
TOLERANCE = 3e-4
"""Largest difference (nats) between equal log-probabilities, for logits up to 30; more for larger ones."""
_PARTS = ((4, 2), (11, 4), (7, 1))
"""Tokens of each text and of its continuation, so that the rows leave a batch one after another."""
_LONGEST = 1
"""Index of the longest text."""


@dataclass(frozen=True)
class Abilities:
    """Ways of reading in which a base gives the probabilities that it gives when it reads a text at once."""

    cache: bool
    """A text can be read in parts, through the cache."""
    padding: bool
    """Rows of unequal length can be read together, padded on the left, and can leave the batch."""
    padding_after_prefixes: bool
    """The same with key/value prefixes, where the padding is between prefix and text."""
    soft_prompts: bool
    """Embeddings can be read in place of tokens."""
    key_value_prefixes: bool
    """A text can follow keys and values of every layer."""
    carried_cache: bool
    """Keys and values can be kept without the cache that made them."""
    float_weights: bool = True
    """The weights can change: none is quantized or offloaded. This is not tried."""
    gradients: bool = True
    """Gradients pass through all layers: none is offloaded. This is not tried."""

    def require(self, needs: Sequence[Ability], base: str, user: str) -> None:
        """Check that ``user``, which needs these abilities, can run on the base.

        Raises:
            BenchError: it cannot.
        """
        words = {
            "padding": "does not read padded texts as it reads each alone",
            "soft_prompts": "reads no soft prompts as it reads the same tokens",
            "key_value_prefixes": "does not continue key/value prefixes as it continues the same text",
            "carried_cache": "does not continue carried keys and values as it continues the same text",
            "float_weights": f"has {'quantized' if self.gradients else 'offloaded'} weights, which cannot change",
            "gradients": "has offloaded layers, which pass no gradient",
        }
        for need in needs:
            if not getattr(self, need):
                raise BenchError(f"{base} {words[need]}, so {user} cannot run on it. Use another base.")


@torch.no_grad()
def probe(lm: BaseModel) -> Abilities:
    """Try each way of reading on three short texts, and compare it with reading each text at once and alone.

    Raises:
        BenchError: the model cannot read a text at all, gives NaN, or lets tokens depend on later ones.
    """
    rows, tails = _texts(lm)
    name = type(lm.model).__name__
    try:
        wholes = [torch.cat([row.ids, tail]) for row, tail in zip(rows, tails, strict=True)]
        logits = [lm.model(input_ids=ids[None], use_cache=False).logits[0].float() for ids in wholes]  # (T, V) each
        padded = lm.model(input_ids=pad_sequence(wholes, batch_first=True), use_cache=False).logits.float()
    except Exception as error:  # of any type: the model's own code
        raise BenchError(f"{name} could not read a short text: {error}. Use another base.") from None
    if not all(torch.isfinite(values).all() for values in logits):
        raise BenchError(f"{name} gives NaN or infinite logits for a short text. Use another base.")
    expected = [values.log_softmax(-1)[len(r.ids) - 1 : -1] for values, r in zip(logits, rows, strict=True)]
    check = _Check(lm, tails, expected, max(values.abs().max().item() for values in logits))
    parts = [row[len(r.ids) - 1 : len(w) - 1] for row, w, r in zip(padded, wholes, rows, strict=True)]
    if not check.agree(parts):  # the padding follows the text, and nothing says that it is padding
        raise BenchError(
            f"{name} lets the probability of a token depend on later tokens: it is not a causal language model. "
            f"Use a checkpoint whose architecture ends in ForCausalLM."
        )

    soft = [Row(row.ids[2:], prefix=lm.embeddings(row.ids[:2])) for row in rows]
    padding = check.together(rows)
    cache = padding or check.alone(CachedBatch, rows)
    prefixed = _with_key_values(lm, rows) if cache else []
    padding_after_prefixes = bool(prefixed) and padding and not _slides(lm) and check.together(prefixed)
    return Abilities(
        cache=cache,
        padding=padding,
        padding_after_prefixes=padding_after_prefixes,
        soft_prompts=_takes_embeddings(lm)
        and (check.together(soft) if padding else check.alone(CachedBatch if cache else RereadBatch, soft)),
        key_value_prefixes=padding_after_prefixes or (bool(prefixed) and check.alone(CachedBatch, prefixed)),
        carried_cache=check.only_longest(lambda: _carried(lm, rows[_LONGEST], tails[_LONGEST])),
        **of_weights(lm.model),
    )


def of_weights(model: Any) -> dict[str, bool]:
    """The abilities that follow from what the weights are, and from where they are."""
    offloaded = is_offloaded(model)
    return {"float_weights": not (offloaded or is_quantized(model)), "gradients": not offloaded}


def _takes_embeddings(lm: BaseModel) -> bool:
    """False for a base with embeddings in each layer (Gemma 3n and 4), which looks the tokens of embeddings up."""
    return not getattr(lm.model.config, "hidden_size_per_layer_input", 0)


class _Check:
    """The continuations of the texts, and their log-probabilities as they should be, (T, V) each."""

    def __init__(self, lm: BaseModel, tails: Sequence[Tensor], expected: Sequence[Tensor], scale: float) -> None:
        self.lm, self.tails, self.expected = lm, tails, expected
        self.tolerance = TOLERANCE * max(1.0, scale / 30)

    def agree(self, logits: Sequence[Tensor], expected: Sequence[Tensor] | None = None) -> bool:
        """True if these logits, (T, V) each, give the probabilities of the continuations."""
        pairs = zip(logits, expected or self.expected, strict=True)
        gaps = [(values.log_softmax(-1) - log_probs).abs() for values, log_probs in pairs]
        return max(gap.max().item() for gap in gaps) <= self.tolerance

    def only_longest(self, read: Callable[[], Tensor]) -> bool:
        """True if reading the longest text succeeds, and its logits, (T, V), agree."""
        try:
            return self.agree([read()], [self.expected[_LONGEST]])
        except Exception:  # of any type: a way of reading that the model's code does not know
            return False

    def alone(self, kind: Callable[[BaseModel, Sequence[Row]], Batch], rows: Sequence[Row]) -> bool:
        """True if the longest row can be read and continued, by several tokens at once and by one."""
        return self.only_longest(lambda: _read_in_parts(kind(self.lm, [rows[_LONGEST]]), self.tails[_LONGEST]))

    def together(self, rows: Sequence[Row]) -> bool:
        """True if the rows can be read together and continued: all at once, and token by token until each ends."""
        try:
            batch = CachedBatch(self.lm, rows)
            first = batch.read(1)
            return self.agree(_all_at_once(batch.copy(), first, self.tails)) and self.agree(
                _by_token(batch, first, self.tails)
            )
        except Exception:  # of any type, as above
            return False


def _read_in_parts(batch: Batch, tail: Tensor) -> Tensor:
    """Logits of the continuation of a single row, (T, V)."""
    logits = [batch.read(1)]
    for part in (tail[:-2], tail[-2:-1]):
        batch.extend(part[None], torch.ones_like(part[None]))
        logits.append(batch.read(len(part)))
    return torch.cat(logits, dim=1)[0]


def _all_at_once(batch: Batch, first: Tensor, tails: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each row's continuation, (T, V), as the likelihoods of answers are read."""
    inputs = [tail[:-1] for tail in tails]
    ids = pad_sequence(inputs, batch_first=True)
    batch.extend(ids, pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True))
    logits = torch.cat([first, batch.read(ids.shape[1])], dim=1)  # (B, longest continuation, V)
    return [row[: len(tail)] for row, tail in zip(logits, tails, strict=True)]


def _by_token(batch: Batch, first: Tensor, tails: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each row's continuation, (T, V), as answers are decoded: rows leave when they are finished."""
    logits = [[row] for row in first]  # each (1, V)
    alive = list(range(len(tails)))
    for step in range(max(map(len, tails)) - 1):
        going = [k for k, i in enumerate(alive) if step < len(tails[i]) - 1]
        if len(going) < len(alive):
            batch.select(going)
            alive = [alive[k] for k in going]
        ids = torch.stack([tails[i][step : step + 1] for i in alive])
        batch.extend(ids, torch.ones_like(ids))
        for i, row in zip(alive, batch.read(1), strict=True):
            logits[i].append(row)
    return [torch.cat(rows) for rows in logits]


def _texts(lm: BaseModel) -> tuple[list[Row], list[Tensor]]:
    """Texts of random tokens after the begin-of-text token, and their continuations."""
    generator = torch.Generator().manual_seed(0)
    most = min(lm.model.get_input_embeddings().num_embeddings, len(lm.tokenizer))

    def draw(count: int) -> Tensor:
        return torch.randint(most, (count,), generator=generator).to(lm.device)

    start = torch.cat([torch.tensor([lm.bos_id], device=lm.device), draw(len(_PARTS))])  # the same in all texts
    rows = [Row(torch.cat([start, draw(count - len(_PARTS))])) for count, _ in _PARTS]
    return rows, [draw(count) for _, count in _PARTS]


def _with_key_values(lm: BaseModel, rows: Sequence[Row]) -> list[Row]:
    """The rows with their first tokens as key/value prefixes of unequal lengths; [] if the model makes none."""
    pairs = _key_values(lm, rows[0].ids[: len(rows)])  # all texts start with these tokens
    prefixes = [[(keys[:, :n], values[:, :n]) for keys, values in pairs] for n in range(1, len(rows) + 1)]
    return [Row(row.ids[n:], key_values=prefixes[n - 1]) for n, row in enumerate(rows, 1)] if pairs else []


def _key_values(lm: BaseModel, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer for these tokens, each (H, T, D); [] if a layer has none."""
    cache: Any = DynamicCache(config=lm.model.config)
    lm.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    pairs: list[Any] = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    if any(keys is None or values is None for keys, values in pairs):
        return []
    return [(keys[0], values[0]) for keys, values in pairs]


@torch.no_grad()
def key_value_shape(lm: BaseModel) -> tuple[int, int, int]:
    """Layers, heads and head size of the model's keys and values; see :attr:`BaseModel.key_value_shape`."""
    pairs = _key_values(lm, torch.tensor([lm.bos_id], device=lm.device)) if lm.abilities.key_value_prefixes else []
    shapes = {(tensor.shape[0], tensor.shape[2]) for pair in pairs for tensor in pair}
    if len(shapes) != 1:
        reason = "has keys and values of several shapes" if shapes else "takes no key/value prefixes"
        raise BenchError(f"{type(lm.model).__name__} {reason}, so no prefix can be made for it. Use another base.")
    return len(pairs), *shapes.pop()


def _slides(lm: BaseModel) -> bool:
    """True if a layer's attention has a window: it counts padding as distance, beyond what a short text shows."""
    layers = DynamicCache(config=lm.model.config).layers
    own = getattr(lm.model.config, "attention_layers", ())  # of GPT-Neo, whose cache keeps all
    return any(getattr(layer, "is_sliding", False) for layer in layers) or "local" in own


def _carried(lm: BaseModel, row: Row, tail: Tensor) -> Tensor:
    """Logits of the continuation, (T, V), from keys and values that were taken out of their cache."""
    from bench.lm.reading import continue_layers

    first, layers = continue_layers(lm, row.ids, ())
    rest, _ = continue_layers(lm, tail[:-1], layers)
    return torch.cat([first[-1:], rest])
