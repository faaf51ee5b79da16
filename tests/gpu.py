"""What methods take on a GPU, on random bases of the papers' shapes: ``python -m tests.gpu``.

Prints documents and questions per second, the share of this card's own matrix-product rate that is reached, and peak
memory; and whether records of the embedded model on the GPU agree with those on the CPU. Without a GPU, or with
``--tiny``, shapes are tiny, which shows that the script runs and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bench.answering.answers import answer
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.contract import registry
from bench.contract.method import Method
from bench.data import recipe, streams
from bench.data.documents import Document, Entry, Question
from bench.errors import BenchError
from bench.harness.loop import Loop
from bench.help import shapes
from bench.help.shapes import PRODUCT_SIZE, matrix_rate
from bench.lm import placement
from bench.lm.base_model import BaseModel
from bench.lm.flops import FlopCounter
from bench.lm.precision import DTYPES
from bench.machine import release_gpu_memory
from bench.paths import MODELS

DOCUMENTS, QUESTIONS = 20, 48
TOLERANCE = 1e-4
"""Nats a token by which scores of the embedded model may differ between GPU and CPU."""
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "GPT-2 XL": shapes.SHAPES["gpt2-xl"],
    "Llama-2-7B": {**shapes.SHAPES["meta-llama/Llama-2-7b-hf"], "max_position_embeddings": 4096},
}
TINY: Mapping[str, Mapping[str, Any]] = {
    "tiny GPT-2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 8192},
    "tiny Llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 8192,
        "max_position_embeddings": 512,
    },
}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"optimizer": "adamw"},
    "lora": {"optimizer": "adamw"},
    "camels": {"optimizer": "adamw"},
    "generative_adapter": {"preset": "reference"},
    "cmt": {"preset": "paper"},
}
"""Settings of each method: those of the papers, but that a copy of the base weighs tokens for ``camels``. What is
trained offline stays random, since that does not change what it takes."""


def base(shape: Mapping[str, Any], device: str, dtype: str) -> BaseModel:
    """A random model of a shape, with the tokenizer of the embedded one."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "nano")
    with torch.device(device):
        ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ids, **shape))
    return BaseModel(model, tokenizer, device, dtype)


def seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of some work, until the device has finished it."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def measure(name: str, lm: BaseModel, entries: Sequence[Entry], device: str, peak: float) -> str:
    """A row of the table: what a method takes on a base."""
    kind = registry.load_method(name)
    method: Method = kind(lm, kind.Config(**METHODS[name]))
    documents = [entry.document for entry in entries]
    questions = [gold.question for entry in entries for gold in entry.questions][:QUESTIONS]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    method.reset()
    try:
        with FlopCounter() as counter:  # the first pass also warms up
            _observe(method, documents)
        method.reset()
        observing = seconds(lambda: _observe(method, documents), device)
        answering = seconds(lambda: _answer(lm, method, questions), device)
    finally:
        method.reset()
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device == "cuda" else "-"
    share, rate = counter.flops / observing / peak, len(documents) / observing
    return f"{name} | {rate:.2f} | {100 * share:.0f} % | {len(questions) / answering:.1f} | {memory}"


def _observe(method: Method, documents: Sequence[Document]) -> None:
    for document in documents:
        method.observe(document)


def _answer(lm: BaseModel, method: Method, questions: Sequence[Question]) -> None:
    answer(lm, build_prompts(lm, questions, method.condition(questions), 16), Decoding())


def agreement(entries: Sequence[Entry], device: str) -> Iterator[str]:
    """Whether the embedded model gives the same scores on the GPU as on the CPU, in all ways in which it can be there.

    Without a GPU that is one: a half of its layers is offloaded, to the disk.
    """
    ways: dict[str, tuple[str, Any]] = {"with half of its layers offloaded": ("closed_book", "cpu")}
    if device == "cpu":
        ways = {"with half of its layers on the disk": ("closed_book", "disk")}
    else:
        ways["on the GPU"] = ("uniform", None)
    if torch.cuda.device_count() > 1:
        ways["on two GPUs"] = ("uniform", 1)
    for way, (method, half) in ways.items():
        one, other = scores(method, entries, "cpu", None), scores(method, entries, device, half)
        gap = abs(one.token_nll - other.token_nll)
        here, there = (f"{summary.token_nll:.6f} nats a token and F1 {summary.f1:.4f}" for summary in (one, other))
        verdict = "as they should" if gap < TOLERANCE else "TOO FAR APART"
        yield f"nano, {method}: {here} on the CPU, {there} {way}: {verdict}"


def scores(method: str, entries: Sequence[Entry], device: str, half: Any) -> Any:
    """The scores of a method on the embedded model, on one device or with the second half of its layers elsewhere."""
    first: Any = 0 if device == "cuda" else "cpu"
    ends = {"model.embed_tokens": first, "model.rotary_emb": first, "model.norm": half, "lm_head": half}
    parts = ends | {f"model.layers.{i}": first if i < 2 else half for i in range(4)}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if half is not None:
            patch.setattr(placement, "options", lambda *_: {"device_map": parts, "offload_folder": folder})
        lm = BaseModel.load(str(MODELS / "nano"), device)
        kind = registry.load_method(method)
        config = kind.Config(**({"learning_rate": 1e-4} if method == "uniform" else {}))
        loop = Loop(kind(lm, config), entries, [entry.document for entry in entries])
        loop.run()
    return loop.summary()


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, as without a GPU")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = options.tiny or device == "cpu"
    dtype = "float32" if device == "cpu" else "bfloat16"
    stream = streams.load(recipe.find("newsworld"), "test", 100, 0, {})
    peak = matrix_rate(device, DTYPES[dtype], 512 if tiny else PRODUCT_SIZE[device])
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, {dtype}, matrix products at {peak / 1e12:.2f} TFLOP/s")
    for title, shape in (TINY if tiny else SHAPES).items():
        print(f"\n{title}\nmethod | documents/s | of the ceiling | questions/s | GB")
        lm = base(shape, device, dtype)
        for method in METHODS:
            try:
                print(measure(method, lm, stream.entries[: 2 if tiny else DOCUMENTS], device, peak), flush=True)
            except (BenchError, torch.cuda.OutOfMemoryError) as error:
                print(f"{method} | {str(error).splitlines()[0]}", flush=True)
        del lm
        release_gpu_memory()  # its wrapped functions refer to it
    print()
    for line in agreement(stream.entries[: 2 if tiny else DOCUMENTS], device):
        print(line, flush=True)


if __name__ == "__main__":
    main()
