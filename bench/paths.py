"""Where the things are that come with the project, and their names, read off the folders: importing it is cheap."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "datasets"
EXPERIMENTS = ROOT / "bench" / "experiments"
MODELS = ROOT / "bench" / "models"
RECIPE = "dataset.yaml"


def datasets() -> list[str]:
    """Data sets: folders with a recipe."""
    return sorted(path.parent.name for path in DATASETS.glob(f"*/{RECIPE}"))


def experiments() -> list[str]:
    """Experiments: YAML files."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
