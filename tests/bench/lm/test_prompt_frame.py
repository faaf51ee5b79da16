"""Prompt formats as tokens: the begin token, and the chat template without a second one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.data.documents import Document
from bench.data.prompt_format import PromptFormat
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.lm.prompt_frame import check
from tests.tiny_tokenizers import CHATS, chat_base

CHAT = PromptFormat(chat=True)


def token(lm: BaseModel, text: str) -> int:
    return int(lm.tokenizer.convert_tokens_to_ids(text))


def written(lm: BaseModel, question: str) -> list[int]:
    """The prompt of a question, put together from its parts."""
    return [*lm.prompt.head, *lm.encode(lm.prompt.text(question)).tolist(), *lm.prompt.tail]


def applied(lm: BaseModel, question: str) -> list[int]:
    """The prompt of a question as transformers writes it."""
    messages = [{"role": "user", "content": question}]
    encoded = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


@pytest.mark.parametrize("template", CHATS)
def test_a_chat_prompt_is_what_transformers_writes(template: str) -> None:
    begin = None if template == "turns" else "<s>"
    lm = chat_base(CHATS[template], CHAT, begin)
    for question in ("Who built the mill?", "It is 1983.\nWhen?"):
        assert written(lm, question) == applied(lm, question)


def test_a_token_of_the_format_without_an_embedding_is_refused(tmp_path: Path) -> None:
    lm = chat_base(CHATS["turns"], CHAT)
    highest = max(*lm.prompt.head, *lm.prompt.tail, lm.prompt.end)
    lm.model.resize_token_embeddings(highest)
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(BenchError, match=f"The prompt format has the token {highest}, but the model has embeddings"):
        BaseModel.load(str(tmp_path), prompt=CHAT)


def test_a_chat_prompt_has_one_begin_token() -> None:
    written_by_template = chat_base(CHATS["begin first"], CHAT)
    assert written(written_by_template, "When?").count(token(written_by_template, "<s>")) == 1
    lacking = chat_base(CHATS["turns"], CHAT)
    assert written(lacking, "When?") == [token(lacking, "<s>"), *applied(lacking, "When?")]
    as_begin = chat_base(CHATS["turns"], CHAT, "<|im_start|>")  # SmolLM2's way
    assert written(as_begin, "When?") == applied(as_begin, "When?")
    stated = chat_base(CHATS["turns"], PromptFormat(chat=True, begin="</s>"), "<|im_start|>")
    assert written(stated, "When?") == [token(stated, "</s>"), *applied(stated, "When?")]


def test_what_a_template_writes_before_every_answer_is_part_of_the_prompt() -> None:
    thinks = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    lm = chat_base(thinks, CHAT, None)
    assert lm.prompt.answer("a mill") == "a mill"
    block = lm.encode("<think>\n\n</think>\n\n").tolist()
    assert written(lm, "When?") == [*applied(lm, "When?"), *block]


def test_a_prompt_does_not_have_the_date_of_the_day() -> None:
    lm = chat_base("{{ strftime_now('%d %b %Y') }}" + CHATS["turns"], CHAT)
    assert lm.tokenizer.decode(lm.prompt.head).startswith("<s>26 Jul 2024<|im_start|>")


@pytest.mark.parametrize(("template", "end"), [("turns", "<|im_end|>"), ("begin first", "<|eot|>"), ("words", "</s>")])
def test_an_answer_ends_with_the_turn(template: str, end: str) -> None:
    lm = chat_base(CHATS[template], CHAT)
    assert lm.prompt.end == token(lm, end)
    assert lm.stop_ids == lm.newline_ids | {lm.eos_id, token(lm, end)}


def test_the_template_s_own_words_do_not_make_special_tokens_of_those_in_a_question() -> None:
    lm = chat_base(CHATS["turns"], CHAT)
    ids = written(lm, "<|im_end|>?")
    assert ids.count(token(lm, "<|im_end|>")) == written(lm, "When?").count(token(lm, "<|im_end|>"))
    assert "<|im_end|>?" in lm.tokenizer.decode(ids)


def test_every_text_is_read_after_the_begin_token_that_is_stated() -> None:
    plain, lm = chat_base(None), chat_base(None, PromptFormat(begin="<|im_end|>"))
    begin = token(lm, "<|im_end|>")
    assert (plain.bos_id, lm.bos_id, lm.prompt.head) == (token(plain, "<s>"), begin, (begin,))
    document = Document("d", "Anna built it.")
    assert lm.tokens(document).context_ids.tolist() == [begin]
    [_, second] = lm.segments(document, 8)[:2]
    assert lm.tokens(second).context_ids.tolist() == [begin, *lm.encode(document.text)[:8].tolist()]
    ids = lm.encode(document.text)
    expected = lm.log_probs(ids, torch.tensor([begin]))
    assert torch.equal(lm.log_probs(ids), expected) and not torch.equal(plain.log_probs(ids), expected)
    assert lm.stop_ids - plain.stop_ids == {begin}, "a new text begins: the answer is over"


@pytest.mark.parametrize(
    ("template", "prompt", "sentence"),
    [
        (None, PromptFormat(begin="<|im_stop|>"), "no token '<|im_stop|>'. Did you mean <|im_start|>"),
        (None, CHAT, "prompt.chat: the base's tokenizer has no chat template. Leave chat out"),
        ("{{ raise_exception('no turn.') }}", CHAT, "cannot be applied to a question and its answer: no turn. Co"),
        ("{% for %}", CHAT, "cannot be applied to a question and its answer: "),
        ("{{ messages[0]['content'] | upper }}", CHAT, "does not write each message once, as it is"),
        ("{{ messages[0]['content'] }}", CHAT, "does not write each message once, as it is"),
    ],
)
def test_what_a_tokenizer_cannot_write_is_said(
    template: str | None, prompt: PromptFormat, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError) as caught:
        chat_base(template, prompt)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    chat_base(template).tokenizer.save_pretrained(str(tmp_path))
    with pytest.raises(BenchError) as checked:
        check(prompt, tmp_path)
    assert str(checked.value) == str(caught.value)
