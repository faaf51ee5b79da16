"""A dataset of a few documents, one method per kind of failure, an executor in this process, and other processes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.run.executor import Outcome, Task, TaskError
from bench.run.experiment import Experiment

SPLITS = {"qa_train": 4, "train": 4, "validation": 8, "test": 16}

PLUGIN = '''
import math

import torch

from bench import Document, GradientMethod, Method


class Raises(Method):
    """Fails on the third document."""

    name = "raises"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register("seen", torch.zeros(()))

    def observe(self, document: Document) -> None:
        self.seen += 1
        if self.seen == 3:
            raise ValueError("cannot read this")


class Explodes(GradientMethod):
    """Has a learning rate that is far too high."""

    name = "explodes"
    paper = "none"

    class Config(GradientMethod.Config):
        optimizer: str = "sgd"
        learning_rate: float = 1e30

    @classmethod
    def search_space(cls, config):
        return {}


class Trained(Method):
    """Counts the episodes that it can learn from."""

    name = "trained"
    paper = "none"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register("episodes", torch.zeros(()))

    def fit(self, episodes) -> None:
        self.episodes += len(episodes)

    def notes(self):
        return {"episodes": int(self.episodes)}

    def observe(self, document: Document) -> None:
        pass


class Enormous(Method):
    """Leaves finite weights with which the model's outputs are not finite."""

    name = "enormous"
    paper = "none"

    def observe(self, document: Document) -> None:
        with torch.no_grad():
            for parameter in self.lm.model.parameters():
                parameter.mul_(1e30)


class Litters(Method):
    """Leaves an extra layer in the model."""

    name = "litters"
    paper = "none"

    def observe(self, document: Document) -> None:
        self.lm.model.extra = torch.nn.Linear(2, 2)


class Chatty(Method):
    """Returns notes that JSON cannot hold."""

    name = "chatty"
    paper = "none"

    def notes(self):
        return {"weights": torch.zeros(2)}

    def observe(self, document: Document) -> None:
        pass
'''


def make_dataset(folder: Path, splits: Mapping[str, int] = SPLITS) -> Path:
    """Write a dataset in the ``documents`` format. Each document states one fact about one keeper."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in splits.items():
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                number += 1
                row = {
                    "title": f"Report {number}",
                    "timestamp": f"2031-01-{i + 1:02}",
                    "text": f"The lighthouse of keeper {number} opened in {1900 + number}. "
                    + "The ferry left. " * (i % 3),
                    "group": f"keeper {number}",
                    "questions": [
                        {
                            "id": f"{split}-{i}",
                            "question": f"In what year did the lighthouse of keeper {number} open?",
                            "answers": [str(1900 + number)],
                        }
                    ],
                }
                file.write(json.dumps(row) + "\n")
    (folder / "dataset.yaml").write_text(
        f"name: {folder.name}\ntitle: Keepers\ndescription: Lighthouses.\nlanguage: en\nlicence: CC0-1.0\n"
        "citation: none\n"
        "format: documents\nsource: {files: {"
        + ", ".join(f"{split}: {split}.jsonl" for split in splits)
        + "}}\nstream: {group: true, order: timestamp}\nanchor: {split: qa_train}\n"
    )
    return folder


def make_experiment(dataset: Path, model: Path, methods: Sequence[object], **changes: object) -> Experiment:
    """Two test streams of five documents, three trials on one validation stream of four."""
    values = {
        "name": "keepers",
        "dataset": str(dataset),
        "model": str(model),
        "streams": {"split": "test", "documents": 5, "count": 2},
        "tuning": {"split": "validation", "documents": 4, "count": 1, "metric": "token_nll", "trials": 3},
        "anchor": {"questions": 3, "documents": 2},
        "methods": list(methods),
        **changes,
    }
    return Experiment.model_validate(values)


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Wait for what another thread or process brings about; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"It did not come about within {seconds:g} seconds.")
        time.sleep(0.02)


@contextlib.contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a session of its own; what is left of it at the end is killed."""
    with subprocess.Popen(
        command,
        text=True,
        start_new_session=True,
        # background jobs of a shell ignore SIGINT, and their child processes inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left
                os.killpg(process.pid, signal.SIGKILL)


class Inline:
    """Runs the tasks in this process, in order, and records their keys."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        for task in tasks:
            self.keys.append(task.key)
            module, name = task.function.split(":")
            try:
                yield Outcome(task.key, value=getattr(importlib.import_module(module), name)(**task.payload))
            except Exception as error:
                yield Outcome(task.key, error=TaskError("raised", str(error)))
