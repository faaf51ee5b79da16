"""Base models by name: the embedded one, a local folder, or a hub id; and their identity."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.errors import BenchError

EMBEDDED = Path(__file__).parent / "models"


def locate(name: str) -> Path:
    """The local folder of a base model: an embedded name (``nano``), a folder, or a hub id (downloaded when needed).

    Raises:
        BenchError: nothing of that name is embedded or local, and the hub cannot be reached or does not know it.
    """
    for folder in (EMBEDDED / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        raise BenchError(f"{name} is a folder without config.json; give one that save_pretrained wrote.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.onnx", "*.gguf"]))
    except Exception as error:  # many kinds: bad id, no network, no such repository, gated
        embedded = ", ".join(sorted(path.name for path in EMBEDDED.iterdir())) if EMBEDDED.is_dir() else "none"
        raise BenchError(
            f"No model {name!r}: it is neither embedded ({embedded}) nor a local folder, and the hub did not give it "
            f"({type(error).__name__}). Give --model a folder that save_pretrained wrote."
        ) from None


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
