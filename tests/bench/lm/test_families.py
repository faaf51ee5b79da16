"""Families of base models: a tiny checkpoint of each, in its own format, runs every kind of method."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.answering.answers import answer, answer_nll
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.conformance import fixtures, suite
from bench.contract import registry
from bench.contract.method import Conditioning
from bench.harness.loop import Loop
from bench.lm.base_model import BaseModel
from tests.tiny_models import CONFIGS, tiny_model

_SIZES = CONFIGS["llama"]
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": CONFIGS["gpt2"],
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 24,
        "max_position_embeddings": 256,
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "llama": {**_SIZES, "tie_word_embeddings": False},
    "smollm2": {**_SIZES, "tie_word_embeddings": True},
    "mistral": CONFIGS["mistral"],
    "qwen2": {**_SIZES, "tie_word_embeddings": True},
    "qwen3": {**_SIZES, "head_dim": 8},
    "opt": CONFIGS["opt"],
    "gemma": {**_SIZES, "head_dim": 8},
    "gemma2": CONFIGS["gemma2"],
    "gemma3_text": CONFIGS["gemma3_text"],
}
"""Learned positions and rotary ones, tied and untied embeddings, with and without sliding windows."""
FORMATS = {"smollm2": "llama"}
"""Format of the checkpoints of a family that has another one's."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "closed_book": {},
    "uniform": {},
    "lora": {},
    "camels": {"training": {"weigher_blocks": 1, "learn": "top_1"}},
    "dynamic_evaluation": {},
    "generative_adapter": {"training": {"blocks": [0], "inner": 8, "rank": 4}},
    "cmt": {
        "training": {"memory_tokens": 2, "compressor_blocks": 1, "aggregator_blocks": 1, "heads": 2, "head_width": 8}
    },
    "mac": {
        "training": {"shared": True, "encoder_heads": 2, "encoder_hidden": 32, "tokens": 2, "heads": 2, "head_width": 8}
    },
}


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    return checkpoint(request.param, tmp_path)


def checkpoint(family: str, folder: Path) -> BaseModel:
    """A checkpoint of a family, saved and read again."""
    tiny_model(FORMATS.get(family, family), **FAMILIES[family]).save_pretrained(folder)
    fixtures.base_model().tokenizer.save_pretrained(folder)
    return BaseModel.load(str(folder))


def test_a_checkpoint_of_the_family_runs_every_kind_of_method(base: BaseModel) -> None:
    entries = fixtures.entries(3)
    documents = [entry.document for entry in entries]
    checkpointing = {"gradient_checkpointing": True}
    losses: dict[str, float | None] = {}
    for name, config in [*METHODS.items(), ("uniform", checkpointing), ("lora", checkpointing)]:
        kind = registry.load_method(name)
        loop = Loop(kind(base, kind.Config(**config)), entries, documents)
        loop.run()
        summary = loop.summary()
        assert summary.questions == sum(len(entry.questions) for entry in entries) and summary.token_nll is not None
        assert losses.setdefault(name, summary.token_nll) == summary.token_nll, "gradient checkpointing changes nothing"
        learns = name in ("uniform", "lora", "camels", "dynamic_evaluation")  # untrained generators and banks do not
        assert (summary.token_nll != losses["closed_book"]) == learns, name
        loop.method.reset()
        base.restore()


def pairs() -> list[tuple[str, str]]:
    """Two methods for each family, so that each method meets several families; all pairs would take ten minutes."""
    names = list(METHODS)
    return [(family, names[k % len(names)]) for i, family in enumerate(FAMILIES) for k in (i, i + 3)]


@pytest.mark.parametrize(("family", "name"), pairs())
def test_methods_keep_the_contract_on_a_checkpoint_of_the_family(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(family, tmp_path)
    monkeypatch.setattr(fixtures, "_template", lambda: (base.model, base.tokenizer))
    for made_from_it in (fixtures._abilities, fixtures.first_fingerprint, fixtures.learner):
        monkeypatch.setattr(fixtures, made_from_it.__name__, functools.cache(made_from_it.__wrapped__))
    (info,) = (info for info in registry.list_methods() if info.name == name)
    verdicts = list(suite.check_method(info))
    assert [verdict.line() for verdict in verdicts if verdict.skipped or not verdict.passed] == []
    assert len(verdicts) == len(suite.NAMES)


def test_the_local_layers_of_gpt_neo_read_no_padding_beyond_the_window(tmp_path: Path) -> None:
    tiny_model("gpt_neo", **FAMILIES["gpt_neo"]).save_pretrained(tmp_path)
    fixtures.base_model().tokenizer.save_pretrained(tmp_path)
    base = BaseModel.load(str(tmp_path))
    assert not base.abilities.padding_after_prefixes, "it would count as distance"
    questions = [gold.question for entry in fixtures.entries(3) for gold in entry.questions][:2]
    texts = ["fact " * base.window, ""]
    prompts = build_prompts(base, questions, Conditioning(text=texts), 8)
    golds = ["x", " ".join(["longer"] * 8)]
    together = answer_nll(base, prompts, golds)
    assert together == [
        nll for pair in zip(prompts, golds, strict=True) for nll in answer_nll(base, [pair[0]], [pair[1]])
    ]
    assert all(together)


def test_batched_answers_are_those_of_one_question_at_a_time(base: BaseModel) -> None:
    entries = fixtures.entries(3)
    questions = [gold.question for entry in entries for gold in entry.questions]
    given = {"text": Conditioning(text=[entry.document.text for entry in entries for _ in entry.questions])}
    for name in ("cmt", "mac"):  # soft prompts, and keys and values of every layer
        kind = registry.load_method(name)
        method = kind(base, kind.Config(**METHODS[name]))
        method.reset()
        for entry in entries:
            method.observe(entry.document)
        given[name] = method.condition(questions)
    for name, conditioning in given.items():
        prompts = build_prompts(base, questions, conditioning, 8)
        together = answer(base, prompts, Decoding(max_new_tokens=8))
        alone = [one for prompt in prompts for one in answer(base, [prompt], Decoding(max_new_tokens=8))]
        assert together == alone, name
