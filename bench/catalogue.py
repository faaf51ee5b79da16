"""The names of what comes with the project, read off its folders, so that a listing imports next to nothing."""

from __future__ import annotations

from pathlib import Path

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
RECIPE = "dataset.yaml"


def datasets() -> list[str]:
    """Data sets: folders with a recipe."""
    return sorted(path.parent.name for path in DATASETS.glob(f"*/{RECIPE}"))


def experiments() -> list[str]:
    """Experiments: YAML files."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
