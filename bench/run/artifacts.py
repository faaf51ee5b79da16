"""The store of trained weights. Each artifact is found by a key of everything that it was made from.

If any of that changes, the artifact is no longer found. An artifact is a folder ``<method>-<digest>`` with
``weights.safetensors`` (bfloat16), ``artifact.json`` (its key and facts on the training), ``curve.csv`` and a card.
Artifacts that are committed, among them those of the default experiment, are in ``methods/trained``, all others in
``artifacts`` under the folder of the records. Nothing is ever unpickled.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from bench import hashing, machine, paths
from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained, Trainer, training_of
from bench.contract.method import Method
from bench.data import recipe
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.data.reader import DataFiles, split_entries, split_hash
from bench.errors import BenchError
from bench.files import csv_text, read_tensors, write_bytes, write_json, write_tensors
from bench.lm import adapters, checkpoint
from bench.paths import ROOT
from bench.records.schema import Tally
from bench.records.store import partial_folder, sweep

COMMITTED = ROOT / "methods" / "trained"
FOLDER = paths.ARTIFACTS
"""Folder of the artifacts that are not committed, under the folder of the records."""
MANIFEST = paths.ARTIFACT
WEIGHTS = "weights.safetensors"
REMEDY = "Delete the artifact's folder, and train again."
NEAR = 3
"""Most differences of other weights from those that are missing for which it helps to name them."""
TRAINER = Path(inspect.getfile(Trainer))


class MissingWeights(BenchError):
    """A method has no trained weights for what is asked; the message says how to train them."""


class ArtifactKey(pydantic.BaseModel):
    """Everything that the trained weights depend on. ``dataset`` and ``model`` are names for readers."""

    method: str
    seed: int
    dataset: str
    model: str
    model_hash: str
    train_hash: str
    validation_hash: str
    settings: dict[str, Any]
    """The method's training settings, what it depends on (:func:`declared_dependencies`), the prompt format if it is
    not the plain one, and the dtype if it is not float32."""
    code: str
    """Hash of the code of the trainer, of the method's file and of the parts that it imports, comments aside."""

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of all fields but the names of dataset and model."""
        return hashing.digest(self.model_dump(mode="json", exclude={"dataset", "model"}))

    @property
    def in_float32(self) -> ArtifactKey:
        """The same key for a training in float32."""
        return self.model_copy(update={"settings": {k: v for k, v in self.settings.items() if k != "dtype"}})

    @property
    def folder_name(self) -> str:
        """Name of the artifact's folder."""
        return f"{self.method}-{self.digest[:12]}"

    def differences(self, other: ArtifactKey) -> list[str]:
        """The fields and training settings that differ, in words."""
        words = {
            "model_hash": "base model",
            "train_hash": "train split",
            "validation_hash": "validation split",
            "code": "code",
            "seed": "seed",
        }
        fields = [word for field, word in words.items() if getattr(self, field) != getattr(other, field)]
        settings = {
            key
            for key in self.settings.keys() | other.settings.keys()
            if self.settings.get(key) != other.settings.get(key)
        }
        return fields + [key if key in ("prompt", "dtype") else f"training.{key}" for key in sorted(settings)]


def declared_dependencies(kind: type[Method], config: MethodConfig) -> dict[str, str]:
    """What the method depends on (:meth:`Method.depends_on`), with the hash of the content in place of a path.

    Raises:
        BenchError: a file or a model cannot be found or read.
    """
    return {
        name: hashing.path_hash(value) if isinstance(value, Path) else value
        for name, value in kind.depends_on(config).items()
    }


def key_of(
    kind: type[MetaTrained],
    config: MethodConfig,
    seed: int,
    dataset: str,
    data_files: DataFiles,
    model: str,
    prompt: PromptFormat = PLAIN,
    dtype: str = "float32",
) -> ArtifactKey:
    """The key of the artifact that training this method on this data makes with this base, seed, prompts and dtype.

    Raises:
        BenchError: the data or the model cannot be found or read.
    """
    training = training_of(config)
    dataset, data_files = training.source(dataset, data_files)
    split_entries(dataset, "train", data_files)  # raises if it is missing; validation may be missing
    base = training.base or model
    return ArtifactKey(
        method=kind.name,
        seed=seed,
        dataset=recipe.find(dataset).name,
        model=Path(base).name.partition(adapters.MERGED)[0],
        model_hash=checkpoint.identity(checkpoint.locate(base)),
        train_hash=split_hash(dataset, "train", data_files),
        validation_hash=split_hash(dataset, "validation", data_files),
        settings={
            **training.learning,
            **{name.removeprefix("training."): value for name, value in declared_dependencies(kind, config).items()},
            **({} if prompt == PLAIN else {"prompt": prompt.model_dump(mode="json", exclude_defaults=True)}),
            **({} if dtype == "float32" else {"dtype": dtype}),
        },
        code=hashing.body_hash([TRAINER, *hashing.closure(Path(inspect.getfile(kind)), _is_outside_bench)]),
    )


