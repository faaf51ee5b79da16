"""Prompts and answers as tokens: an answer's tokens continue those of its question, whatever the tokenizer does."""

from __future__ import annotations

import pytest
import torch

from bench.answering.answers import answer, answer_and_nll, answer_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import answer_ids, build_prompts, make_room_for_answer
from bench.contract.method import Conditioning
from bench.data.documents import Document, Episode, Question
from bench.data.prompt_format import PromptFormat
from bench.lm.base_model import BaseModel
from methods.parts import inner_loop, memory_bank
from tests.tiny_tokenizers import CHATS, CORPUS, EVERY, MERGING, SPLITTING, base_with, chat_base

PAIRS = [("Who built the mill?", "Anna"), ("Where is the ferry?", "In Corvale"), ("When?", "1983."), ("Is it", "Anna")]


def tokens(lm: BaseModel, ids: torch.Tensor) -> list[str]:
    names: list[str] = lm.tokenizer.convert_ids_to_tokens(ids.tolist())
    return names


@pytest.mark.parametrize("kind", EVERY)
def test_question_and_answer_decode_to_what_one_text_decodes_to(kind: str) -> None:
    lm = base_with(kind)
    for question, gold in PAIRS:
        [ids] = answer_ids(lm, [question], [gold])
        assert ids[-1] == lm.eos_id
        written = lm.tokenizer.decode(torch.cat([lm.encode(question), ids[:-1]]))
        assert written == lm.tokenizer.decode(lm.encode(f"{question} {gold}"))
        if kind not in ("words", "word pieces", "words between spaces"):
            assert written.removeprefix(" ") == f"{question} {gold}", "and nothing is lost or added"


@pytest.mark.parametrize("kind", SPLITTING)
@pytest.mark.parametrize("text", ["", "Anna built it.", "It is 1983. In the mill"])
def test_prompt_and_answer_are_the_tokens_of_one_text(kind: str, text: str) -> None:
    lm = base_with(kind)
    for question, gold in PAIRS:
        [prompt] = build_prompts(lm, [Question("q", question)], Conditioning(text=[text]), 16)
        [ids] = answer_ids(lm, [question], [gold])
        whole = lm.encode(f"{text}\n{question} {gold}" if text else f"{question} {gold}")
        assert torch.cat([prompt.ids[1:], ids[:-1]]).tolist() == whole.tolist(), "the text before it does not matter"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("prepend", ["▁A", "n", "n", "a"]),
        ("metaspace first", ["▁An", "na"]),
        ("bytes", ["ĠA", "n", "n", "a"]),
        ("bytes with a space", ["ĠA", "n", "n", "a"]),
        ("unigram", ["▁Anna"]),
        ("words", ["Anna"]),
        ("bytes that merge '? '", ["Ġ", "A", "nn", "a"]),
        ("bytes with a space that merge '? '", ["ĠA", "n", "n", "a"]),
        ("pieces that merge '? '", ["▁A", "n", "n", "a"]),
        ("pieces that merge '? A'", ["▁", "A", "n", "n", "a"]),
        ("unigram with '? '", ["▁A", "n", "n", "a"]),
    ],
)
def test_answers_by_hand(kind: str, expected: list[str]) -> None:
    lm = base_with(kind)
    [ids] = answer_ids(lm, ["Who built the mill?"], ["Anna"])
    assert tokens(lm, ids) == [*expected, "</s>"]
    spans = lm.encode("Who built the mill? Anna")
    assert ("? " in lm.tokenizer.decode(spans[-5:])) or kind in SPLITTING
    prefix = spans.tolist()[: len(lm.encode("Who built the mill?"))] == lm.encode("Who built the mill?").tolist()
    assert prefix == (kind not in MERGING), "the tokenizer is of the kind that its name says"


