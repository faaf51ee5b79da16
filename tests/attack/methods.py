"""Faulty methods: whatever one does, the cells of the others get the numbers that they get without it."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import textwrap
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.records.store import read_answers, read_documents, read_run
from bench.run.executor import LocalPool
from bench.run.runner import Runner
from tests.attack.attacks import Try
from tests.conftest import make_checkpoint
from tests.world import make_dataset, make_experiment

FAULTS = {
    "raises": "raise ValueError('no')",
    "raises what cannot be shown": "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "raises 5 MB": "raise ValueError('x' * 5_000_000)",
    "raises half a surrogate": "raise ValueError('\\ud800')",
    "raises an interrupt": "raise KeyboardInterrupt",
    "raises BaseException": "raise BaseException('all the way')",
    "recurses": "(lambda f: f(f))(lambda f: f(f))",
    "exits": "sys.exit(0)",
    "exits at once": "os._exit(0)",
    "kills itself": "os.kill(os.getpid(), 9)",
    "aborts": "os.abort()",
    "is out of memory": "torch.empty(10**15)",
    "patches the scores": "metrics.score = lambda p, a, *r: dict.fromkeys(metrics.ANSWER_SCORES, 1.0)",
    "patches a score": "metrics.token_f1 = lambda p, a, *r: 1.0",
    "patches the answers": "loop.answer_and_nll = lambda lm, prompts, golds, *r: (\n"
    "                [loop.Answer(gold, True) for gold in golds], [0.0] * len(golds))",
    "patches the loop": "loop.Loop.score = lambda self, document: loop.Score(0.0, [])",
    "patches the encoding": "self.lm.encode = lambda text: torch.tensor([1])",
    "patches the forward": "self.lm.model.forward = lambda *a, **k: 1 / 0",
    "patches the softmax": "torch.nn.functional.cross_entropy = lambda *a, **k: torch.zeros(1)",
    "patches the records": "schema.mean = lambda values: 1.0",
    "hooks a layer": "self.lm.model.get_input_embeddings().register_forward_hook(lambda m, i, o: o * 2)",
    "adds a token": "self.lm.tokenizer.add_tokens(['the', 'year'])",
    "shortens the window": "self.lm.model.config.max_position_embeddings = 16",
    "changes the end": "self.lm.eos_id = 5",
    "adds a layer": "self.lm.model.extra = torch.nn.Linear(2, 2)",
    "writes the weights": "self.lm.model.get_input_embeddings().weight.data.mul_(1.5)",
    "writes NaN": "self.lm.model.get_input_embeddings().weight.data.fill_(float('nan'))",
    "replaces the weights": "self.lm.model.lm_head = torch.nn.Linear(32, 400)",
    "stops gradients": "torch.set_grad_enabled(False)",
    "changes the default dtype": "torch.set_default_dtype(torch.float64)",
    "is deterministic": "torch.use_deterministic_algorithms(True)",
    "takes one thread more": "torch.set_num_threads(3)",
    "goes elsewhere": "os.chdir('/')",
    "closes its output": "sys.stdout = sys.stderr = None",
    "makes warnings errors": "warnings.simplefilter('error')",
    "draws randomly": "torch.rand(1), random.random()",
    "starts a thread": "threading.Thread(target=lambda: 1 / 0).start()",
    "hoards": "SEEN.append(getattr(document, 'text', '') if 'document' in dir() else '')",
    "changes documents": "object.__setattr__(document, 'text', 'nothing') if 'document' in dir() else None",
    "sets an environment variable": "os.environ['OMP_NUM_THREADS'] = '7'",
}
"""Statements of a method that does what it must not."""

HOOKS = ("__init__", "reset", "begin_document", "observe", "condition", "answering", "notes", "state_dict", "module")

PLUGIN = '''
import os, random, sys, threading, warnings
from contextlib import contextmanager

import torch

from bench import Method
from bench.answering import metrics
from bench.harness import loop
from bench.records import schema

SEEN = []


def fault(self, document=None):
    {fault}


class Faulty(Method):
    """Does what a method must not."""

    name = "faulty"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        {__init__}

    def reset(self):
        super().reset()
        {reset}

    def begin_document(self):
        {begin_document}

    def observe(self, document):
        {observe}

    def condition(self, questions):
        {condition}
        return super().condition(questions)

    @contextmanager
    def answering(self):
        yield
        {answering}

    def notes(self):
        {notes}
        return {{}}

    def state_dict(self):
        {state_dict}
        return super().state_dict()
'''


def prepare(folder: Path) -> Try:
    """One fault in one hook, between two sound methods, in one worker."""
    model = make_checkpoint(folder / "llama", "llama")
    dataset = make_dataset(folder / "keepers")
    sound = ["closed_book", {"name": "uniform", "config": {"learning_rate": 1e-2}}]
    options: dict[str, Any] = {"streams": {"split": "test", "documents": 4, "count": 1}, "tuning": None}

    def numbers(runs: Path) -> dict[str, Any]:
        records = (read_run(path.parent) for path in sorted(runs.glob("*/run.json")))
        return {
            record.spec.method: (
                record.status,
                [event.model_dump(exclude={"observe_seconds"}) for event in read_documents(runs, record.id)],
                [event.model_dump() for event in read_answers(runs, record.id)],
            )
            for record in records
        }

    def run(runs: Path, methods: list[Any], plugins: list[str]) -> dict[str, Any]:
        shutil.rmtree(runs, ignore_errors=True)
        with LocalPool(1) as pool:
            Runner(make_experiment(dataset, model, methods, **options), runs, plugins).run(pool)
        return numbers(runs)

    expected = run(folder / "runs", sound, [])
    assert [status for status, *_ in expected.values()] == ["complete", "complete"]
    numbers_of_plugins = itertools.count()

    def attempt(rng: random.Random) -> str | None:
        name, hook = rng.choice(sorted(FAULTS)), rng.choice(HOOKS[:-1])
        calls = {other: "fault(self)" if other == hook else "pass" for other in HOOKS[:-1]}
        calls["observe"] = "fault(self, document)" if hook == "observe" else "pass"
        plugin = folder / f"faulty_{next(numbers_of_plugins)}.py"  # a module is imported once
        plugin.write_text(textwrap.dedent(PLUGIN).format(fault=FAULTS[name], **calls))
        try:
            actual = run(folder / "attacked", ["faulty", *sound], [str(plugin)])
        except BenchError:
            return None
        except BaseException as error:
            return f"{name} in {hook}: {type(error).__name__}: {error}"
        status, _, answers = actual.pop("faulty", ("missing", [], []))
        if actual != expected:
            return f"{name} in {hook}: other cells changed: {json.dumps(_first_difference(actual, expected))[:300]}"
        if status == "complete" and any(answer["f1"] != expected_f1(answer) for answer in answers):
            return f"{name} in {hook}: recorded as complete with scores that its answers do not have"
        return None

    return attempt


def expected_f1(answer: dict[str, Any]) -> float:
    """Token F1 of an answer with one number as gold, by its definition."""
    predicted, gold = (text.lower().strip(" .,?!").split() for text in (answer["prediction"], answer["answers"][0]))
    common = sum(min(predicted.count(word), gold.count(word)) for word in set(gold))
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def _first_difference(actual: dict[str, Any], expected: dict[str, Any]) -> object:
    for method in expected:
        if method not in actual:
            return f"{method} has no record"
        for part, other in zip(actual[method], expected[method], strict=True):
            if part != other:
                return [method, part if isinstance(part, str) else "events"]
    return "a method too many"
