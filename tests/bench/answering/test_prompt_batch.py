"""Prompts that are read together: which may be, and that it changes nothing."""

from __future__ import annotations

import pytest
import torch

from bench.answering import prompt_batch
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import Prefill, PromptBatch, layout
from bench.answering.prompts import Prompt, build_prompts
from bench.contract.method import Conditioning
from bench.data.documents import Question
from bench.lm.base_model import BaseModel
from tests.device_reads import DeviceReads
from tests.tiny_models import tiny_base

QUESTIONS = [Question(str(i), text) for i, text in enumerate(("Who?", "Where does ferry 7 sail from?", "Why?", "Who?"))]
GOLDS = ["Ostavia", "in 1816", "it was launched", "a"]
GREEDY = Decoding(max_new_tokens=6)


def prompts_of(lm: BaseModel, contrast: float | None = None) -> list[Prompt]:
    return build_prompts(lm, QUESTIONS, Conditioning(text=["a ferry", "", "it", "a ferry"], contrast=contrast), 8)


def with_prefix(lm: BaseModel, length: int) -> Prompt:
    layers, heads, size = lm.key_value_shape
    pair = torch.zeros(heads, length, size), torch.zeros(heads, length, size)
    return Prompt(lm.encode("Who?"), key_values=[pair] * layers)


def test_only_a_base_that_pads_exactly_reads_rows_of_unequal_length_together() -> None:
    exact, sliding, rereading = map(tiny_base, ("llama", "gemma2", "rwkv"))
    assert {layout(lm, prompt) for lm in (exact, sliding) for prompt in prompts_of(lm)} == {None}
    prompts = prompts_of(rereading)
    assert {layout(rereading, prompt) for prompt in prompts} == {(len(prompt.ids), 0, None) for prompt in prompts}
    assert len({layout(exact, with_prefix(exact, length)) for length in (1, 2, 3)}) == 1
    assert len({layout(sliding, with_prefix(sliding, length)) for length in (1, 2, 3)}) == 3


@pytest.mark.parametrize("architecture", ["llama", "rwkv", "lfm2"])
@pytest.mark.parametrize("contrast", [None, 0.6])
@torch.no_grad()
def test_answers_do_not_depend_on_which_prompts_are_read_with_them(
    architecture: str, contrast: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_batch, "TARGET_ROWS", 3)
    lm = tiny_base(architecture)
    prompts = prompts_of(lm, contrast)
    answers, nll = answer_and_nll(lm, prompts, GOLDS, GREEDY)
    alone = [answer_and_nll(lm, [p], [g], GREEDY) for p, g in zip(prompts, GOLDS, strict=True)]
    assert answers == [text for (text,), _ in alone]
    assert nll == pytest.approx([value for _, (value,) in alone], abs=1e-5)


@torch.no_grad()
def test_the_device_is_not_read_once_per_prompt() -> None:
    lm = tiny_base("llama")
    counts = []
    for copies in (2, 2, 5):  # libraries read it once more when they are first used
        with DeviceReads() as reads:
            prefill = Prefill(lm, [prompts_of(lm)[0]] * copies)
            assert any(answer.text for answer in prefill.greedy_answers(6)), "tokens are written"
            prefill.mean_nll([lm.encode("in 1816")] * copies)
        counts.append(reads.count)
    assert counts[1] == counts[2]