@pytest.mark.parametrize("kind", ["prepend", "bytes with a space", "unigram"])
def test_a_model_that_was_taught_its_answers_has_almost_no_loss_on_them(kind: str) -> None:
    lm = base_with(kind)
    questions = [Question(str(i), question) for i, (question, _) in enumerate(PAIRS)]
    golds = [gold for _, gold in PAIRS]
    texts = [lm.encode(f"{question} {gold}") for question, gold in PAIRS]
    rows = [torch.cat([torch.tensor([lm.bos_id]), ids, torch.tensor([lm.eos_id])]) for ids in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = lm.model(ids[:, :-1]).logits.transpose(1, 2)
        torch.nn.functional.cross_entropy(logits, ids[:, 1:], ignore_index=0).backward()
        optimizer.step()
    prompts = build_prompts(lm, questions, Conditioning(), 16)
    answers, nll = answer_and_nll(lm, prompts, golds, Decoding())
    assert answers == [(gold, True) for gold in golds]
    assert max(nll) < 0.05


def assert_learners_read_alike(
    lm: BaseModel, questions: list[str], golds: list[str], expected: list[float | None]
) -> None:
    """Check that those who learn from answers have the likelihoods of the harness."""
    bank = memory_bank.answer_nll(lm, questions, golds, memory_bank.Prefix())
    assert bank.tolist() == pytest.approx(expected, abs=1e-5)
    for question, gold, value in zip(questions, golds, expected, strict=True):
        episode = Episode(Document("d", CORPUS[0]), (Question("q", question),), ((gold,),))
        loss = inner_loop.answer_loss(lm, inner_loop.parameters_of(lm), [episode])
        assert loss.item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("kind", ["prepend", "pieces that merge '? '", "bytes"])
@torch.no_grad()
def test_all_users_read_the_answers_that_the_harness_reads(kind: str) -> None:
    lm = base_with(kind)
    questions, golds = [question for question, _ in PAIRS], [gold for _, gold in PAIRS]
    prompts = build_prompts(lm, [Question(str(i), text) for i, text in enumerate(questions)], Conditioning(), 16)
    expected = answer_nll(lm, prompts, golds)
    assert_learners_read_alike(lm, questions, golds, expected)


def first_tokens(lm: BaseModel, count: int) -> tuple[list[int], str]:
    """The first tokens that the model writes after a question, and the whole answer."""
    [prompt] = build_prompts(lm, [Question("q", "Who built the mill?")], Conditioning(), 16)
    ids, written = prompt.ids, []
    for _ in range(count):
        written.append(int(lm.model(ids[None]).logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor(written[-1:])])
    return written, answer(lm, [prompt], Decoding())[0].text


@pytest.mark.parametrize("form", [int, lambda end: [end], lambda end: [7, end, 1], lambda end: [end, end + 1]])
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(strategy="beam", beams=1)])
@torch.no_grad()
def test_answers_stop_where_generate_stops(form: object, decoding: Decoding) -> None:
    lm = base_with("bytes")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    written, whole = first_tokens(lm, 6)
    end = next(token for token in written[1:] if token not in written[:1])
    lm = BaseModel(lm.model, lm.tokenizer)
    lm.model.generation_config.eos_token_id = form(end)  # type: ignore[operator]
    [prompt] = build_prompts(lm, [Question("q", "Who built the mill?")], Conditioning(), 16)
    expected = lm.tokenizer.decode(written[: written.index(end)]).strip()
    assert answer(lm, [prompt], decoding) == [(expected, True)] and expected != whole
    generated = lm.model.generate(prompt.ids[None], do_sample=False, max_new_tokens=16, pad_token_id=1)
    assert generated[0, len(prompt.ids) :].tolist() == written[: written.index(end) + 1]
    [target] = answer_ids(lm, ["Who built the mill?"], ["Anna"])
    assert target[-1] == lm.tokenizer.eos_token_id, "a gold answer still ends with the tokenizer's end of text"


def test_stops_without_a_generation_configuration_are_the_tokenizer_s() -> None:
    lm = base_with("bytes")
    lm.model.generation_config.eos_token_id = None
    assert lm.stop_ids == lm.newline_ids | {lm.eos_id}
    assert [lm.tokenizer.decode([token]) for token in lm.newline_ids] == ["\n"]


