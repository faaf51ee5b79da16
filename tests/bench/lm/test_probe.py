"""On every architecture answers equal those of the slow obvious way, or what would differ is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from bench import Document, Question
from bench.answering.answers import answer_and_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import Prompt, build_prompts
from bench.conformance import fixtures
from bench.contract.method import Conditioning
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.lm.probe import Abilities
from bench.lm.reading import CarriedCache, Reading
from tests.tiny_models import CONFIGS, WINDOW, tiny_base, tiny_model

TEXT = "Ferry 7, the Dunmere, sails from Ostavia. It was launched in 1816 and carries 107 passengers. " * 2
QUESTIONS = [
    "Where?",
    "Where does ferry 7 sail from, and who launched it in the year 1816, as far as is known?",
    "Why 7?",
]
GOLDS = ["Ostavia", "in 1816", "it was launched"]
STEPS = 5
ALL = {"cache", "padding", "padding_after_prefixes", "soft_prompts", "key_value_prefixes", "carried_cache"}
WITHOUT_CACHE = ALL - {"soft_prompts"}
HYBRID = {"padding_after_prefixes", "key_value_prefixes", "carried_cache"}
MISSING = {
    **{key: {"padding_after_prefixes"} for key in ("mistral", "gemma2", "gemma3_text", "gpt_oss", "mpt")},
    **dict.fromkeys(("openai-gpt", "mamba", "mamba2", "rwkv", "recurrent_gemma"), WITHOUT_CACHE),
    **dict.fromkeys(("bamba", "granitemoehybrid", "zamba2", "lfm2", "qwen3_next"), HYBRID),
}


@cache
def base(architecture: str) -> BaseModel:
    return tiny_base(architecture)


@torch.no_grad()
def logits_at_once(lm: BaseModel, ids: Tensor) -> Tensor:
    """Logits after the last token, (V,): one forward pass over one text, without cache and padding."""
    logits: Tensor = lm.model(input_ids=ids[None], use_cache=False).logits[0, -1]
    return logits


def reference(lm: BaseModel, ids: Tensor, target: Tensor) -> tuple[str, float]:
    """Greedy answer and mean NLL of the target, one token at a time."""
    written = ids
    for _ in range(STEPS):
        token = int(logits_at_once(lm, written).argmax())
        if token in lm.newline_ids | {lm.eos_id}:
            break
        written = torch.cat([written, torch.tensor([token])])
    whole, nll = torch.cat([ids, target]), []
    for i, token in enumerate(target, len(ids)):
        nll.append(-logits_at_once(lm, whole[:i]).log_softmax(-1)[token].item())
    text = lm.tokenizer.decode(written[len(ids) :], skip_special_tokens=True)
    return text.split("\n")[0].strip(), sum(nll) / len(nll)


def assert_answers_equal_the_reference(lm: BaseModel, prompts: Sequence[Prompt], texts: Sequence[Tensor]) -> None:
    from bench.answering.prompts import answer_ids

    targets = answer_ids(lm, QUESTIONS, GOLDS)
    answers, nll = answer_and_nll(lm, prompts, GOLDS, Decoding(max_new_tokens=STEPS))
    expected = [reference(lm, ids, target) for ids, target in zip(texts, targets, strict=True)]
    assert [own.text for own in answers] == [text for text, _ in expected]
    assert nll == pytest.approx([value for _, value in expected], abs=1e-4)


def asked(lm: BaseModel, conditioning: Conditioning) -> list[Prompt]:
    return build_prompts(lm, [Question(str(i), text) for i, text in enumerate(QUESTIONS)], conditioning, 8)


def first_tokens(lm: BaseModel) -> list[Tensor]:
    """Tokens of a text for each question, of unequal numbers."""
    return [lm.encode(TEXT)[:length] for length in (5, 2, 9)]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_probe_finds_what_an_architecture_can_do(architecture: str) -> None:
    abilities = base(architecture).abilities
    assert {name for name, able in vars(abilities).items() if not able} == MISSING.get(architecture, set())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_answers_equal_those_of_one_text_at_a_time_without_a_cache(architecture: str) -> None:
    lm = base(architecture)
    texts = [TEXT, "", TEXT[:70]]
    prompts = asked(lm, Conditioning(text=texts))
    assert len(prompts[0].ids) > 2 * WINDOW
    assert_answers_equal_the_reference(lm, prompts, [prompt.ids for prompt in prompts])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_soft_prompts_are_read_as_the_tokens_that_they_embed(architecture: str) -> None:
    lm = base(architecture)
    starts = first_tokens(lm)
    with torch.no_grad():
        prompts = asked(lm, Conditioning(prefix_embeddings=[lm.embeddings(ids) for ids in starts]))
    texts = [torch.cat([ids, prompt.ids]) for ids, prompt in zip(starts, prompts, strict=True)]
    assert_answers_equal_the_reference(lm, prompts, texts)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_key_value_prefixes_are_continued_as_their_text_or_refused(architecture: str) -> None:
    lm = base(architecture)
    if not lm.abilities.key_value_prefixes:
        with pytest.raises(
            BenchError, match="does not continue key/value prefixes as it continues the same text, so x cannot"
        ):
            lm.abilities.require(["key_value_prefixes"], architecture, "x")
        return
    prefixes, starts = [], first_tokens(lm)
    for ids in starts:
        cache = DynamicCache(config=lm.model.config)
        with torch.no_grad():
            lm.model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        prefixes.append([(layer.keys[0], layer.values[0]) for layer in cache.layers])
    prompts = asked(lm, Conditioning(prefix_key_values=prefixes))
    texts = [torch.cat([ids, prompt.ids]) for ids, prompt in zip(starts, prompts, strict=True)]
    assert_answers_equal_the_reference(lm, prompts, texts)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_carried_cache_reads_segments_as_one_text_or_is_refused(architecture: str) -> None:
    lm = base(architecture)
    if not lm.abilities.carried_cache:
        with pytest.raises(BenchError, match="does not continue carried keys and values"):
            lm.abilities.require(["carried_cache"], architecture, "x")
        return
    document, reading = Document("d", TEXT), Reading(cache=CarriedCache())
    with torch.no_grad():
        parts = [lm.tokens(segment) for segment in lm.segments(document, 10)]
        read = torch.cat([values for part in parts for values in reading.log_probs(lm, part)])
        expected = lm.log_probs(lm.encode(TEXT))
    assert len(read) > 2 * WINDOW
    torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-4)


def test_likelihoods_beside_a_longer_question_are_those_of_the_question_alone() -> None:
    """Padding between a prefix and its question does not count as distance in a layer with a window."""
    lm = base("gemma2")
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(2, 4, 8, generator=generator), torch.randn(2, 4, 8, generator=generator)) for _ in range(2)]
    prompts = asked(lm, Conditioning(prefix_key_values=[pairs] * 3))
    assert len(prompts[1].ids) > WINDOW > len(prompts[0].ids)
    together = answer_and_nll(lm, prompts, GOLDS, Decoding(max_new_tokens=STEPS))
    alone = [answer_and_nll(lm, [p], [g], Decoding(max_new_tokens=STEPS)) for p, g in zip(prompts, GOLDS, strict=True)]
    assert together[0] == [text for (text,), _ in alone]
    assert together[1] == pytest.approx([nll for _, (nll,) in alone], abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_leaves_the_verdicts_as_they_are(dtype: str) -> None:
    for architecture in ("llama", "gemma2", "mamba2"):
        abilities = BaseModel(tiny_model(architecture), fixtures.base_model().tokenizer, dtype=dtype).abilities
        assert abilities == base(architecture).abilities


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_a_model_that_sees_later_tokens_is_refused(architecture: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fixtures.base_model().tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes["initializer_range"] = 0.2  # else a random model hardly looks at other tokens
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **sizes))
    with pytest.raises(BenchError, match="not a causal language model"):
        _ = BaseModel(model, tokenizer).abilities


def test_the_probe_leaves_the_model_and_the_generator_as_they_are() -> None:
    lm = tiny_base("llama")
    weights, state = lm.weights_hash(), torch.get_rng_state()
    assert lm.abilities == Abilities(*[True] * 6)
    assert lm.weights_hash() == weights and torch.equal(torch.get_rng_state(), state)
    assert not lm.model.training and all(p.grad is None for p in lm.model.parameters())
