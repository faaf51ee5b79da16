"""Packing: all items on a document in one row, in which the document is read once.

An item is a prompt with its answer, token for token as the harness asks it. The items of a pack share the beginning of
their prompts: the begin token, or that and the document. The row is the longest beginning that two of them share,
followed by the rest of each item. A token sees the shared tokens with which its own prompt begins and the earlier
tokens of its own item, and has the position that it has when its item is read alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from bench.answering.decoding import Decoding
from bench.answering.metrics import shortest
from bench.answering.prompts import answer_ids, build_prompts, make_room_for_answer
from bench.contract.method import Conditioning
from bench.data.documents import Episode
from bench.lm.base_model import BaseModel

TOLERANCE = 1e-3
"""Largest difference (nats) between the loss of a token in a pack and alone, in float32."""


@dataclass(frozen=True)
class Item:
    """The tokens of a prompt, and those with which the model should continue it; each of shape (tokens,)."""

    prompt: Tensor
    answer: Tensor


def items(lm: BaseModel, episode: Episode, indices: Sequence[int], with_document: bool) -> list[Item]:
    """Those of the episode's questions that have these indices, with or without the document in the prompt.

    The answer is the shortest gold. Questions that do not fit into the model's window with their answer are left out.
    """
    questions = [episode.questions[i] for i in indices]
    golds = [shortest(episode.answers[i]) for i in indices]
    condition = Conditioning(text=[episode.document.text] * len(questions)) if with_document else Conditioning()
    prompts = build_prompts(lm, questions, condition, Decoding().max_new_tokens)
    answers = answer_ids(lm, [question.text for question in questions], golds)
    fitting = [
        (make_room_for_answer(prompt, len(answer), lm.window), answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return [Item(prompt.ids, answer) for prompt, answer in fitting if prompt.unanswered is None]


@dataclass(frozen=True)
class Pack:
    """Items in one row of T tokens.

    ``ids`` and ``positions`` have the shape (T,), and ``visible`` (T, T): True where a token (row) sees another one.
    After the tokens at ``places`` the model should predict ``targets``; ``items`` are the indices of the items to which
    these belong. All three have the shape (answer tokens,).
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    places: Tensor
    targets: Tensor
    items: Tensor


def pack(items: Sequence[Item]) -> Pack:
    """Pack one or more items."""
    longest = max(range(len(items)), key=lambda i: len(items[i].prompt))
    trunk = items[longest].prompt[:-1]  # the last token of a prompt is its own: the answer is predicted from there
    shared = [_common(item.prompt[:-1], trunk) for item in items]
    shared[longest] = max((shared[i] for i in range(len(items)) if i != longest), default=0)
    length = shared[longest]
    rests = [torch.cat([item.prompt[k:], item.answer[:-1]]) for item, k in zip(items, shared, strict=True)]
    ids = torch.cat([trunk[:length], *rests])
    visible = ids.new_zeros((len(ids), len(ids)), dtype=torch.bool)
    visible[:length, :length] = True
    positions, places = [torch.arange(length)], []
    start = length
    for item, k, rest in zip(items, shared, rests, strict=True):
        end = start + len(rest)
        visible[start:end, :k] = True
        visible[start:end, start:end] = True
        positions.append(torch.arange(k, k + len(rest)))
        places.append(torch.arange(end - len(item.answer), end))
        start = end
    return Pack(
        ids,
        torch.cat(positions).to(ids.device),
        visible.tril(),
        torch.cat(places).to(ids.device),
        torch.cat([item.answer for item in items]),
        torch.cat([torch.full((len(item.answer),), i) for i, item in enumerate(items)]).to(ids.device),
    )


def _common(a: Tensor, b: Tensor) -> int:
    """Number of leading tokens that two texts share."""
    n = min(len(a), len(b))
    different = (a[:n] != b[:n]).nonzero()
    return int(different[0]) if len(different) else n


def packed_losses(lm: BaseModel, items: Sequence[Item]) -> Tensor:
    """-log p (nats) of every answer token of the items, in order, from one row; differentiable."""
    row = pack(items)
    # numbers rather than True and False, which attention that is not fused would add to its scores
    mask = torch.zeros(row.visible.shape, dtype=lm.model.dtype, device=lm.device)
    mask.masked_fill_(~row.visible, torch.finfo(mask.dtype).min)
    inputs = {"input_ids": row.ids[None], "attention_mask": mask[None, None], "position_ids": row.positions[None]}
    return functional.cross_entropy(_logits(lm, inputs, row.places), row.targets, reduction="none")


def unpacked_losses(lm: BaseModel, items: Sequence[Item]) -> Tensor:
    """-log p (nats) of every answer token of the items, in order, from a row for each; differentiable."""
    rows = [torch.cat([item.prompt, item.answer[:-1]]) for item in items]
    ids = pad_sequence(rows, batch_first=True, padding_value=lm.eos_id)  # a causal model does not see it on the right
    ends = [i * ids.shape[1] + len(row) for i, row in enumerate(rows)]
    places = torch.cat([torch.arange(end - len(x.answer), end) for x, end in zip(items, ends, strict=True)])
    logits = lm.model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[places.to(lm.device)]
    return functional.cross_entropy(_wide(logits), torch.cat([item.answer for item in items]), reduction="none")


def _logits(lm: BaseModel, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """Logits at these places of a row, (places, V)."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        return _wide(lm.model(**inputs, **options, logits_to_keep=places).logits[0])
    return _wide(lm.model(**inputs, **options).logits[0, places])


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def why_not_packed(lm: BaseModel, items: Sequence[Item]) -> str | None:
    """None if the base reads these items in a pack as it reads each alone, in float32; else the reason.

    To be asked with the longest pack of the data: attention with a sliding window shows its error in long texts only.
    """
    name = type(lm.model).__name__
    dtype, lm.dtype = lm.dtype, torch.float32
    try:
        gap = (packed_losses(lm, items) - unpacked_losses(lm, items)).abs().max().item()
    except Exception as error:  # of any type: a mask or positions that the model's code does not know
        return f"{name} takes no mask of its own for every token ({type(error).__name__})"
    finally:
        lm.dtype = dtype
    return None if gap <= TOLERANCE else f"{name} does not read items in one row as it reads each alone"
