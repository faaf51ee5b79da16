"""Base models by name (an embedded one, a local folder or a hub id) and their identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.errors import BenchError
from bench.paths import MODELS


def locate(name: str, setting: str = "--model") -> Path:
    """Folder of a model, from an embedded name (``nano``), a folder or a hub id (downloaded if needed).

    ``setting`` is the option or key that the name comes from, for messages.

    Raises:
        BenchError: no embedded or local model has that name, and the hub does not provide it.
    """
    for folder in (MODELS / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        raise BenchError(f"{name} is a folder without config.json. Give a folder written by save_pretrained.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]))
    except Exception as error:  # of many types: bad id, no network, no such repository, gated
        embedded = ", ".join(sorted(path.name for path in MODELS.iterdir())) if MODELS.is_dir() else "none"
        raise BenchError(
            f"There is no model {name!r}: it is neither embedded ({embedded}) nor a local folder, and the hub did not "
            f"provide it ({type(error).__name__}). Give {setting} a folder written by save_pretrained."
        ) from None


def check(folder: Path, device: str = "cpu") -> None:
    """Check, before any work, that a model can run: its configuration, tokenizer, headers of the weights and device.

    Raises:
        BenchError: not a causal language model; weights that are missing, cut short or not safetensors (nothing is
            ever unpickled); a tokenizer without end-of-text token or character offsets; or an unavailable device.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[device]:
        raise BenchError(f"PyTorch finds no {device} device here. Omit --device to run on the CPU.")
    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # each tokenizer library raises its own errors
        raise BenchError(f"No model and tokenizer could be read from {folder}: {error}") from None
    architectures = config.architectures or []
    causal = any("CausalLM" in name or "LMHead" in name for name in architectures)
    if config.is_encoder_decoder or (architectures and not causal):
        raise BenchError(
            f"{folder} holds {', '.join(architectures)}, which has no causal language-model head. "
            f"Use a checkpoint whose architecture ends in ForCausalLM."
        )
    if tokenizer.eos_token_id is None:
        raise BenchError(
            "The tokenizer has no end-of-text token, so answers would never stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise BenchError("The tokenizer gives no character offsets. Use a fast one, with a tokenizer.json.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BenchError(f"{folder} has no .safetensors weights. Save the model again with save_pretrained.")
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BenchError(f"{path} is cut short or damaged ({error}). Download or save it again.") from None


def identity(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the configuration, tokenizer and weights in a model folder.

    In the hub's cache, files are links to blobs named by their content. The name of the blob counts instead of its
    content, so that large weights need not be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".txt", ".model"}:
            digest.update(path.name.encode())
            if path.is_symlink() and path.resolve().parent.name == "blobs":
                digest.update(path.resolve().name.encode())
            else:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