def _is_outside_bench(path: Path) -> bool:
    """True for a module outside ``bench``, which the key covers; of ``bench`` it covers only the trainer."""
    return not path.is_relative_to(ROOT / "bench")


def find(key: ArtifactKey, folders: Sequence[Path]) -> Path:
    """The folder of the artifact with this key, in the first of the ``folders`` that has it.

    If none was trained in the key's dtype, one that was trained in float32 serves.

    Raises:
        MissingWeights: there is none; the message says how to train it, and how one that is near differs.
    """
    for name in (key.folder_name, key.in_float32.folder_name):
        for folder in folders:
            if is_there(folder / name):
                return folder / name
    others = [read_key(path).differences(key) for folder in folders for path in folder.glob(f"{key.method}-*")]
    nearest = min(others, key=len, default=None)
    difference = f" (the nearest differs in {', '.join(nearest)})" if nearest and len(nearest) <= NEAR else ""
    raise MissingWeights(
        f"{key.method} has no trained weights for {key.model} on {key.dataset} with these settings and seed {key.seed}"
        f"{difference}. Train them: {paths.PROGRAM} train {key.method} --experiment EXPERIMENT, with this "
        f"command's options on data, base, settings, seed and --runs."
    )


def is_there(folder: Path) -> bool:
    """True if a folder holds an artifact: it is written whole or not at all."""
    return (folder / MANIFEST).is_file()


def read_key(folder: Path) -> ArtifactKey:
    """The key of the artifact in a folder.

    Raises:
        BenchError: its manifest is missing or damaged.
    """
    try:
        return ArtifactKey.model_validate(json.loads((folder / MANIFEST).read_bytes())["identity"])
    except (OSError, ValueError, KeyError):
        raise BenchError(f"{folder} is not an artifact. {REMEDY}") from None


def cost(folder: Path) -> Tally:
    """Seconds and floating-point operations of the training that made an artifact, from its facts.

    Raises:
        BenchError: its manifest is missing or damaged.
    """
    try:
        facts = json.loads((folder / MANIFEST).read_bytes())["training"]
        return Tally(seconds=facts["seconds"], flops=facts["flops"], peak_bytes=0)
    except (OSError, ValueError, KeyError):
        raise BenchError(f"{folder} does not say what its training cost. {REMEDY}") from None


def weights_hash(folder: Path) -> str:
    """SHA-256 (hexadecimal) of the trained weights."""
    return hashing.path_hash(folder / WEIGHTS)


def load(folder: Path, method: MetaTrained) -> None:
    """Load the trained weights into the method's learner.

    Raises:
        BenchError: the file is cut short or damaged, or holds the tensors of another learner.
    """
    tensors, _ = read_tensors(folder / WEIGHTS, REMEDY)
    learner = method.learner.state_dict()
    if {name: p.shape for name, p in learner.items()} != {name: t.shape for name, t in tensors.items()}:
        raise BenchError(
            f"{folder} holds the weights of another learner than {method.name}'s. {REMEDY} If "
            f"that does not help, a setting outside the group training changes the learner: move it into that group."
        )
    method.learner.load_state_dict(tensors)


def write(folder: Path, key: ArtifactKey, trainer: Trainer, card: str) -> Path:
    """Write the trained learner as an artifact under ``folder``, whole or not at all; returns the artifact's folder.

    One that is there with this key stays, since a cell may be reading it. In the committed store it replaces those of
    other keys with the same method, seed, dataset, base and settings.
    """
    path = folder / key.folder_name
    partial = partial_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    partial.mkdir()
    try:
        write_tensors(partial / WEIGHTS, {name: _compact(value) for name, value in trainer.best.items()})
        facts = {
            "steps": trainer.step,
            "best_step": trainer.best_step,
            "seconds": round(trainer.seconds),
            "flops": float(f"{trainer.flops:.4g}"),
            "processor": machine.cpu_name(),
            "train_documents": len(trainer.train),
            "validation_documents": len(trainer.validation),
        }
        write_json(partial / MANIFEST, {"identity": key.model_dump(mode="json"), "training": facts})
        columns = dict.fromkeys(column for row in trainer.curve for column in row)
        curve = [{column: f"{row[column]:.6g}" if column in row else "" for column in columns} for row in trainer.curve]
        write_bytes(partial / "curve.csv", csv_text(curve).encode())
        write_bytes(partial / "README.md", card.encode())
        if not is_there(path):
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        for other in folder.glob(f"{key.method}-*") if folder == COMMITTED else ():
            if other != path and _are_alike(read_key(other), key):
                shutil.rmtree(other, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _compact(value: Tensor) -> Tensor:
    """The tensor as it is stored: on the CPU, and in bfloat16 if it holds floating-point numbers."""
    return (value.to(torch.bfloat16) if value.is_floating_point() else value).cpu().contiguous()


def _are_alike(one: ArtifactKey, other: ArtifactKey) -> bool:
    """True if the keys differ in hashes alone: one is that of older data, an older base or older code."""
    names = {"seed", "dataset", "model", "settings"}
    return one.model_dump(include=names) == other.model_dump(include=names)
