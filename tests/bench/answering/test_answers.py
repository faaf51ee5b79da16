"""Answering in batches gives the answers of one prompt at a time, on every kind of checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.answering.answers import answer, answer_and_nll, answer_nll
from bench.answering.decoding import Decoding
from bench.answering.prompt_batch import PromptBatch
from bench.answering.prompts import Prompt, build_prompts
from bench.contract.method import Conditioning
from bench.data.documents import Question
from bench.lm.base_model import BaseModel, decode
from tests.conftest import TEXT

QUESTIONS = [Question(str(i), " ".join(words)) for i in range(1, 12) for words in [(TEXT[i % 3].split() * 2)[: 2 * i]]]
GREEDY = Decoding(max_new_tokens=10)


def soft_prompts(lm: BaseModel) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    width = lm.model.config.hidden_size
    return Conditioning(prefix_embeddings=[torch.randn(1 + i % 3, width, generator=generator) for i in range(11)])


def key_value_prefixes(lm: BaseModel) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    config = lm.model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = config.hidden_size // config.num_attention_heads
    prefixes = []
    for i in range(11):
        length = 1 + i % 4
        shape = (heads, length, size)
        prefixes.append(
            [
                (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
                for _ in range(config.num_hidden_layers)
            ]
        )
    return Conditioning(prefix_key_values=prefixes)


def texts(lm: BaseModel) -> Conditioning:
    return Conditioning(text=[TEXT[i % 3] for i in range(11)])


def nothing(lm: BaseModel) -> Conditioning:
    return Conditioning()


def contrasted_texts(lm: BaseModel) -> Conditioning:
    return replace(texts(lm), contrast=0.7)


def contrasted_soft_prompts(lm: BaseModel) -> Conditioning:
    return replace(soft_prompts(lm), contrast=0.7)


def contrasted_prefixes(lm: BaseModel) -> Conditioning:
    return replace(key_value_prefixes(lm), contrast=0.7)


CONTRASTED = [contrasted_texts, contrasted_soft_prompts, contrasted_prefixes]


@pytest.mark.parametrize("build_conditioning", [nothing, texts, soft_prompts, key_value_prefixes, *CONTRASTED])
def test_answers_in_a_batch_equal_those_one_by_one(checkpoint: Path, build_conditioning) -> None:  # type: ignore[no-untyped-def]
    lm = BaseModel.load(str(checkpoint))
    prompts = build_prompts(lm, QUESTIONS, build_conditioning(lm), 10)
    together = answer(lm, prompts, GREEDY)
    assert together == [answer(lm, [prompt], GREEDY)[0] for prompt in prompts]
    assert len(set(together)) > 1, "a model that always gives one answer would test nothing"
    golds = [TEXT[i % 3][: 5 + i] for i in range(11)]
    alone = [answer_nll(lm, [prompt], [gold])[0] for prompt, gold in zip(prompts, golds, strict=True)]
    assert answer_nll(lm, prompts, golds) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("build_conditioning", CONTRASTED)
@torch.no_grad()
def test_contrasted_answers_and_likelihoods_follow_from_the_two_logits(checkpoint: Path, build_conditioning) -> None:  # type: ignore[no-untyped-def]
    lm = BaseModel.load(str(checkpoint))
    conditioning = build_conditioning(lm)
    full = build_prompts(lm, QUESTIONS, replace(conditioning, contrast=None), 10)
    bare = build_prompts(lm, QUESTIONS, Conditioning(), 10)

    def logits(prompt: Prompt, written: list[int]) -> Tensor:
        ids = torch.cat([prompt.ids, torch.tensor(written, dtype=torch.long)])
        return PromptBatch(lm, [replace(prompt, ids=ids)]).read(1)[0, -1]

    def step(i: int, written: list[int]) -> Tensor:
        return 1.7 * logits(full[i], written) - 0.7 * logits(bare[i], written)

    prompts = build_prompts(lm, QUESTIONS, conditioning, 10)
    for i, (text, ended) in enumerate(answer(lm, prompts, GREEDY)):
        written: list[int] = []
        while len(written) < 10 and (token := int(step(i, written).argmax())) not in lm.newline_ids | {lm.eos_id}:
            written.append(token)
        assert (text, ended) == (decode(lm.tokenizer, written), len(written) < 10)
    ending = [*lm.encode(" an otter").tolist(), lm.eos_id]
    nll = [-step(3, ending[:j]).log_softmax(-1)[token].item() for j, token in enumerate(ending)]
    value = answer_nll(lm, prompts, ["an otter"] * 11)[3]
    assert value == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_a_contrast_of_zero_changes_nothing_and_negative_contrasts_are_refused(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    plain, zero = (build_prompts(lm, QUESTIONS, replace(texts(lm), contrast=a), 10) for a in (None, 0.0))
    assert answer(lm, plain, GREEDY) == answer(lm, zero, GREEDY)
    with pytest.raises(ValueError, match="contrast is -1"):
        Conditioning(contrast=-1.0)


@pytest.mark.parametrize("build_conditioning", [nothing, texts, soft_prompts, key_value_prefixes, *CONTRASTED])
def test_reading_a_prompt_once_gives_what_reading_it_twice_gives(checkpoint: Path, build_conditioning) -> None:  # type: ignore[no-untyped-def]
    lm = BaseModel.load(str(checkpoint))
    prompts = build_prompts(lm, QUESTIONS, build_conditioning(lm), 10)
    golds = [TEXT[i % 3][: 5 + i] for i in range(11)]
    answers, values = answer_and_nll(lm, prompts, golds, GREEDY)
    assert answers == answer(lm, prompts, GREEDY)
    assert values == pytest.approx(_nll_in_one_piece(lm, prompts, golds), abs=1e-4)


def _nll_in_one_piece(lm: BaseModel, prompts: list[Prompt], golds: list[str]) -> list[float]:
    """Mean -log p of each gold answer from one forward pass over prompt and answer, without a cache."""
    values = []
    for prompt, gold in zip(prompts, golds, strict=True):
        target = torch.cat([lm.encode(" " + gold), torch.tensor([lm.eos_id])])
        whole = replace(prompt, ids=torch.cat([prompt.ids, target]))
        if prompt.contrast_prompt is not None:
            contrast_ids = torch.cat([prompt.contrast_prompt.ids, target])
            whole = replace(whole, contrast_prompt=replace(prompt.contrast_prompt, ids=contrast_ids))
        with torch.no_grad():
            logits = PromptBatch(lm, [whole]).read(len(target) + 1)[0, :-1]
        values.append(torch.nn.functional.cross_entropy(logits, target).item())
    return values


def test_only_answering_is_charged_for(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 10)
    charged = []

    @contextmanager
    def answering() -> Iterator[None]:
        before = len(shapes)
        yield
        charged.append(len(shapes) - before)

    shapes: list[torch.Size] = []
    forward = lm.model.forward

    def counted(*args: object, input_ids: torch.Tensor, **options: object) -> object:
        shapes.append(input_ids.shape)
        return forward(*args, input_ids=input_ids, **options)

    lm.model.forward = counted
    golds = ["otter"] * len(prompts)
    answer_and_nll(lm, prompts, golds, GREEDY, answering)
    assert sum(charged) == len(shapes) - 1, "the gold answers are read after the one batch"
    assert shapes[-1] == (len(prompts), len(lm.encode(" otter"))), "and the prompts are not read again"


def test_a_gold_answer_that_does_not_fit_after_its_prompt_does_not_change_the_answers(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS[:2], Conditioning(text=[" ".join(TEXT * 9)] * 2), 16)
    golds = [" ".join(TEXT)[:120], "otter"]
    answers, values = answer_and_nll(lm, prompts, golds, GREEDY)
    assert answers == answer(lm, prompts, GREEDY)
    assert values == pytest.approx(answer_nll(lm, prompts, golds))


def test_greedy_answers_equal_those_of_generate(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 10)
    for prompt, (text, ended) in zip(prompts, answer(lm, prompts, GREEDY), strict=True):
        output = lm.model.generate(
            prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids[None]),
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=lm.eos_id,
        )
        expected = lm.tokenizer.decode(output[0, len(prompt.ids) :], skip_special_tokens=True)
        assert text == expected.split("\n")[0].strip()
        assert ended is bool(lm.stop_ids & set(output[0, len(prompt.ids) :].tolist()))


def test_a_soft_prompt_of_token_embeddings_equals_the_tokens(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    begin = torch.tensor([lm.bos_id])
    ids = lm.encode("Nobody saw")
    with torch.no_grad():
        soft = Conditioning(prefix_embeddings=[lm.embeddings(torch.cat([begin, ids]))])
    prompts = build_prompts(lm, QUESTIONS[:1], soft, 10)
    plain = torch.cat([begin, ids, begin, lm.encode(QUESTIONS[0].text)])
    expected = lm.log_probs(torch.cat([lm.encode(" otter"), torch.tensor([lm.eos_id])]), plain).mean()
    assert answer_nll(lm, prompts, ["otter"])[0] == pytest.approx(-expected.item(), abs=1e-4)


def test_key_value_prefixes_of_a_text_equal_the_text(checkpoint: Path) -> None:
    from transformers import DynamicCache

    lm = BaseModel.load(str(checkpoint))
    ids = torch.cat([torch.tensor([lm.bos_id]), lm.encode("Nobody saw")])
    cache = DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    pairs = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    prompts = build_prompts(lm, QUESTIONS[:1], Conditioning(prefix_key_values=[pairs]), 10)
    plain = torch.cat([ids, torch.tensor([lm.bos_id]), lm.encode(QUESTIONS[0].text)])
    expected = lm.log_probs(torch.cat([lm.encode(" otter"), torch.tensor([lm.eos_id])]), plain).mean()
    assert answer_nll(lm, prompts, ["otter"])[0] == pytest.approx(-expected.item(), abs=1e-4)


def test_a_text_follows_a_prefix_of_either_kind(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    begin, before = torch.tensor([lm.bos_id]), lm.encode("Nobody saw")
    text = [" ".join(TEXT[0].split()[:4])]
    with torch.no_grad():
        cache = lm.model(input_ids=torch.cat([begin, before])[None], use_cache=True).past_key_values
        soft = lm.embeddings(torch.cat([begin, before]))
    pairs = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    plain = torch.cat([begin, before, begin, lm.encode(f"{text[0]}\n{QUESTIONS[0].text}")])
    expected = lm.log_probs(torch.cat([lm.encode(" otter"), torch.tensor([lm.eos_id])]), plain).mean()
    for conditioning in (
        Conditioning(text=text, prefix_embeddings=[soft]),
        Conditioning(text=text, prefix_key_values=[pairs]),
    ):
        prompts = build_prompts(lm, QUESTIONS[:1], conditioning, 10)
        assert answer_nll(lm, prompts, ["otter"])[0] == pytest.approx(-expected.item(), abs=1e-4)
    with pytest.raises(ValueError, match="takes one of prefix_embeddings and prefix_key_values"):
        Conditioning(prefix_embeddings=[soft], prefix_key_values=[pairs])


def test_answer_nll_is_the_mean_over_answer_and_end_of_text(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS[:3], Conditioning(), 10)
    for prompt, value in zip(prompts, answer_nll(lm, prompts, ["otter"] * 3), strict=True):
        target = torch.cat([lm.encode(" otter"), torch.tensor([lm.eos_id])])
        assert value == pytest.approx(-lm.log_probs(target, prompt.ids).mean().item(), abs=1e-5)


def test_a_text_that_does_not_fit_loses_its_beginning_and_is_counted(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    (prompt,) = build_prompts(lm, QUESTIONS[:1], Conditioning(text=[" ".join(TEXT * 9)]), 16)
    assert prompt.cut > 0
    assert len(prompt.ids) + 16 == lm.window
    assert lm.tokenizer.decode(prompt.ids).endswith(f"{TEXT[2]}\n{QUESTIONS[0].text}")


def test_conditioning_needs_one_entry_per_question(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    with pytest.raises(ValueError, match="2 entries for 1 questions"):
        build_prompts(lm, QUESTIONS[:1], Conditioning(text=["a", "b"]), 16)


def test_beam_search_with_one_beam_is_greedy(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 10)
    assert answer(lm, prompts, Decoding(strategy="beam", max_new_tokens=10)) == answer(lm, prompts, GREEDY)


def test_beam_search_equals_that_of_generate(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 10)
    answers = answer(lm, prompts, Decoding(strategy="beam", beams=3, max_new_tokens=10))
    for prompt, (text, ended) in zip(prompts, answers, strict=True):
        output = lm.model.generate(
            prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids[None]),
            max_new_tokens=10,
            num_beams=3,
            early_stopping=True,
            do_sample=False,
            pad_token_id=lm.eos_id,
            eos_token_id=sorted(lm.newline_ids | {lm.eos_id}),
        )
        assert (
            text == lm.tokenizer.decode(output[0, len(prompt.ids) :], skip_special_tokens=True).split("\n")[0].strip()
        )
        assert ended is bool(lm.stop_ids & set(output[0, len(prompt.ids) :].tolist()))
    assert answers != answer(lm, prompts, GREEDY), "the beams must make a difference"


def slow_beams(lm: BaseModel, ids: torch.Tensor, decoding: Decoding) -> tuple[str, bool]:
    """Diverse beam search that reads each beam from its beginning, and sorts all of its continuations."""
    size = decoding.beams // decoding.groups
    opened: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(decoding.groups)]
    ended: list[list[tuple[float, list[int], bool]]] = [[] for _ in range(decoding.groups)]
    for _ in range(decoding.max_new_tokens):
        used: list[int] = []
        for group, over in zip(opened, ended, strict=True):
            if len(over) >= size:
                continue
            candidates = []
            for total, written in group:
                logits = lm.model(torch.cat([ids, torch.tensor(written, dtype=torch.long)])[None]).logits[0, -1]
                for token, value in enumerate(logits.double().log_softmax(-1).tolist()):
                    lost = decoding.diversity_penalty * used.count(token)
                    candidates.append((total + value - lost, [*written, token]))
            candidates.sort(reverse=True)
            over += [(total / len(new), new[:-1], True) for total, new in candidates[:size] if new[-1] in lm.stop_ids]
            group[:] = [(total, new) for total, new in candidates if new[-1] not in lm.stop_ids][:size]
            used += [new[-1] for _, new in group]
    for group, over in zip(opened, ended, strict=True):
        if len(over) < size:
            over += [(total / len(new), new, False) for total, new in group]
    _, best, stopped = max(answer for over in ended for answer in over)
    return decode(lm.tokenizer, best), stopped


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(4, 2, 0.7), (6, 3, 10.0), (4, 4, 2.0)])
@torch.no_grad()
def test_diverse_beams_equal_a_slow_search(llama: Path, beams: int, groups: int, penalty: float) -> None:
    lm = BaseModel.load(str(llama))
    prompts = build_prompts(lm, QUESTIONS, Conditioning(), 8)
    decoding = Decoding(
        strategy="diverse_beam", beams=beams, groups=groups, diversity_penalty=penalty, max_new_tokens=8
    )
    answers = answer(lm, prompts, decoding)
    assert answers == [slow_beams(lm, prompt.ids, decoding) for prompt in prompts]
    assert answers != answer(lm, prompts, Decoding(strategy="beam", beams=beams, max_new_tokens=8))


@pytest.mark.parametrize("build_conditioning", [nothing, texts, soft_prompts, key_value_prefixes, *CONTRASTED])
def test_beams_of_prompts_of_every_kind_are_those_of_each_alone(checkpoint: Path, build_conditioning) -> None:  # type: ignore[no-untyped-def]
    lm = BaseModel.load(str(checkpoint))
    prompts = build_prompts(lm, QUESTIONS, build_conditioning(lm), 10)
    decoding = Decoding(strategy="diverse_beam", beams=4, groups=2, diversity_penalty=1.0, max_new_tokens=10)
    golds = ["an otter"] * len(prompts)
    together = answer_and_nll(lm, prompts, golds, decoding)
    assert together[0] == [answer(lm, [prompt], decoding)[0] for prompt in prompts]
    assert together[1] == pytest.approx(answer_nll(lm, prompts, golds), rel=1e-4)
    assert together[0] != answer(lm, prompts, GREEDY)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 2}, "greedy decoding has no beams"),
        ({"strategy": "beam", "beams": 4, "groups": 2}, "only strategy: diverse_beam has groups"),
        ({"strategy": "beam", "beams": 4, "diversity_penalty": 1.0}, "only strategy: diverse_beam has groups"),
        ({"strategy": "diverse_beam", "beams": 4, "groups": 3}, "4 beams cannot be divided into 3 groups"),
    ],
)
def test_settings_that_do_not_fit_the_strategy_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding.model_validate(settings)


def test_a_gold_answer_longer_than_any_prediction_never_leaves_the_window(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    prompts = build_prompts(lm, QUESTIONS[:2], Conditioning(text=[" ".join(TEXT * 9)] * 2), 16)
    long = " ".join(TEXT)[:120]
    for prompt, value in zip(prompts, answer_nll(lm, prompts, [long, long]), strict=True):
        target = torch.cat([lm.encode(" " + long), torch.tensor([lm.eos_id])])
        context = torch.cat([prompt.ids[:1], prompt.ids[1 + len(prompt.ids) + len(target) - lm.window :]])
        assert len(context) + len(target) == lm.window
        assert value == pytest.approx(-lm.log_probs(target, context).mean().item(), abs=1e-4)