ASKED = PromptFormat(begin="<s>", document="Read:\n{document}\n\n", question="Q: {question}\nA:")
FORMATS = {
    "begin": (None, PromptFormat(begin="<|im_end|>")),
    "templates": (None, ASKED),
    "answer without a space": (None, PromptFormat(question="{question} -", answer="{answer}.")),
    **{name: (template, PromptFormat(chat=True)) for name, template in CHATS.items()},
    "chat with templates": (CHATS["turns"], PromptFormat(chat=True, question="Q: {question}")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_prompt_and_answer_in_a_format_are_the_tokens_of_one_text(name: str) -> None:
    template, prompt = FORMATS[name]
    lm = chat_base(template, prompt)
    for text in ("", "Anna built it."):
        [asked] = build_prompts(lm, [Question("q", "Who built the mill?")], Conditioning(text=[text]), 16)
        [ids] = answer_ids(lm, ["Who built the mill?"], ["Anna"])
        message = prompt.document.format(document=text) * bool(text) + prompt.question.format(
            question="Who built the mill?"
        )
        answer = prompt.answer.format(answer="Anna")
        if prompt.chat:
            roles = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
            whole = lm.tokenizer.apply_chat_template(roles, tokenize=False)
            opening = "" if whole.startswith("<s>") else "<s>"
            expected = lm.tokenizer(opening + whole, add_special_tokens=False)["input_ids"]
        else:
            expected = [lm.bos_id, *lm.encode(message + answer).tolist(), lm.eos_id]
        written = torch.cat([asked.ids, ids]).tolist()
        assert written == expected[: len(written)]
        assert lm.tokenizer.decode(ids) == " " * (name == "words") + answer + lm.tokenizer.decode([lm.prompt.end])


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_likelihoods_in_a_format_are_those_of_the_whole_text(name: str) -> None:
    lm = chat_base(*FORMATS[name])
    questions, golds = [question for question, _ in PAIRS], [gold for _, gold in PAIRS]
    prompts = build_prompts(lm, [Question(str(i), text) for i, text in enumerate(questions)], Conditioning(), 16)
    expected = [
        -lm.log_probs(ids, prompt.ids).mean().item()
        for prompt, ids in zip(prompts, answer_ids(lm, questions, golds), strict=True)
    ]
    assert answer_nll(lm, prompts, golds) == pytest.approx(expected, abs=1e-5)
    assert_learners_read_alike(lm, questions, golds, expected)


@pytest.mark.parametrize("name", ["begin", "templates", "turns", "words"])
def test_only_the_beginning_of_the_text_is_cut(name: str) -> None:
    lm = chat_base(*FORMATS[name])
    text = "it was built by Anna. " * 8  # no token of it has a character of the template
    question = [Question("q", "When?")]
    [bare] = build_prompts(lm, question, Conditioning(), 16)
    [prompt] = build_prompts(lm, question, Conditioning(text=[text], contrast=0.5), 16)
    assert len(prompt.ids) == lm.window - 16 and prompt.cut > 0
    opening, closing = lm.prompt.text("When?", text).split(text)
    head = [*lm.prompt.head, *lm.encode(opening).tolist()]
    tail = [*lm.encode(closing).tolist(), *lm.prompt.tail]
    kept = lm.encode(text).tolist()[prompt.cut :]
    assert prompt.ids.tolist() == [*head, *kept, *tail]
    assert prompt.contrast_prompt is not None and torch.equal(prompt.contrast_prompt.ids, bare.ids)
    room = lm.window - len(bare.ids)
    assert build_prompts(lm, question, Conditioning(text=[text]), room)[0].unanswered is None
    refused = build_prompts(lm, question, Conditioning(text=[text]), room + 1)[0].unanswered
    assert refused is not None and f"the question ({len(bare.ids) - 1} tokens) does not fit" in refused
    longer = make_room_for_answer(prompt, 20, lm.window)
    assert longer.ids.tolist() == [*lm.prompt.head, *prompt.ids.tolist()[len(lm.prompt.head) + 4 :]]


@torch.no_grad()
def test_an_answer_stops_at_the_end_of_the_turn() -> None:
    lm = chat_base(CHATS["begin first"], PromptFormat(chat=True))
    end = lm.prompt.end
    assert end not in {lm.eos_id, lm.bos_id}
    [prompt] = build_prompts(lm, [Question("q", "When?")], Conditioning(), 16)
    head = lm.model.get_output_embeddings()
    hidden = lm.model.model(prompt.ids[None]).last_hidden_state[0, -1]
    head.weight.data[end] = 100 * hidden
    assert answer(lm, [prompt], Decoding()) == [("", True)]
