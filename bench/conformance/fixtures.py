"""What the conformance suite runs on: a tiny base model, and short streams that never repeat."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from bench.contract.meta_training import MetaTrained
from bench.contract.method import Method
from bench.data.documents import Document, Entry, Episode, GoldQuestion, Question, document_id
from bench.errors import BenchError
from bench.harness.loop import construct, fit
from bench.lm.base_model import DTYPES, BaseModel

HIDDEN, LAYERS, HEADS, WINDOW = 32, 2, 2, 256
LENGTH = 6
"""Documents in a stream."""
SEED = 7
_SHIPS = ("Aldora", "Brisk", "Corvane", "Dunmere", "Estrel", "Fenwick", "Galdan", "Hesper")
_PORTS = ("Corvale", "Brunsk", "Tarmouth", "Ostavia", "Quillby", "Norhaven", "Pellan")
_KEPT = 24
"""The first so many documents are in no stream: the tokenizer and offline learning are made from them."""
_rounds = itertools.count(_KEPT)


class Violation(Exception):
    """The method breaks the contract: the message says how, and what to do about it."""


class Skip(Exception):
    """The method cannot be tried here, for the reason that it gives itself."""


def require(condition: object, message: str) -> None:
    """Raise the message as a violation unless the condition holds."""
    if not condition:
        raise Violation(message)


def entries(count: int = LENGTH) -> tuple[Entry, ...]:
    """A stream whose documents no call has made before: what a method kept from another one is of no use on it."""
    return tuple(_entry(next(_rounds)) for _ in range(count))


def _entry(k: int) -> Entry:
    ship, port, year = _SHIPS[k % len(_SHIPS)], _PORTS[k % len(_PORTS)], 1700 + k * 37 % 300
    text = f"Ferry {k}, the {ship}, sails from {port}. It was launched in {year} and carries {100 + k} passengers."
    document = Document(document_id(text), text, ship, f"{year}-01-01")
    questions = (("port", f"Where does ferry {k} sail from?", port), ("year", "When was it launched?", str(year)))
    golds = (
        GoldQuestion(Question(f"{document.id}-{key}", asked), (answer, f"the answer is {answer}"))
        for key, asked, answer in questions
    )
    return Entry(document, tuple(golds), group=ship)


def documents(given: Sequence[Entry]) -> tuple[Document, ...]:
    """The documents of the entries."""
    return tuple(entry.document for entry in given)


@functools.cache
def _template() -> tuple[Any, Any]:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    kept = [_entry(k) for k in range(_KEPT)]
    words = [text for entry in kept for text in (entry.document.text, entry.questions[0].question.text)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(words, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=end, bos_token=end)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=WINDOW,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:  # far from uniform, so that every change of a prompt shows in the answers
                parameter.mul_(8)
    return model, tokenizer


def base_model(dtype: str = "float32") -> BaseModel:
    """The same tiny Llama with random weights at every call, and a byte-level tokenizer."""
    model, tokenizer = copy.deepcopy(_template())
    return BaseModel(model.to(DTYPES[dtype]), tokenizer)


def prepare(kind: type[Method], dtype: str = "float32") -> Method:
    """A fresh instance on a fresh base, fitted if it learns offline.

    Raises:
        Skip: the method refuses with a request to the user (a package that is not installed, say).
    """
    try:
        method = _construct(kind, dtype)
        if isinstance(method, MetaTrained):
            method.learner.load_state_dict(_learned(type(method), dtype))
        elif kind.fit is not Method.fit:
            fit(method, _episodes())
    except BenchError as error:
        raise Skip(str(error)) from error
    return method


def _construct(kind: type[Method], dtype: str) -> Method:
    config: Any = kind.Config()
    if issubclass(kind, MetaTrained):
        config = config.model_copy(update={"training": config.training.brief()})
    return construct(kind, base_model(dtype), config, SEED)


@functools.cache
def _learned(kind: type[MetaTrained], dtype: str) -> dict[str, Any]:
    """What a method that is meta-trained once for all runs learns here."""
    method = _construct(kind, dtype)
    assert isinstance(method, MetaTrained)
    fit(method, _episodes())
    state: dict[str, Any] = method.learner.state_dict()
    return state


def _episodes() -> list[Episode]:
    return [_episode(_entry(k)) for k in range(LENGTH)]


def _episode(entry: Entry) -> Episode:
    golds = entry.questions
    return Episode(entry.document, tuple(gold.question for gold in golds), tuple(gold.answers for gold in golds))
