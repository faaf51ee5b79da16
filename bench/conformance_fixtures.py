"""What the conformance suite runs on: a tiny base model, short streams that never repeat, and a loop that takes notes."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.base_model import DTYPES, BaseModel
from bench.errors import BenchError
from bench.harness import Loop
from bench.method import Method
from bench.stream import Document, Entry, Episode, GoldQuestion, Question, document_id

HIDDEN, LAYERS, HEADS, WINDOW = 32, 2, 2, 256
LENGTH = 6
"""Documents in a stream; half of them are seen at the first probe."""
PROBES = (0.5, 1.0)
SEED = 7
_SHIPS = ("Aldora", "Brisk", "Corvane", "Dunmere", "Estrel", "Fenwick", "Galdan", "Hesper")
_PORTS = ("Corvale", "Brunsk", "Tarmouth", "Ostavia", "Quillby", "Norhaven", "Pellan")
_rounds = itertools.count(1)

State = dict[str, Tensor]


class Violation(Exception):
    """The method breaks the contract: the message says how, and what to do about it."""


class Skip(Exception):
    """The method cannot be tried here, for the reason that it gives itself."""


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

    words = [
        text for entry in map(_entry, range(24)) for text in (entry.document.text, entry.questions[0].question.text)
    ]
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
    torch.manual_seed(next(_rounds))  # whoever leans on the global generator is not reproducible
    try:
        method = kind(base_model(dtype), kind.Config(), SEED)
        if kind.fit is not Method.fit:
            method.fit([Episode(e.document, *_questions(e)) for e in entries()])
    except BenchError as error:
        raise Skip(str(error)) from error
    return method


def _questions(entry: Entry) -> tuple[tuple[Question, ...], tuple[tuple[str, ...], ...]]:
    return tuple(g.question for g in entry.questions), tuple(g.answers for g in entry.questions)


def snapshot(method: Method) -> State:
    """A copy of the method's state.

    Raises:
        Violation: it holds something other than tensors by name.
    """
    state = {}
    for name, value in method.state_dict().items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise Violation(
                f"state_dict holds {name!r}, a {type(value).__name__}, which cannot be saved. Return tensors only."
            )
        state[name] = value.detach().contiguous().clone()
    return state


def state_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is in one state only, or is not bit for bit the same in both."""
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name]):
            return name
    return None


class WatchedLoop(Loop):
    """The harness's own loop; it keeps the method's state after every document.

    It adds nothing between the harness and the method, so that what is checked is what a board runs.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states: dict[int, State] = {}

    def step(self, position: int, document: Document) -> None:
        """One document, as the harness does it."""
        super().step(position, document)
        self.states[position] = snapshot(self.method)

    def history(self, seen: int = LENGTH, likelihoods: bool = True) -> dict[str, Any]:
        """Everything that happened until ``seen`` documents had been observed, under words that say what it is."""
        told: dict[str, Any] = {}
        for event in self.document_events:
            if event.position < seen:
                told[f"the score of document {event.position}, segment {event.segment}"] = event.nll
        told.update({f"the state after document {k}": self.states[k] for k in self.states if k < seen})
        for answer in self.answer_events:
            if round(answer.probe * len(self.documents)) <= seen:
                what = f"the answer to question {answer.question_id} at {answer.probe:.0%} of the stream"
                told[what] = (answer.prediction, answer.cut_tokens, answer.nll if likelihoods else None)
        return told


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """What differs first between two histories, among what both tell."""
    for what in a:
        if what in b:
            if isinstance(a[what], dict):
                tensor = state_difference(a[what], b[what])
                if tensor is not None:
                    return f"{what} (tensor {tensor})"
            elif a[what] != b[what]:
                return what
    return None


def loop(method: Method, given: Sequence[Entry], kind: type[WatchedLoop] = WatchedLoop, **options: Any) -> WatchedLoop:
    """A loop of the method over the entries, not yet run; what it does to them stays with the loop."""
    given = copy.deepcopy(given)
    return kind(method, given, documents(given), seed=SEED, **{"probes": PROBES, **options})


def run(method: Method, given: Sequence[Entry], kind: type[WatchedLoop] = WatchedLoop, **options: Any) -> WatchedLoop:
    """The loop after one pass of the method over the entries."""
    made = loop(method, given, kind, **options)
    made.run()
    return made
