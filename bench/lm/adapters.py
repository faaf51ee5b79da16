"""A base and a LoRA adapter (Hu et al. 2021), as peft stores it, merged into one base."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.files import json_bytes, make_folder, read_tensors
from bench.paths import ADAPTER, CONFIG, cache

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
PLAIN = {
    "peft_type": ("LORA",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "alpha_pattern": ({},),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""The settings that change what is added to the weights, or the base itself, with the values that can be merged."""
MERGED = "-merged-"
"""In the name of a folder, between that of the adapter and a hash of what was merged."""
COPIED = {".json", ".txt", ".model", ".jinja"}
"""Endings of the files of a base that are not weights: configuration, tokenizer, chat template."""
UNREAD = re.compile(r"trainer_state\.json|\w+_results\.json|(licen[sc]e|notice|readme|requirements)\b.*", re.IGNORECASE)
"""Names of files beside a base that nothing loads: what a Trainer has written, and texts for people."""
Pairs = Mapping[str, "tuple[Tensor, Tensor]"]


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a model, as transformers picks them: others may be the same in another format.

    Raises:
        BenchError: the index of the files is damaged.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            return sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"{index} is damaged ({error}). Download or save the model again.") from None
    return sorted(folder.glob("*.safetensors"))


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter.

    Raises:
        BenchError: they cannot be read, name no base, or are not those of plain LoRA.
    """
    path = folder / ADAPTER
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        base, alpha = config.get("base_model_name_or_path"), config.get("lora_alpha")
    except (OSError, ValueError, AttributeError) as error:
        raise BenchError(f"{path} could not be read: {error}. Save the adapter again.") from None
    if not (isinstance(base, str) and base):
        raise BenchError(f"{path} names no base. Set base_model_name_or_path to a model's name or folder.")
    for key, values in PLAIN.items():
        if (value := config.get(key, values[0])) not in values:
            raise BenchError(
                f"{path} has {key} = {value!r}, and only plain LoRA can be merged here. Merge it with peft's "
                f"merge_and_unload, and save the result with save_pretrained in a folder of its own."
            )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise BenchError(f"{path} has lora_alpha = {alpha!r}. Set it to a number.")
    return config


def merged(folder: Path, base: Path, base_identity: str) -> Path:
    """Folder of the model that a base and an adapter make, in the user's cache; it is made if it is not there.

    The weights are those of :func:`merge`. Everything else, the tokenizer too, is the base's. The folder is named after
    the contents of both, so that a changed adapter or base gets another one.

    Raises:
        BenchError: the adapter is damaged, does not fit the base, or is not plain LoRA; or the cache cannot be written.
    """
    from safetensors import SafetensorError

    config = read_config(folder)
    pairs = _pairs(folder)
    digest = hashlib.sha256(f"1 {base_identity}".encode())  # the number changes if the same two give other files
    for name in (ADAPTER, WEIGHTS):
        digest.update((folder / name).read_bytes())
    target = cache() / "models" / f"{folder.resolve().name}{MERGED}{digest.hexdigest()[:12]}"
    try:
        make_folder(target, lambda temporary: _write(temporary, folder, base, config, pairs))
    except (OSError, SafetensorError) as error:
        raise unwritable(target, error) from None
    return target


def unwritable(path: Path, error: Exception) -> BenchError:
    """The error of a folder in the cache that cannot be written."""
    return BenchError(
        f"{path} could not be written ({error}). Make room there, or set OAB_CACHE to a folder on another disk."
    )


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight + scale b a, in float32: weight (out, in), a (rank, in), b (out, rank).

    The sum over the rank is taken in order, in float64, where a product of two float32 numbers is exact. So the result
    is the same bits on every machine, with and without fused multiplication and addition.
    """
    import torch

    update = torch.zeros_like(weight, dtype=torch.float64)
    for row, column in zip(a.double(), b.double().T, strict=True):
        update.addcmul_(column[:, None], row[None, :])
    return (weight.double() + update.mul_(scale)).float()


def _pairs(folder: Path) -> Pairs:
    """The two matrices of each weight, (rank, in) and (out, rank), under the weight's name in the model."""
    tensors, _ = read_tensors(folder / WEIGHTS, "Save the adapter again.")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, separator, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not separator or kind not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise BenchError(
                f"{folder / WEIGHTS} has {name}, which is not LoRA of a linear layer. Merge the adapter with peft's "
                f"merge_and_unload, and save the result with save_pretrained in a folder of its own."
            )
        parts.setdefault(f"{module}.weight", {})[kind[0]] = tensor
    for name, pair in parts.items():
        if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise BenchError(f"{folder / WEIGHTS} has no two matrices of one rank for {name}. Save the adapter again.")
    if not parts:
        raise BenchError(f"{folder / WEIGHTS} holds no weights. Save the adapter again.")
    return {name: (pair["A"], pair["B"]) for name, pair in parts.items()}


def _write(temporary: Path, folder: Path, base: Path, config: Mapping[str, Any], pairs: Pairs) -> None:
    from safetensors.torch import save_file

    weights = dict(_weights(base))
    for name, (a, b) in pairs.items():
        own = name if name in weights else name.partition(".")[2]  # old checkpoints leave the model's prefix out
        if own in weights and not weights[own].is_floating_point():
            raise BenchError(
                f"{base} is quantized, so {folder} cannot be merged into it. Name the base in 16 or 32 bits."
            )
        if own not in weights:
            raise BenchError(f"{base} has no weights {name}, which the adapter {folder} changes. Name its own base.")
        turned = bool(config.get("fan_in_fan_out"))  # (in, out), in the layers of GPT-2
        weight = weights[own].T if turned else weights[own]
        if weight.shape != (b.shape[0], a.shape[1]):
            raise BenchError(f"The adapter {folder} does not fit {name} of {base}, {tuple(weight.shape)}.")
        changed = merge(weight, a, b, config["lora_alpha"] / a.shape[0])
        weights[own] = changed.T.contiguous() if turned else changed
    save_file({name: weights[name] for name in sorted(weights)}, temporary / "model.safetensors", {"format": "pt"})
    for path in sorted(base.iterdir()):
        if path.suffix in COPIED and not path.name.endswith(".index.json") and path.name != CONFIG:
            shutil.copyfile(path, temporary / path.name)
    settings = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    settings.pop("torch_dtype", None)
    (temporary / CONFIG).write_bytes(json_bytes({**settings, "dtype": "float32"}))


def _weights(base: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a base by name, in float32 if they are floating-point numbers."""
    for path in weight_files(base):
        for name, tensor in read_tensors(path, "Download or save it again.")[0].items():
            yield name, tensor.float() if tensor.is_floating_point() else tensor
