"""Base models by name: the embedded one, a local folder, or a hub id; and their identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.errors import BenchError
from bench.paths import MODELS


def locate(name: str, setting: str = "--model") -> Path:
    """The local folder of a model: an embedded name (``nano``), a folder, or a hub id (downloaded when needed).

    ``setting`` is where the name was given, for messages.

    Raises:
        BenchError: nothing of that name is embedded or local, and the hub cannot be reached or does not know it.
    """
    for folder in (MODELS / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        raise BenchError(f"{name} is a folder without config.json; give one that save_pretrained wrote.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]))
    except Exception as error:  # many kinds: bad id, no network, no such repository, gated
        embedded = ", ".join(sorted(path.name for path in MODELS.iterdir())) if MODELS.is_dir() else "none"
        raise BenchError(
            f"No model {name!r}: it is neither embedded ({embedded}) nor a local folder, and the hub did not give it "
            f"({type(error).__name__}). Give {setting} a folder that save_pretrained wrote."
        ) from None


def check(folder: Path, device: str = "cpu") -> None:
    """Refuse, before any work, what could not be run: reads the configuration, the tokenizer and the weights' headers.

    Raises:
        BenchError: not a causal language model, weights that are missing or cut short (or not safetensors: nothing is
            ever unpickled), a tokenizer without end-of-text token or character offsets, or a device that is not there.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device]:
        raise BenchError(f"PyTorch finds no {device} device here. Leave --device out to run on the CPU.")
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # each tokenizer library has its own errors
        raise BenchError(f"No model and tokenizer could be read from {folder}: {error}") from None
    architectures = config.architectures or []
    causal = any("CausalLM" in name or "LMHead" in name for name in architectures)
    if config.is_encoder_decoder or (architectures and not causal):
        raise BenchError(
            f"{folder} holds {', '.join(architectures)}, which has no causal language-model head. "
            f"Give a checkpoint whose architecture ends in ForCausalLM."
        )
    if tokenizer.eos_token_id is None:
        raise BenchError(
            "The tokenizer has no end-of-text token, so answers could never stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise BenchError("The tokenizer gives no character offsets; use one with a tokenizer.json (a fast one).")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BenchError(f"{folder} has no .safetensors weights; save it again with save_pretrained.")
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BenchError(f"{path} is cut short or damaged ({error}); get it again.") from None


def identity(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the configuration, tokenizer and weights in a model folder.

    Files that the hub's cache has linked to a blob named by its content count by that name, so that large weights
    need not be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"} and path.name != "README.md":
            digest.update(path.name.encode())
            if path.is_symlink() and path.resolve().parent.name == "blobs":
                digest.update(path.resolve().name.encode())
            else:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
