"""Paths of what comes with the project, and the names read from its folders. Importing this module is cheap."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / "datasets"
EXPERIMENTS = ROOT / "bench" / "experiments"
MODELS = ROOT / "bench" / "models"
PROGRAM = "python run_bench.py" if (ROOT / "pyproject.toml").is_file() else "oab"
"""How the benchmark is called: in a clone by its script, and where it is installed by its command."""
RECIPE = "dataset.yaml"
CONFIG, ADAPTER, SOURCE = "config.json", "adapter_config.json", "source.yaml"
BASES = (CONFIG, ADAPTER, SOURCE)
"""Files by which the folder of a base model is known: a whole model, an adapter on another base, or where to get it."""
TUNED_ON = "documents.csv"
"""In the folder of a base that was tuned here: the documents on which it was, as hashes of their texts."""

ARTIFACTS, ARTIFACT = "artifacts", "artifact.json"
"""The folder of trained weights under that of the records, and the manifest in each."""


def datasets() -> list[str]:
    """Names of the datasets: folders with a recipe."""
    return sorted(path.parent.name for path in DATASETS.glob(f"*/{RECIPE}"))


def experiments() -> list[str]:
    """Names of the experiments: YAML files."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def models() -> list[str]:
    """Names of the embedded base models."""
    return sorted({path.parent.name for kind in BASES for path in MODELS.glob(f"*/{kind}")})


def comes_along(path: Path) -> bool:
    """True for what is in the folder of an embedded dataset or base model, and so wherever the project is."""
    return path.is_relative_to(DATASETS) or path.is_relative_to(MODELS)


def places(name: str, home: Path, known: Sequence[str]) -> list[Path]:
    """Where a folder of this name may be: in ``home`` if the name is ``known`` there, and here."""
    return [*([home / name] if name in known else []), Path(name)]


def absolute(name: str, known: Sequence[str]) -> str:
    """The full path of a local folder, for use from any other; a name that is ``known``, or of a hub, as it is."""
    return os.path.abspath(name) if os.path.isdir(name) and name not in known else name


def cache() -> Path:
    """Folder of what is fetched or made once for a user: OAB_CACHE if it is set, else one in ~/.cache."""
    return Path(os.environ.get("OAB_CACHE") or Path.home() / ".cache" / "online-adaptation-bench")


def relative(path: Path) -> str | None:
    """A path as it is shown to people: relative to the project, else to the working folder; None if outside both."""
    for folder in (ROOT, Path.cwd()):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return None
