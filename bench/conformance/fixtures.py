"""Inputs of the conformance suite: a tiny base model, and short streams that never repeat."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from bench.contract.meta_training import MetaTrained
from bench.contract.method import Method
from bench.data.documents import Document, Entry, Episode, GoldQuestion, Question, document_id, episodes
from bench.errors import BenchError
from bench.harness.integrity import Fingerprint
from bench.harness.loop import construct, fit
from bench.lm.base_model import BaseModel
from bench.lm.probe import Abilities

HIDDEN, LAYERS, HEADS, WINDOW = 32, 2, 2, 256
LENGTH = 6
"""Documents in a stream."""
LONG = 18
"""Documents in a stream that shows what happens every n documents, for n up to 16."""
SEED = 7
_SHIPS = ("Aldora", "Brisk", "Corvane", "Dunmere", "Estrel", "Fenwick", "Galdan", "Hesper")
_PORTS = ("Corvale", "Brunsk", "Tarmouth", "Ostavia", "Quillby", "Norhaven", "Pellan")
_RESERVED = 24
"""Number of documents reserved for the tokenizer and offline learning; no stream contains them."""
_numbers = itertools.count(_RESERVED)
_stems = map("".join, itertools.product("bcdfghjklm", repeat=4))


class Violation(Exception):
    """The method breaks the contract. The message says how, and gives the remedy."""


class Skip(Exception):
    """The method cannot run here, for the reason in its own message."""


def require(condition: object, message: str) -> None:
    """Raise :class:`Violation` with the message unless the condition holds."""
    if not condition:
        raise Violation(message)


def entries(count: int = LENGTH) -> tuple[Entry, ...]:
    """A stream of new documents at every call: what a method keeps from an earlier stream does not help on it."""
    return tuple(_entry(next(_numbers)) for _ in range(count))


def _entry(k: int) -> Entry:
    ship, port, year = _SHIPS[k % len(_SHIPS)], _PORTS[k % len(_PORTS)], 1700 + k * 37 % 300
    text = f"Ferry {k}, the {ship}, sails from {port}. It was launched in {year} and carries {100 + k} passengers."
    document = Document(document_id(text), text, ship, f"{year}-01-01")
    questions = (("port", f"Where does ferry {k} sail from?", port), ("year", "When was it launched?", str(year)))
    golds = (
        GoldQuestion(Question(f"{document.id}-{key}", wording), (answer, f"the answer is {answer}"))
        for key, wording, answer in questions
    )
    return Entry(document, tuple(golds), group=ship)


def marked_entries() -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """A stream of new documents, and the words by which it can be recognised.

    A document's title, the beginning and the end of its text, and its questions have one of these words, which occurs
    nowhere else.
    """
    stem = next(_stems)
    marks = tuple(f"Xyloqu{letter}g{stem}" for letter in "aeiouy")
    return tuple(_marked(entry, mark) for entry, mark in zip(entries(), marks, strict=True)), marks


def _marked(entry: Entry, mark: str) -> Entry:
    document = Document(entry.document.id, f"{mark}: {entry.document.text} Her captain is {mark}.", mark)
    golds = (
        dataclasses.replace(gold, question=Question(gold.question.id, f"{mark} asks: {gold.question.text}"))
        for gold in entry.questions
    )
    return dataclasses.replace(entry, document=document, questions=tuple(golds))


def documents(stream: Sequence[Entry]) -> tuple[Document, ...]:
    """The documents of a stream."""
    return tuple(entry.document for entry in stream)


@functools.cache
def _template() -> tuple[Any, Any]:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    reserved = [_entry(k) for k in range(_RESERVED)]
    texts = [text for entry in reserved for text in (entry.document.text, entry.questions[0].question.text)]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
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
            if parameter.ndim > 1:  # far from equal logits: a change of the prompt must change the answers
                parameter.mul_(8)
    return model, tokenizer


def base_model(dtype: str = "float32") -> BaseModel:
    """A tiny Llama with random weights, the same at every call, and a byte-level tokenizer."""
    lm = BaseModel(*copy.deepcopy(_template()), dtype=dtype)
    vars(lm)["abilities"] = _abilities()
    return lm


@functools.cache
def _abilities() -> Abilities:
    """The abilities of all copies of the template, which take long to try."""
    return BaseModel(*copy.deepcopy(_template())).abilities


@functools.cache
def first_fingerprint() -> tuple[BaseModel, Fingerprint]:
    """A base that no method gets, and the fingerprint taken at the first call, before a method is imported."""
    lm = base_model()
    return lm, Fingerprint(lm)


def prepare(kind: type[Method], dtype: str = "float32", lm: BaseModel | None = None) -> Method:
    """A fresh instance on this base (by default a fresh one), fitted if it learns offline.

    Raises:
        Skip: the method refuses to run with a request to the user, such as to install a package.
    """
    try:
        method = _construct(kind, lm or base_model(dtype))
        if isinstance(method, MetaTrained):
            method.learner.load_state_dict(learner(type(method), dtype))
        elif kind.learns_offline(method.config):
            fit(method, _episodes())
    except BenchError as error:
        raise Skip(str(error)) from error
    return method


def _construct(kind: type[Method], lm: BaseModel) -> Method:
    config: Any = kind.Config()
    if issubclass(kind, MetaTrained):
        config = config.model_copy(update={"training": config.training.brief()})
    return construct(kind, lm, config, SEED)


@functools.cache
def learner(kind: type[MetaTrained], dtype: str) -> dict[str, Any]:
    """The learner's state after meta-training, which is done once for all checks."""
    return train_learner(kind, dtype)


def train_learner(kind: type[MetaTrained], dtype: str) -> dict[str, Any]:
    """The learner's state after a short meta-training, which must leave the base as it was."""
    lm = base_model(dtype)
    method = _construct(kind, lm)
    assert isinstance(method, MetaTrained)
    fit(method, _episodes())
    require(not lm.changed_bytes(), "Meta-training changed the base: outer_step and validate must leave it as it was.")
    state: dict[str, Any] = method.learner.state_dict()
    return state


def _episodes() -> list[Episode]:
    return episodes([_entry(k) for k in range(LENGTH)])
