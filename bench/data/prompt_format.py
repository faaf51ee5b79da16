"""The prompt format: what surrounds a document, a question and an answer. It is a setting of the experiment."""

from __future__ import annotations

import re
from typing import Any

import pydantic

from bench.settings import Settings

_PLACEHOLDER = re.compile(r"\{(document|question|answer)\}")


class PromptFormat(Settings):
    """The begin token, and templates for document, question and answer or the tokenizer's chat template.

    The default is the plain format: begin of text, the document and a newline, the question; then a space and the
    answer. With ``chat``, document and question are the user's message, and the answer is the assistant's. Templates
    are text: the name of a special token in them is read as its characters.
    """

    begin: str | None = pydantic.Field(
        default=None,
        description="token before every text; null: the tokenizer's begin-of-text token, or end-of-text if it has none",
    )
    document: str = pydantic.Field(default="{document}\n", description="text that a method puts before a question")
    question: str = "{question}"
    answer: str = pydantic.Field(default=" {answer}", description="by default without the space if chat is true")
    chat: bool = pydantic.Field(default=False, description="use the tokenizer's chat template")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _answer_of_chat(cls, values: Any) -> Any:
        """A message of the assistant begins without a space."""
        return {"answer": "{answer}", **values} if isinstance(values, dict) and values.get("chat") is True else values

    @pydantic.field_validator("document", "question", "answer")
    @classmethod
    def _has_its_placeholder(cls, template: str, info: pydantic.ValidationInfo) -> str:
        if _PLACEHOLDER.findall(template) != [info.field_name]:
            raise ValueError(f"the template must contain {{{info.field_name}}} once, and no other placeholder")
        return template

    @pydantic.field_validator("answer")
    @classmethod
    def _is_an_answer(cls, template: str) -> str:
        before, _, _ = template.partition("{answer}")
        if before.strip() or "\n" in template:
            raise ValueError(
                "only spaces may stand before {answer}, and no newline anywhere, since an answer ends there: put what "
                "leads to the answer at the end of the question's template"
            )
        return template

    @property
    def stated(self) -> str:
        """What is not the default, in words."""
        return ", ".join(f"{name} {value!r}" for name, value in self.model_dump(exclude_defaults=True).items())


PLAIN = PromptFormat()
"""The default."""
