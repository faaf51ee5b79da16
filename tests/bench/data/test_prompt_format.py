"""Prompt formats: what an experiment may state, and the sentences about what it may not."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import first_problem


def test_the_default_is_the_plain_format() -> None:
    assert PromptFormat() == PLAIN
    assert PLAIN.model_dump() == {
        "begin": None,
        "document": "{document}\n",
        "question": "{question}",
        "answer": " {answer}",
        "chat": False,
    }
    assert PLAIN.stated == ""


def test_an_answer_in_a_chat_has_no_space_before_it_unless_one_is_stated() -> None:
    assert PromptFormat(chat=True).answer == "{answer}"
    assert PromptFormat(chat=True, answer=" {answer}").answer == " {answer}"
    for stated in (PromptFormat(chat=True), PromptFormat(chat=True, answer=" {answer}")):
        assert PromptFormat.model_validate_json(stated.model_dump_json()) == stated


def test_what_is_stated_in_words() -> None:
    stated = PromptFormat(begin="<s>", question="Q: {question}\nA:").stated
    assert stated == r"begin '<s>', question 'Q: {question}\nA:'"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"question": "Question:"}, "question = 'Question:': the template must contain {question} once"),
        ({"question": "{question} {question}"}, "the template must contain {question} once"),
        ({"question": "{document} {question}"}, "must contain {question} once, and no other placeholder"),
        ({"document": "{text}"}, "document = '{text}': the template must contain {document} once"),
        ({"answer": " "}, "the template must contain {answer} once"),
        ({"answer": "Answer: {answer}"}, "only spaces may stand before {answer}"),
        ({"answer": "\n{answer}"}, "no newline anywhere, since an answer ends there"),
        ({"chat": True, "answers": "{answer}"}, "answers: unknown key. Did you mean answer?"),
        ({"begin": 1}, "begin = 1: Input should be text: put it in quotes."),
    ],
)
def test_a_wrong_format_is_refused_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        PromptFormat(**values)
    assert sentence in first_problem(caught.value, PromptFormat)
