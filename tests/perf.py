"""Throughput of the harness against bare loops that do the same work, measured in one process: ``make perf``.

Prints ratios, which hold better than seconds on a busy machine; each is the median over repetitions taken in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from bench import models, recipe, registry, streams
from bench.answering import answer, prompts
from bench.base_model import BaseModel
from bench.decoding import Decoding
from bench.harness import Loop
from bench.method import Conditioning
from bench.stream import Stream

REPEATS = 5
DOCUMENTS = 100
QUESTIONS = 96
RATE = 1e-4


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of both, and the median over pairs of theirs / ours (above 1: ours is faster)."""
    ours(), theirs()  # warm-up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(REPEATS)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def uniform_through_the_harness(lm: BaseModel, stream: Stream) -> None:
    """Documents per second of ``uniform`` in the harness against the same Adam steps in a bare PyTorch loop."""
    kind = registry.load_method("uniform")
    documents = [entry.document for entry in stream.entries[:DOCUMENTS]]

    def harness() -> None:
        Loop(kind(lm, kind.Config(learning_rate=RATE)), (), documents, scoring=False).run()

    def bare() -> None:
        lm.restore()
        optimizer = torch.optim.Adam(lm.model.parameters(), lr=RATE)
        for document in documents:
            ids = lm.tokenizer(f"{lm.tokenizer.bos_token}{document.text}", return_tensors="pt")["input_ids"]
            optimizer.zero_grad()
            cross_entropy(lm.model(input_ids=ids[:, :-1]).logits[0], ids[0, 1:]).backward()
            optimizer.step()

    ours, theirs, ratio = in_turn(harness, bare)
    print(f"uniform through the harness   {DOCUMENTS / ours:8.1f} documents/s")
    print(f"the same steps in a bare loop {DOCUMENTS / theirs:8.1f} documents/s   ratio {ratio:.2f} (goal 0.9)")


def batched_answering(lm: BaseModel, stream: Stream) -> None:
    """Questions per second of batched answering against ``generate`` on one question at a time."""
    lm.restore()
    questions = [gold.question for entry in stream.entries for gold in entry.questions][:QUESTIONS]
    stops = sorted(lm.newline_ids | {lm.eos_id})

    def ours() -> None:
        answer(lm, prompts(lm, questions, Conditioning(), 16), Decoding())

    def one_by_one() -> None:
        for question in questions:
            ids = lm.tokenizer(f"{lm.tokenizer.bos_token}{question.text}", return_tensors="pt")
            lm.model.generate(**ids, max_new_tokens=16, do_sample=False, eos_token_id=stops, pad_token_id=lm.eos_id)

    batched, single, ratio = in_turn(ours, one_by_one)
    print(f"batched answering             {QUESTIONS / batched:8.1f} questions/s")
    print(f"generate, one by one          {QUESTIONS / single:8.1f} questions/s   ratio {ratio:.2f} (goal 5)")


def main() -> None:
    lm = BaseModel.load(str(models.locate("nano")))
    stream = streams.load(recipe.find("newsworld"), "test", 200, 0, {})
    print(f"{torch.get_num_threads()} threads, {lm.device.type}, nano, medians of {REPEATS}")
    uniform_through_the_harness(lm, stream)
    batched_answering(lm, stream)


if __name__ == "__main__":
    main()
