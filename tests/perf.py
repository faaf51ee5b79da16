"""Throughput of the harness and of bare loops that do the same work, measured in one process: ``make perf``.

``make perf BASE=smollm2`` measures on another base what depends on its size. Prints ratios, which depend less on the
load of the machine than seconds do. Each is the median over repetitions, in which the two loops take turns. What the
command ``list`` takes of the processor is printed too.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from bench import paths
from bench.answering.answers import answer
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.contract import registry
from bench.contract.method import Conditioning, Method
from bench.data import recipe, streams
from bench.data.documents import Document, Episode, Question, Stream, episodes
from bench.harness.ledger import state_bytes
from bench.harness.loop import Loop
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.records.store import read_run
from bench.run import experiment
from bench.run.runner import Runner
from bench.run.workers import Workers
from methods.parts.inner_loop import twice_differentiable
from methods.parts.memory_bank import MemoryMethod

REPEATS = 5
DOCUMENTS = 100
QUESTIONS = 96
UNROLL = 6
RATE = 1e-4


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(
    ours: Callable[[], object], baseline: Callable[[], object], repeats: int = REPEATS
) -> tuple[float, float, float]:
    """Median seconds of both, and the median over pairs of baseline / ours (above 1: ours is faster)."""
    ours(), baseline()  # warm-up
    pairs = [(seconds(ours), seconds(baseline)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def uniform_through_the_harness(lm: BaseModel, stream: Stream) -> None:
    """Documents per second of ``uniform`` in the harness, and of the same Adam steps in a bare PyTorch loop."""
    kind = registry.load_method("uniform")
    documents = [entry.document for entry in stream.entries[:DOCUMENTS]]

    def harness() -> None:
        Loop(kind(lm, kind.Config(learning_rate=RATE)), (), documents, scoring=False).run()

    def bare() -> None:
        lm.restore()
        optimizer = torch.optim.Adam(lm.model.parameters(), lr=RATE, fused=True)
        for document in documents:
            ids = lm.tokenizer(f"{lm.tokenizer.bos_token}{document.text}", return_tensors="pt")["input_ids"]
            optimizer.zero_grad()
            cross_entropy(lm.model(input_ids=ids[:, :-1]).logits[0], ids[0, 1:]).backward()
            optimizer.step()

    ours, baseline, ratio = compare(harness, bare)
    print(f"uniform through the harness   {DOCUMENTS / ours:8.1f} documents/s")
    print(f"the same steps in a bare loop {DOCUMENTS / baseline:8.1f} documents/s   ratio {ratio:.2f} (goal 0.9)")


def batched_answering(lm: BaseModel, stream: Stream) -> None:
    """Questions per second of batched answering, and of ``generate`` on one question at a time."""
    lm.restore()
    questions = [gold.question for entry in stream.entries for gold in entry.questions][:QUESTIONS]
    stops = sorted(lm.newline_ids | {lm.eos_id})

    def ours() -> None:
        answer(lm, build_prompts(lm, questions, Conditioning(), 16), Decoding())

    def one_by_one() -> None:
        for question in questions:
            ids = lm.tokenizer(f"{lm.tokenizer.bos_token}{question.text}", return_tensors="pt")
            lm.model.generate(**ids, max_new_tokens=16, do_sample=False, eos_token_id=stops, pad_token_id=lm.eos_id)

    batched, single, ratio = compare(ours, one_by_one)
    print(f"batched answering             {QUESTIONS / batched:8.1f} questions/s")
    print(f"generate, one by one          {QUESTIONS / single:8.1f} questions/s   ratio {ratio:.2f} (goal 5)")


def answering_with_documents(lm: BaseModel, stream: Stream) -> None:
    """Questions per second with the document in the prompt, and of ``generate`` in batches of its best size.

    Both write at most 16 tokens and end at the same ones. Texts are tokenised before. Rows that are padded to another
    length are rounded differently, so in 16 bits some answers differ from those asked one by one: how many is printed.
    """
    lm.restore()
    pairs = [(entry.document.text, gold.question) for entry in stream.entries for gold in entry.questions]
    texts, questions = zip(*pairs[: QUESTIONS // 3], strict=True)
    prompts = build_prompts(lm, questions, Conditioning(text=texts), 16)
    rows = sorted((prompt.ids.flip(0) for prompt in prompts), key=len, reverse=True)

    def generate(size: int) -> None:
        with lm.inference():
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                ids = pad_sequence(batch, batch_first=True, padding_value=lm.eos_id).flip(1)
                mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True).flip(1)
                lm.model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=16,
                    do_sample=False,
                    eos_token_id=sorted(lm.stop_ids),
                    pad_token_id=lm.eos_id,
                )

    best = min((8, 16, 32), key=lambda size: seconds(lambda: generate(size)))
    ours, theirs, ratio = compare(lambda: answer(lm, prompts, Decoding()), lambda: generate(best), repeats=3)
    print(f"answering with documents      {len(rows) / ours:8.2f} questions/s")
    print(f"generate, {best:>2} at a time        {len(rows) / theirs:8.2f} questions/s   ratio {ratio:.2f} (goal 1)")
    together = answer(lm, prompts, Decoding())
    differing = sum(
        answer(lm, [prompt], Decoding()) != [other] for prompt, other in zip(prompts, together, strict=True)
    )
    print(f"answers that differ when asked one by one: {differing} of {len(prompts)} ({lm.dtype})")


def kept_casts(lm: BaseModel, stream: Stream) -> None:
    """Documents per second that a base in bfloat16 scores, and with all weights cast anew for each document."""
    lm.restore()
    documents = [entry.document for entry in stream.entries[: DOCUMENTS // 5]]

    def score(cast_anew: bool) -> None:
        for document in documents:
            if cast_anew:
                for parameter in lm.model.parameters():
                    _ = parameter.data  # may be written to, for all that the base knows
            lm.loss(document)

    with torch.no_grad():
        kept, anew, ratio = compare(lambda: score(False), lambda: score(True), repeats=3)
    print(f"scoring in bfloat16           {len(documents) / kept:8.2f} documents/s")
    print(f"weights cast for each         {len(documents) / anew:8.2f} documents/s   ratio {ratio:.2f}")


def meta_training(lm: BaseModel, stream: Stream) -> None:
    """One micro-step of camels, and the same gradient with every text padded and with the authors' logging passes.

    Their code pads documents to 1,024 tokens and questions to 128. Per micro-step it runs three more forward passes
    that only serve the log, two of them over all documents.
    """
    lm.restore()
    kind = registry.load_method("camels")
    config = kind.Config(training={"inner_rate": 0.1, "episodes_per_step": UNROLL, "reset_every": UNROLL})
    method: Any = kind(lm, config)
    entries = [e for e in stream.entries if 80 <= len(lm.encode(e.document.text)) <= 130][: UNROLL + 1]
    batch = episodes(entries)
    gradients: dict[str, list[Tensor]] = {}

    def recording(name: str, work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            method.weigher.zero_grad(set_to_none=True)
            work()
            gradients[name] = [p.grad for p in method.weigher.parameters() if p.grad is not None]

        return run

    def padded() -> None:
        with twice_differentiable(lm):
            _padded_micro_step(lm, method, batch)

    ours = recording("ours", lambda: method.outer_step(batch[:UNROLL], batch[UNROLL:]))
    fast, slow, ratio = compare(ours, recording("padded", padded), repeats=3)
    for one, other in zip(gradients["ours"], gradients["padded"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item() + 1e-9)
    print(f"meta-training of camels       {UNROLL / fast:8.2f} documents/s")
    print(f"padded, with logging passes   {UNROLL / slow:8.2f} documents/s   ratio {ratio:.1f} (goal 10)")


def _padded_micro_step(lm: BaseModel, method: Any, batch: Sequence[Episode]) -> None:
    """One micro-step of ``outer_step``, written the straightforward way."""
    training = method.config.training

    def rows(texts: Sequence[Tensor], length: int) -> Tensor:
        return torch.stack([pad(ids, (0, length - len(ids)), value=lm.eos_id) for ids in texts])

    def nll(parameters: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        logits = functional_call(lm.model, dict(parameters), (), {"input_ids": ids[:, :-1], "use_cache": False}).logits
        return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")

    batches = [lm.tokens(episode.document) for episode in batch]
    documents = rows([torch.cat([b.context_ids, b.token_ids]) for b in batches], 1024)
    begin, end = torch.tensor([lm.bos_id]), torch.tensor([lm.eos_id])
    sequences, masks = [], []
    for episode in batch[:UNROLL]:
        for question, answers in zip(episode.questions, episode.answers, strict=True):
            head = torch.cat([begin, lm.encode(question.text)])
            ending = torch.cat([lm.encode(" " + min(answers, key=len)), end])
            sequences.append(torch.cat([head, ending]))
            masks.append(pad(torch.ones(len(ending)), (len(head) - 1, 128 - len(head) - len(ending))))
    questions, mask = rows(sequences, 128), torch.stack(masks)
    weights = [method.weigher(row)[1:] for row in documents[:UNROLL]]
    theta: dict[str, Tensor] = {n: p.detach().requires_grad_() for n, p in lm.model.named_parameters()}
    before = theta
    with torch.no_grad():
        nll(before, documents[:UNROLL]), nll(before, questions)
    for i, tokens in enumerate(batches[:UNROLL]):
        unpadded = (torch.arange(1023) < len(tokens)).float()
        loss = (nll(theta, documents[i : i + 1])[0] * weights[i] * unpadded).sum() / len(tokens)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {n: p - training.inner_rate * s for (n, p), s in zip(theta.items(), slopes, strict=True)}
    with torch.no_grad():
        nll(theta, documents[:UNROLL])
    outer = (nll(theta, questions) * mask).sum() / mask.sum()
    other = {"input_ids": documents[UNROLL:], "use_cache": False}
    after = functional_call(lm.model, theta, (), other).logits[0].log_softmax(-1)
    with torch.no_grad():
        reference = functional_call(lm.model, before, (), other).logits[0].log_softmax(-1)
    kl = (reference.exp() * (reference - after)).sum(-1)[: len(batches[UNROLL]) + 1].mean()
    (outer + training.locality * kl).backward(inputs=[p for p in method.weigher.parameters() if p.requires_grad])


def reused_scoring(lm: BaseModel, stream: Stream) -> None:
    """Tokens per second of dynamic_evaluation, and of scoring and training on the same segments in two passes."""
    kind = registry.load_method("dynamic_evaluation")
    text = " ".join(entry.document.text for entry in stream.entries[:15])
    documents = [Document("long", text)]
    size = 128
    tokens = len(lm.encode(text))

    class Twice(kind):  # type: ignore[misc, valid-type]
        learns_from_scoring = False

    def pass_with(method: type[Method]) -> Callable[[], None]:
        config = kind.Config(learning_rate=RATE, segment_tokens=size)
        return lambda: Loop(method(lm, config), (), documents).run()

    once, twice, ratio = compare(pass_with(kind), pass_with(Twice))
    print(f"dynamic evaluation            {tokens / once:8.0f} tokens/s")
    print(f"scored, then trained          {tokens / twice:8.0f} tokens/s      ratio {ratio:.2f} (goal 1.3)")


SIZES = (100, 1_000, 10_000)
MEMORIES = ("generative_adapter", "cmt", "mac", "mbc")


def memories(lm: BaseModel, stream: Stream) -> None:
    """Documents and questions per second of untrained memories, and bytes of their state, by number of documents held.

    Their settings are those of the default board. The first documents are observed. The rest of a large bank is made of
    copies of their entries with a little noise, because the content does not change the time.
    """
    configs = {plan.name: plan.config for plan in experiment.load("default").methods}
    questions = [gold.question for entry in stream.entries for gold in entry.questions][:QUESTIONS]
    documents = [entry.document for entry in stream.entries[:DOCUMENTS]]
    for name in MEMORIES:
        kind = registry.load_method(name)
        method: Any = kind(lm, kind.Config(**configs[name]))
        for size in SIZES:
            method.reset()
            observing = seconds(lambda method=method: [method.observe(document) for document in documents])
            _fill(method, size)
            answering = min(seconds(lambda method=method: _answer(method, questions)) for _ in range(3))
            more = [Document(f"more {i}", f"{document.text} {i}") for i, document in enumerate(documents[:20])]
            held = seconds(lambda method=method, more=more: [method.observe(document) for document in more])
            print(
                f"{name:<20} {size:>6} documents: {DOCUMENTS / observing:6.0f} documents/s into an empty bank, "
                f"{len(more) / held:6.0f} into a full one; {QUESTIONS / answering:7.0f} questions/s; "
                f"{state_bytes(method):>11,} bytes"
            )
        method.reset()


def _answer(method: Any, questions: Sequence[Question]) -> None:
    answer(method.lm, build_prompts(method.lm, questions, method.condition(questions), 16), Decoding())


def _fill(method: Any, size: int) -> None:
    """Fill a bank to ``size`` entries with copies of those that it holds."""
    if isinstance(method, MemoryMethod):
        held = len(method.entries)
        for i in range(held, size):
            method.entries.append((f"filled {i}", f"filled {i}"))
        if hasattr(method, "rows"):
            for first in range(held, size, held):
                rows = method.rows[:held][: size - first]
                method.remember(rows + 0.01 * torch.randn_like(rows))
        else:
            method.counts = method.counts * size // held


def top_k(lm: BaseModel, stream: Stream) -> None:
    """Questions per second of ``cmt`` over 10,000 documents, with the best k or all of them aggregated."""
    plan = next(plan for plan in experiment.load("default").methods if plan.name == "cmt")
    kind = registry.load_method("cmt")
    questions = [gold.question for entry in stream.entries for gold in entry.questions][:16]

    def answer_with(k: int | None) -> Callable[[], object]:
        method: Any = kind(lm, kind.Config(**{**plan.config, "k": k}))
        method.reset()
        for entry in stream.entries[:DOCUMENTS]:
            method.observe(entry.document)
        _fill(method, SIZES[-1])
        return lambda: method.condition(questions)

    k = plan.config["k"]
    best, everything, ratio = compare(answer_with(k), answer_with(None), repeats=3)
    print(f"cmt, the best {k} of 10,000     {len(questions) / best:8.1f} questions/s")
    print(f"cmt, all 10,000               {len(questions) / everything:8.1f} questions/s   ratio {ratio:.1f}")


def listing() -> None:
    """Processor seconds of the command ``list``, which imports no library for models: the fastest of some calls."""

    def spent() -> float:
        before = os.times()
        subprocess.run([sys.executable, str(paths.ROOT / "run_bench.py"), "list"], check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    print(f"the command list              {min(spent() for _ in range(REPEATS)):8.2f} s (goal 0.5)")


def executors() -> None:
    """Cells per minute in the local pool and on Ray, with the same number of workers, and what a cell costs around it.

    That is the time of the workers, from the first start to the last end, beyond the seconds that the cells record.
    """
    plan = experiment.load("default")
    plan.methods = [method for method in plan.methods if method.name in ("closed_book", "uniform")]
    plan.tuning, plan.seeds = None, [0]
    rates = {}
    for kind in ("local", "ray"):
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(plan, Path(folder))
            workers = Workers(kind, threads=1)
            with workers.open(plan, workers.plan(plan, runner.weights)) as executor:
                taken = seconds(lambda runner=runner, executor=executor: runner.run(executor))
            records = [read_run(path.parent) for path in Path(folder).glob("*/run.json")]
            costs = [record.costs for record in records if record.costs is not None]
            inside = sum(c.fit.seconds + c.score.seconds + c.observe.seconds + c.answer.seconds for c in costs)
            rates[kind] = 60 * len(costs) / taken
            around = 1000 * (executor.jobs * taken - inside) / len(costs)
            where = f"{kind} executor, {executor.jobs} workers"
            print(f"{where:<29} {rates[kind]:8.1f} cells/min, and {around:.0f} ms around a cell")
    print(f"ray / local                   ratio {rates['ray'] / rates['local']:.2f} (goal 0.9)")


def main() -> None:
    base = next(iter(sys.argv[1:]), "nano")
    folder = str(checkpoint.locate(base))
    lm = BaseModel.load(folder)
    stream = streams.load(recipe.find("newsworld"), "test", 200, 0, {})
    print(f"{torch.get_num_threads()} threads, {lm.device.type}, {base}, medians of 3 to {REPEATS}")
    answering_with_documents(lm, stream)
    low = BaseModel.load(folder, dtype="bfloat16")
    print("in bfloat16:")
    answering_with_documents(low, stream)
    kept_casts(low, stream)
    if base != "nano":
        return
    uniform_through_the_harness(lm, stream)
    batched_answering(lm, stream)
    meta_training(lm, stream)
    reused_scoring(lm, stream)
    memories(lm, stream)
    top_k(lm, stream)
    listing()
    executors()


if __name__ == "__main__":
    main()
