"""Paths of what comes with the project, and the names read from its folders. Importing this module is cheap."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "datasets"
EXPERIMENTS = ROOT / "bench" / "experiments"
MODELS = ROOT / "bench" / "models"
RECIPE = "dataset.yaml"


def datasets() -> list[str]:
    """Names of the datasets: folders with a recipe."""
    return sorted(path.parent.name for path in DATASETS.glob(f"*/{RECIPE}"))


def experiments() -> list[str]:
    """Names of the experiments: YAML files."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def relative(path: Path) -> str | None:
    """A path as it is shown to people: relative to the project, else to the working folder; None if outside both."""
    for folder in (ROOT, Path.cwd()):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return None
