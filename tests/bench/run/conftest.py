"""Fixtures of the tests of runs: a small dataset, and experiments on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.run.experiment import Experiment
from tests.world import make_dataset, make_experiment


@pytest.fixture(scope="module")
def keepers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "keepers")


@pytest.fixture
def plan(keepers: Path, llama: Path) -> Callable[..., Experiment]:
    return lambda *methods, **changes: make_experiment(keepers, llama, methods, **changes)
