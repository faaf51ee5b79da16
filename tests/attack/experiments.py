"""Mutated experiment files: each is planned, or refused with a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from bench.errors import BenchError
from bench.run import experiment
from bench.run.runner import Runner
from tests.attack.attacks import Try, mutate_text, mutate_value
from tests.conftest import make_checkpoint
from tests.world import make_dataset, make_experiment

METHODS = ("closed_book", "bm25", {"name": "uniform", "space": {"learning_rate": [1e-3, 1e-2]}})


def prepare(folder: Path) -> Try:
    """Mutations of a small experiment's YAML, as text and by value, up to the plan of its cells."""
    model = make_checkpoint(folder / "llama", "llama")
    plan = make_experiment(make_dataset(folder / "keepers"), model, METHODS)
    values = plan.model_dump(mode="json")
    file = folder / "attacked.yaml"

    def plan_cells() -> None:
        runner = Runner(experiment.load(str(file)), folder / "runs")
        for plan in runner.experiment.methods:
            runner.tuner.search_space(plan)
            runner.planner.cells(plan, plan.config)

    file.write_text(yaml.safe_dump(values))
    plan_cells()

    def attempt(rng: random.Random) -> str | None:
        by_value = rng.random() < 0.7
        text = yaml.safe_dump(mutate_value(values, rng) if by_value else values, sort_keys=False)
        if not by_value:
            text = mutate_text(text, rng)
        file.write_bytes(text.encode(errors="surrogatepass"))
        try:
            plan_cells()
        except BenchError:
            return None
        except Exception as error:
            return f"{type(error).__name__}: {error} on {text[:2000]!r}"
        return None

    return attempt
