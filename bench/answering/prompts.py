"""Prompts: each question as the model reads it, and answers as it should go on.

The prompt of a question is ``[prefix] begin-of-text [text newline] question``; the answer is `` " " + answer`` and the
end-of-text token (specification: docs/rules.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.contract.method import Conditioning
from bench.data.documents import Question
from bench.lm.base_model import BaseModel


@dataclass(frozen=True)
class Prompt:
    """One question as the model reads it. ``cut`` counts text tokens that did not fit into the model's window.

    Where there is a prompt ``against`` it, the model answers from (1 + ``contrast``) times the logits behind this one
    minus ``contrast`` times those behind that one.
    """

    ids: Tensor
    prefix: Tensor | None = None
    key_values: Sequence[tuple[Tensor, Tensor]] | None = None
    cut: int = 0
    against: Prompt | None = None
    contrast: float = 0.0

    @property
    def prefix_length(self) -> int:
        """Positions taken by a soft prompt or by key/value prefixes."""
        if self.prefix is not None:
            return len(self.prefix)
        return self.key_values[0][0].shape[-2] if self.key_values else 0


def prompts(lm: BaseModel, questions: Sequence[Question], conditioning: Conditioning, reserve: int) -> list[Prompt]:
    """The prompt of every question, leaving room for ``reserve`` answer tokens.

    Where text and question do not fit into the window, the beginning of the text is left out and counted.

    Raises:
        ValueError: the conditioning does not have one entry per question, or a question alone does not fit.
    """
    for field in ("text", "prefix_embeddings", "prefix_key_values", "documents"):
        value = getattr(conditioning, field)
        if value is not None and len(value) != len(questions):
            raise ValueError(f"Conditioning.{field} has {len(value)} entries for {len(questions)} questions.")
    begin = torch.tensor([lm.bos_id], device=lm.device)
    made = []
    for i, question in enumerate(questions):
        text = conditioning.text[i] if conditioning.text is not None else ""
        ids = lm.encode(f"{text}\n{question.text}" if text else question.text)
        prefix = conditioning.prefix_embeddings[i] if conditioning.prefix_embeddings is not None else None
        key_values = conditioning.prefix_key_values[i] if conditioning.prefix_key_values is not None else None
        prompt = Prompt(ids, prefix, key_values)
        room = lm.window - 1 - prompt.prefix_length - reserve
        cut = max(0, len(ids) - room)
        if cut and len(lm.encode(question.text)) > room:
            raise ValueError(f"Question {question.id} does not fit into the model's window of {lm.window} tokens.")
        prompt = replace(prompt, ids=torch.cat([begin, ids[cut:]]), cut=cut)
        if conditioning.contrast is not None:
            bare = Prompt(torch.cat([begin, lm.encode(question.text)]))
            prompt = replace(prompt, against=bare, contrast=conditioning.contrast)
        made.append(prompt)
    return made


def shortened(prompt: Prompt, ending: int, window: int) -> Prompt:
    """The prompt without those tokens after its first that a very long gold answer leaves no room for."""
    over = max(0, prompt.prefix_length + len(prompt.ids) + ending - window)
    against = None if prompt.against is None else shortened(prompt.against, ending, window)
    if not over and against is prompt.against:
        return prompt
    return replace(prompt, ids=torch.cat([prompt.ids[:1], prompt.ids[1 + over :]]), against=against)


def endings_of(lm: BaseModel, golds: Sequence[str]) -> list[Tensor]:
    end = torch.tensor([lm.eos_id], device=lm.device)
    return [torch.cat([lm.encode(" " + text), end]) for text in golds]
