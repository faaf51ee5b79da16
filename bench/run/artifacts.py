"""The store of what methods were trained to: found by everything that it was made from, refused when that has changed.

An artifact is a folder ``<method>-<key>`` with ``weights.safetensors`` (bfloat16), ``artifact.json`` (its identity and
the training's facts), ``curve.csv`` and a card. Those of the default experiment stand in ``methods/trained``, others
in ``artifacts`` under the folder of the records. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import inspect
import io
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench import hashing
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, Trainer
from bench.data import recipe
from bench.data.documents import stream_hash
from bench.data.reader import MissingSplit, split_entries
from bench.errors import BenchError
from bench.files import write_bytes, write_json
from bench.lm import checkpoint
from bench.paths import ROOT

COMMITTED = ROOT / "methods" / "trained"
FOLDER = "artifacts"
"""Where, under the folder of the records, those that are not committed stand."""
WEIGHTS = "weights.safetensors"
TRAINER = Path(inspect.getfile(Trainer))


class Identity(pydantic.BaseModel):
    """Everything that a trained learner follows from. ``dataset`` and ``model`` are names, for people."""

    method: str
    dataset: str
    model: str
    model_hash: str
    train_hash: str
    validation_hash: str
    settings: dict[str, Any]
    """The method's ``training`` settings; models in them are named by their hash."""
    code: str
    """Hash of what the trainer, the method's file and the parts that it imports say."""

    @property
    def key(self) -> str:
        """SHA-256 (hexadecimal) of all but the names of data set and model."""
        content = self.model_dump(mode="json", exclude={"dataset", "model"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Identity) -> list[str]:
        """What is not the same in both, in words."""
        words = {
            "model_hash": "base model",
            "train_hash": "train split",
            "validation_hash": "validation split",
            "code": "code",
        }
        found = [word for field, word in words.items() if getattr(self, field) != getattr(other, field)]
        settings = {
            key
            for key in self.settings.keys() | other.settings.keys()
            if self.settings.get(key) != other.settings.get(key)
        }
        return found + [f"training.{key}" for key in sorted(settings)]


def identify(
    kind: type[MetaTrained], config: MethodConfig, dataset: str, data_files: Mapping[str, Sequence[str]], model: str
) -> Identity:
    """The identity of what this method comes to when it is trained on this data set with this base.

    Raises:
        BenchError: the data or the model cannot be had.
    """
    found = recipe.find(dataset)
    settings: Any = getattr(config, "training")  # noqa: B009 (its type is the method's)
    base = settings.base or model
    named = {
        name: checkpoint.identity(checkpoint.locate(value, f"{kind.name}.training.{name}"))
        for name, value in settings.models().items()
        if value
    }
    return Identity(
        method=kind.name,
        dataset=found.name,
        model=Path(base).name,
        model_hash=checkpoint.identity(checkpoint.locate(base)),
        train_hash=_split_hash(dataset, "train", json.dumps(data_files)),
        validation_hash=_split_hash(dataset, "validation", json.dumps(data_files)),
        settings={**settings.model_dump(mode="json", exclude={"base"}), **named},
        code=hashing.body_hash([TRAINER, *hashing.closure(Path(inspect.getfile(kind)), _is_part)]),
    )


def _is_part(path: Path) -> bool:
    """Whether a method's training follows from a module that it imports: the harness is no part of it."""
    return not path.is_relative_to(ROOT / "bench")


@lru_cache(maxsize=8)
def _split_hash(dataset: str, split: str, data_files: str) -> str:
    try:
        return stream_hash(split_entries(dataset, split, json.loads(data_files)))
    except MissingSplit:
        if split == "train":
            raise
        return ""


def find(identity: Identity, folders: Sequence[Path]) -> Path:
    """The folder of the artifact.

    Raises:
        BenchError: there is none; the message says in what the nearest one differs, and how to make it.
    """
    for folder in folders:
        path = folder / f"{identity.method}-{identity.key[:12]}"
        if (path / "artifact.json").is_file():
            return path
    others = [read(path).differences(identity) for folder in folders for path in folder.glob(f"{identity.method}-*")]
    nearest = min(others, key=len, default=None)
    why = "" if nearest is None else f" (the nearest differs in {', '.join(nearest)})"
    raise BenchError(
        f"{identity.method} has no trained weights for {identity.model} on {identity.dataset} with these settings{why}."
        f" Train them: python run_bench.py train {identity.method}, with the same --experiment, --model, --dataset and "
        f"--set as here."
    )


def read(folder: Path) -> Identity:
    """The identity of the artifact in a folder.

    Raises:
        BenchError: its manifest is missing or damaged.
    """
    try:
        return Identity.model_validate(json.loads((folder / "artifact.json").read_bytes())["identity"])
    except (OSError, ValueError, KeyError):
        raise BenchError(f"{folder} is no artifact; delete it, and train again.") from None


def weights_hash(folder: Path) -> str:
    """SHA-256 (hexadecimal) of the trained weights."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def load(folder: Path, method: MetaTrained) -> None:
    """Put the trained weights into the method's learner.

    Raises:
        BenchError: the file is cut short or damaged, or holds another learner's tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
        learner = method.learner.state_dict()
        if {name: p.shape for name, p in learner.items()} != {name: t.shape for name, t in tensors.items()}:
            raise BenchError(f"{folder} holds another learner than {method.name}'s. Delete it, and train again.")
    except (SafetensorError, OSError) as error:
        raise BenchError(f"{folder / WEIGHTS} is cut short or damaged ({error}). Delete it, and train again.") from None
    method.learner.load_state_dict(tensors)


def _stored(value: Tensor) -> Tensor:
    return (value.to(torch.bfloat16) if value.is_floating_point() else value).cpu().contiguous()


def write(folder: Path, identity: Identity, trainer: Trainer, card: str) -> Path:
    """Write the trained learner as an artifact under ``folder``, whole or not at all.

    In the committed store it takes the place of what was trained for the same method, data set and base.
    """
    from safetensors.torch import save

    path = folder / f"{identity.method}-{identity.key[:12]}"
    partial = folder / f".partial-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        write_bytes(partial / WEIGHTS, save({name: _stored(value) for name, value in trainer.best.items()}))
        facts = {
            "steps": trainer.step,
            "best_step": trainer.best_step,
            "seconds": round(trainer.seconds),
            "train_documents": len(trainer.train),
            "validation_documents": len(trainer.validation),
        }
        write_json(partial / "artifact.json", {"identity": identity.model_dump(mode="json"), "training": facts})
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(key for row in trainer.curve for key in row)))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in trainer.curve)
        write_bytes(partial / "curve.csv", table.getvalue().encode())
        write_bytes(partial / "README.md", card.encode())
        for other in folder.glob(f"{identity.method}-*") if folder == COMMITTED else [path]:
            if other == path or (read(other).dataset, read(other).model) == (identity.dataset, identity.model):
                shutil.rmtree(other, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path