@torch.no_grad()
def test_a_contrast_is_taken_between_the_two_prompts_of_each_row() -> None:
    lm = tiny_base("llama")
    prompts = prompts_of(lm, contrast=0.6)
    bare = [prompt.contrast_prompt for prompt in prompts if prompt.contrast_prompt is not None]
    plain = prompts_of(lm)
    expected = 1.6 * PromptBatch(lm, plain).read(1) - 0.6 * PromptBatch(lm, bare).read(1)
    batch = PromptBatch(lm, prompts)
    torch.testing.assert_close(batch.read(1), expected)
    token = torch.full((4, 1), 7)
    batch.select([2, 0])
    batch.extend(token[:2], torch.ones_like(token[:2]))
    sides = [PromptBatch(lm, [one[2], one[0]]) for one in (plain, bare)]
    for side in sides:
        side.read(1)
        side.extend(token[:2], torch.ones_like(token[:2]))
    expected = 1.6 * sides[0].read(1) - 0.6 * sides[1].read(1)
    torch.testing.assert_close(batch.read(1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("conditioning", "length", "reason"),
    [
        ("nothing", 90, "question (90 tokens) does not fit into a window of 48 tokens with room for an answer of 6"),
        ("text", 60, "question (60 tokens)"),
        ("soft", 30, "question (30 tokens after a prefix of 14 positions)"),
        ("longer than the window", 4, "question (4 tokens after a prefix of 70 positions)"),
        ("key_values", 30, "question (30 tokens after a prefix of 14 positions)"),
    ],
)
@pytest.mark.parametrize("decoding", [GREEDY, Decoding(strategy="beam", beams=2, max_new_tokens=6)])
def test_an_over_long_question_costs_that_question_alone(
    conditioning: str, length: int, reason: str, decoding: Decoding
) -> None:
    lm = tiny_base("llama", max_position_embeddings=48)
    long = lm.tokenizer.decode(lm.encode("Ferry 7 sails from Ostavia and Tarmouth. " * 9)[:length])
    assert len(lm.encode(long)) == length
    questions = [QUESTIONS[0], Question("long", long), QUESTIONS[2]]
    size = {"soft": 14, "longer than the window": 70}.get(conditioning, 1)
    if conditioning in ("nothing", "text"):
        given = Conditioning(text=["", "a ferry", ""] if conditioning == "text" else None)
    elif conditioning == "key_values":
        given = Conditioning(prefix_key_values=[with_prefix(lm, n).key_values or [] for n in (2, 14, 2)])
    else:
        given = Conditioning(prefix_embeddings=[torch.zeros(2, 32), torch.zeros(size, 32), torch.zeros(2, 32)])
    prompts = build_prompts(lm, questions, given, decoding.max_new_tokens)
    assert [prompt.unanswered is None for prompt in prompts] == [True, False, True]
    assert reason in (prompts[1].unanswered or "")
    answers, nll = answer_and_nll(lm, prompts, ["a", "b", "c"], decoding)
    others = answer_and_nll(lm, [prompts[0], prompts[2]], ["a", "c"], decoding)
    assert answers == [others[0][0], ("", None), others[0][1]]
    assert nll == [pytest.approx(others[1][0]), None, pytest.approx(others[1][1])]


def test_a_gold_answer_longer_than_the_window_has_no_likelihood() -> None:
    lm = tiny_base("gpt2", n_positions=48)
    prompts = build_prompts(lm, QUESTIONS[:2], Conditioning(), 6)
    answers, nll = answer_and_nll(lm, prompts, ["Ostavia " * 60, "in 1816"], GREEDY)
    expected = answer_and_nll(lm, prompts, ["a", "in 1816"], GREEDY)
    assert answers == expected[0]
    assert nll == [None, pytest.approx(expected[1][1], abs=1e-5)]


def test_a_token_of_probability_0_stays_so_in_a_contrast() -> None:
    lm = tiny_base("llama")

    def without(log_probs: torch.Tensor, _: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        return log_probs.index_fill(-1, torch.tensor([7]), -torch.inf).log_softmax(-1)

    with lm.mixing(without):
        for contrast in (None, 0.0, 0.6):
            answers, nll = answer_and_nll(lm, prompts_of(lm, contrast), GOLDS, GREEDY)
            assert all(value is not None and 0 < value < 100 for value in nll), "never NaN"
            if contrast is None:
                expected = [answer.text for answer in answers]
            elif contrast == 0.0:
                assert [answer.text for answer in answers] == expected
