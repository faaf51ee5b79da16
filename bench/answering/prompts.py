"""Prompts: each question as the model reads it, and the answer as the model should continue it.

The prompt of a question is ``[prefix] begin-of-text [text newline] question``. The answer is `` " " + answer`` and the
end-of-text token (specification: docs/rules.md). An experiment may state another format
(:mod:`bench.data.prompt_format`): everything that asks or teaches questions takes its tokens from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.answering.metrics import shortest
from bench.contract.method import Conditioning
from bench.data.documents import Document, Episode, Question
from bench.lm.base_model import BaseModel
from bench.lm.batch import Row
from bench.lm.probe import Ability


@dataclass(frozen=True)
class Prompt(Row):
    """One question as the model reads it. ``cut`` counts the text tokens that did not fit into the model's window.

    ``question`` is the question's text, without its template. The first ``head`` tokens are those of the format, which
    are never cut. ``unanswered`` is the reason if the question does not fit into the window; then nothing is read.

    With a ``contrast_prompt`` the model answers from (1 + ``contrast``) times the logits after this prompt minus
    ``contrast`` times the logits after that one.
    """

    question: str = ""
    head: int = 1
    cut: int = 0
    contrast_prompt: Prompt | None = None
    contrast: float = 0.0
    unanswered: str | None = None


def build_prompts(
    lm: BaseModel, questions: Sequence[Question], conditioning: Conditioning, reserve: int
) -> list[Prompt]:
    """Build the prompt of every question, leaving room for ``reserve`` answer tokens.

    If text and question do not fit into the window, the text is cut at its beginning, and the cut tokens are counted;
    the words of a template before it stay. A question that does not fit alone, or after its prefix, remains unanswered.

    Raises:
        BenchError: key/value prefixes or soft prompts that the base does not read as it reads text.
        ValueError: the conditioning does not have one entry per question.
    """
    needs: list[Ability] = ["soft_prompts"] if conditioning.prefix_embeddings is not None else []
    needs += ["key_value_prefixes"] if conditioning.prefix_key_values is not None else []
    lm.abilities.require(needs, type(lm.model).__name__, "the method")
    for field in ("text", "prefix_embeddings", "prefix_key_values", "documents", "weights"):
        value = getattr(conditioning, field)
        if value is not None and len(value) != len(questions):
            raise ValueError(f"Conditioning.{field} has {len(value)} entries for {len(questions)} questions.")
    head, tail = (torch.tensor(ids, dtype=torch.long, device=lm.device) for ids in (lm.prompt.head, lm.prompt.tail))
    prompts = []
    for i, question in enumerate(questions):
        text = conditioning.text[i] if conditioning.text is not None else ""
        ids = lm.encode(lm.prompt.text(question.text, text))
        prefix = conditioning.prefix_embeddings[i] if conditioning.prefix_embeddings is not None else None
        key_values = conditioning.prefix_key_values[i] if conditioning.prefix_key_values is not None else None
        prompt = Prompt(ids, prefix, key_values, question.text, len(head))
        room = lm.window - len(head) - len(tail) - prompt.prefix_length - reserve
        cut, kept = max(0, len(ids) - room), 0
        if cut:
            alone = len(lm.encode(lm.prompt.text(question.text)))
            if alone > room:
                after = f" after a prefix of {prompt.prefix_length} positions" if prompt.prefix_length else ""
                reason = (
                    f"the question ({len(head) - 1 + alone + len(tail)} tokens{after}) does not fit into a window of "
                    f"{lm.window} tokens with room for an answer of {reserve}"
                )
                prompts.append(Prompt(head, question=question.text, head=len(head), unanswered=reason))
                continue
            kept = min(_opening_tokens(lm, question.text, text), room - alone)
        prompt = replace(prompt, ids=torch.cat([head, ids[:kept], ids[kept + cut :], tail]), cut=cut)
        if conditioning.contrast is not None:
            bare_question = Prompt(question_ids(lm, question.text), question=question.text, head=len(head))
            prompt = replace(prompt, contrast_prompt=bare_question, contrast=conditioning.contrast)
        prompts.append(prompt)
    return prompts


def _opening_tokens(lm: BaseModel, question: str, text: str) -> int:
    """Number of tokens with which the format opens, before those of the text."""
    end = len(lm.prompt.opening)
    if end == 0:
        return 0
    return sum(stop <= end for _, stop in lm.tokens(Document("", lm.prompt.text(question, text))).offsets)


def make_room_for_answer(prompt: Prompt, answer_tokens: int, window: int) -> Prompt:
    """Cut the beginning of a prompt, after its head, until an answer fits; the same prompt if it fits already.

    This happens only to gold answers that are longer than the tokens reserved for predictions. A prompt after which an
    answer does not fit even so remains unanswered.
    """
    if prompt.unanswered is not None:
        return prompt
    if prompt.prefix_length + prompt.head + answer_tokens > window:
        return replace(prompt, unanswered=f"an answer of {answer_tokens} tokens does not fit into a window of {window}")
    excess = max(0, prompt.prefix_length + len(prompt.ids) + answer_tokens - window)
    contrast_prompt = prompt.contrast_prompt
    if contrast_prompt is not None:
        contrast_prompt = make_room_for_answer(contrast_prompt, answer_tokens, window)
    if not excess and contrast_prompt is prompt.contrast_prompt:
        return prompt
    ids = torch.cat([prompt.ids[: prompt.head], prompt.ids[prompt.head + excess :]])
    return replace(prompt, ids=ids, contrast_prompt=contrast_prompt)


def question_ids(lm: BaseModel, question: str) -> Tensor:
    """Token ids of the prompt of a question without any text, shape (tokens,); ``question`` has no template yet."""
    head, tail = (torch.tensor(ids, dtype=torch.long, device=lm.device) for ids in (lm.prompt.head, lm.prompt.tail))
    return torch.cat([head, lm.encode(lm.prompt.text(question)), tail])


def closed_book_rows(lm: BaseModel, episodes: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """The questions of the episodes without a document, each followed by its shortest answer and end of text.

    Token ids (questions, longest), padded on the right, which a causal model does not see; and a mask of the same shape
    that is True for the tokens of the answers. An answer, then a question, is cut at its end where both do not fit into
    the window.
    """
    questions = [question for episode in episodes for question in episode.questions]
    golds = [shortest(answers) for episode in episodes for answers in episode.answers]
    endings = [ids[: lm.window - 1] for ids in answer_ids(lm, [question.text for question in questions], golds)]
    asked = [question_ids(lm, question.text) for question in questions]
    heads = [ids[: lm.window - len(ending)] for ids, ending in zip(asked, endings, strict=True)]
    rows = [torch.cat([head, ending]) for head, ending in zip(heads, endings, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=lm.eos_id)
    answers = torch.zeros_like(ids, dtype=torch.bool)
    for i, (head, row) in enumerate(zip(heads, rows, strict=True)):
        answers[i, len(head) : len(row)] = True
    return ids, answers


def answer_ids(lm: BaseModel, questions: Sequence[str], answers: Sequence[str]) -> list[Tensor]:
    """Token ids with which the model should continue each question's prompt: `` " " + answer`` and end of text.

    ``questions`` are the texts of the questions, without their template.
    """
    end, prompt = torch.tensor([lm.prompt.end], device=lm.device), lm.prompt
    return [
        torch.cat([continuation(lm, prompt.text_before_answer(question), prompt.answer(answer)), end])
        for question, answer in zip(questions, answers, strict=True)
    ]


def continuation(lm: BaseModel, text: str, ending: str) -> Tensor:
    """Token ids of ``ending`` after the tokens of ``text``, shape (tokens,).

    They are those that follow when both are read as one text. If a token of that text would span the seam, ``ending``
    is read alone, with or without its first space, so that both parts decode to the same text: a tokenizer may put a
    space of its own before whatever it reads.
    """
    before, whole = lm.encode(text), lm.encode(text + ending)
    if torch.equal(whole[: len(before)], before):
        return whole[len(before) :]
    alone = [lm.encode(ending), lm.encode(ending.removeprefix(" "))]
    expected = lm.tokenizer.decode(whole)
    return next((ids for ids in alone if lm.tokenizer.decode(torch.cat([before, ids])) == expected), alone[0])
