"""The fixed text and tokens of a prompt format for one tokenizer, without or with its chat template."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import BenchError, nearest
from bench.lm import checkpoint

_CONTENTS = ("Xq7vUser", "Xq7vAssistant")
"""Messages that mark their places in a chat template; no template has these words."""
TODAY = date(2024, 7, 26)
"""The day that templates are told that write the date (Llama 3's): prompts do not depend on the day of a run."""


@dataclass(frozen=True)
class PromptFrame:
    """A prompt format for one tokenizer.

    A prompt is the tokens ``head``, those of a text (:meth:`text`), and the tokens ``tail``. Without a chat template
    ``head`` is the begin token, and ``tail`` is empty.
    """

    format: PromptFormat
    begin: int
    """The token before every text, documents included."""
    end: int
    """The token after an answer: end of text, or the end of the assistant's message."""
    stops: frozenset[int]
    """Tokens at which an answer stops, beside those that the model and its tokenizer name."""
    head: tuple[int, ...]
    tail: tuple[int, ...] = ()
    before: str = ""
    """Text of the chat template between ``head`` and the user's message."""
    after: str = ""
    """Text of the chat template between the user's message and ``tail``."""
    last: str = ""
    """Text at the end of ``tail``, after its last special token."""
    lead: str = ""
    """Text of the chat template before the assistant's message: a space, in some."""

    def text(self, question: str, document: str = "") -> str:
        """The question as it is read, after the document if there is one."""
        if document:
            document = self.format.document.replace("{document}", document)
        return f"{self.before}{document}{self.format.question.replace('{question}', question)}{self.after}"

    @property
    def opening(self) -> str:
        """What comes before a document in :meth:`text`."""
        return self.before + self.format.document.partition("{document}")[0]

    def answer(self, answer: str) -> str:
        """The answer as it is written."""
        return self.lead + self.format.answer.replace("{answer}", answer)

    def text_before_answer(self, question: str) -> str:
        """The text that an answer to this question continues."""
        return self.last if self.tail else self.text(question)


def check(prompt: PromptFormat, folder: Path) -> None:
    """Check that the tokenizer of the base in ``folder`` can write this format.

    Raises:
        BenchError: as :func:`frame`.
    """
    if prompt != PLAIN:
        frame(prompt, checkpoint.load_tokenizer(folder))


def frame(prompt: PromptFormat, tokenizer: Any) -> PromptFrame:
    """The fixed text and tokens of a prompt format for a tokenizer.

    Raises:
        BenchError: the tokenizer does not know the begin token, has no chat template, or cannot apply it.
    """
    own = tokenizer.bos_token_id
    begin = tokenizer.eos_token_id if own is None else own
    if prompt.begin is not None:
        begin = own = _token_id(tokenizer, prompt.begin)
    stops = frozenset(() if prompt.begin is None else (begin,))
    if not prompt.chat:
        return PromptFrame(prompt, begin, tokenizer.eos_token_id, stops, (begin,))
    user, assistant = _CONTENTS
    question = {"role": "user", "content": user}
    asked = _rendered(tokenizer, [question], True)
    opening, rest = _around(user, asked)
    answered = _rendered(tokenizer, [question, {"role": "assistant", "content": assistant}], False)
    before_answer, closing = _around(assistant, answered)
    lead = before_answer.removeprefix(asked) if before_answer.startswith(asked) else ""
    if lead.strip() or "\n" in lead:  # what the template writes before every answer (an empty chain of thought)
        rest, lead = rest + lead, ""
    special = _special_tokens(tokenizer)
    last_opening = max((match.end() for match in special.finditer(opening)), default=0)
    first_rest = next((match.start() for match in special.finditer(rest)), len(rest))
    last_rest = max((match.end() for match in special.finditer(rest)), default=0)
    head = _ids(tokenizer, opening[:last_opening])
    if own is not None and head[:1] != (own,):  # many templates write the begin token themselves
        head = (own, *head)
    first_closing = special.search(closing)
    end = tokenizer.eos_token_id if first_closing is None else _token_id(tokenizer, first_closing.group())
    return PromptFrame(
        prompt,
        begin,
        end,
        stops | {end},
        head,
        tail=_ids(tokenizer, rest[first_rest:]),
        before=opening[last_opening:],
        after=rest[:first_rest],
        last=rest[last_rest:],
        lead=lead,
    )


def _token_id(tokenizer: Any, token: str) -> int:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if token not in vocabulary:
        special = [str(added) for added in tokenizer.added_tokens_decoder.values()]
        raise BenchError(f"prompt.begin: the base's tokenizer has no token {token!r}.{nearest(token, special)}")
    return vocabulary[token]


def _rendered(tokenizer: Any, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise BenchError(
            "prompt.chat: the base's tokenizer has no chat template. Leave chat out and state the templates document, "
            "question and answer, or use a base that was tuned for chats."
        )
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            chat_template=_dated(tokenizer.get_chat_template()),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # of any type: templates are programs
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"prompt.chat: the chat template of the base's tokenizer cannot be applied to a question and its answer: "
            f"{reason.rstrip('.')}. Correct it, or leave chat out."
        ) from None
    return str(rendered)


def _dated(template: str) -> str:
    """A chat template that writes :data:`TODAY` where it writes the date."""
    forms = re.findall(r"""strftime_now\(\s*['"](.*?)['"]""", template)
    if not forms:
        return template
    dates = json.dumps({form: TODAY.strftime(form) for form in forms})
    return f"{{% macro strftime_now(form) %}}{{{{ {dates}[form] }}}}{{% endmacro %}}{template}"


def _around(content: str, rendered: str) -> tuple[str, str]:
    """What a chat template writes before and after a message."""
    if rendered.count(content) != 1:
        raise BenchError(
            "prompt.chat: the chat template of the base's tokenizer does not write each message once, as it is. "
            "Correct it, or leave chat out."
        )
    before, _, after = rendered.partition(content)
    return before, after


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the tokens that a tokenizer recognises as a whole, the longest first."""
    tokens = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=lambda token: -len(token))
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a part of a chat template, in which special tokens are read as such."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
