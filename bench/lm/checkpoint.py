"""Base models by name (an embedded one, a local folder or a hub id) and their identity."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import paths
from bench.errors import BenchError
from bench.hashing import path_hash
from bench.lm import adapters, pretrained, quantized

UNUSED = ["*.bin", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot", "*.pt", "*.pth", "consolidated*", "original/*"]
"""Files of a model on the hub that are not downloaded: weights in other formats than those of transformers."""
TABLES = re.compile(r"\battn(\.attention)?\.(masked_)?bias$|\battention\.(masked_)?bias$|\brotary_emb\.inv_freq$")
"""Names of masks and tables, no weights, that older versions of transformers saved with GPT-2, GPT-Neo and others."""


def locate(name: str, setting: str = "--model", download: bool = True) -> Path:
    """Folder of a model, from an embedded name (``nano``), a folder or a hub id (downloaded if needed).

    ``ORGANISATION/NAME@REVISION`` is a commit, tag or branch of a model on the hub, which without it is the newest.

    A folder that holds an adapter alone stands for its base with the adapter, which are merged in the user's cache.
    ``setting`` is the option or key that the name comes from, for messages. Without ``download`` a hub id is looked up
    in the hub's cache alone.

    Raises:
        BenchError: no embedded or local model has that name, and the hub, or its cache, does not provide it; it has to
            be fetched first (:func:`pretrained.get`); or it is an adapter that cannot be merged.
    """
    return _locate(name, setting, (), download)


def _locate(name: str, setting: str, above: tuple[Path, ...], download: bool) -> Path:
    """:func:`locate` a model on which the adapters in the folders ``above`` build."""
    if (local := _local(name)) is not None:
        return pretrained.locate(local.name) if _is_fetched(local) else _merged(local, above, download)
    if os.path.isdir(name):
        raise BenchError(f"{name} is a folder without config.json. Give a folder written by save_pretrained.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision or None, ignore_patterns=UNUSED, local_files_only=not download
            )
        )
    except Exception as error:  # of many types: bad id, no network, no such repository, gated
        reason = f"the hub did not provide it ({type(error).__name__}). Give"
        if isinstance(error, GatedRepoError):
            page = f"huggingface.co/{repository}"
            reason = f"the hub asks for consent to its licence. Give that on {page} and run hf auth login, or give"
        if not download:
            command = f'hf download {repository} --exclude "*.bin"' + (f" --revision {revision}" if revision else "")
            reason = f"the hub's cache lacks it. Download it ({command}), or give"
        raise BenchError(
            f"There is no model {name!r}: it is neither embedded ({', '.join(paths.models())}) nor a local folder, and "
            f"{reason} {setting} a folder written by save_pretrained."
        ) from None
    return _merged(folder, above, download)


def _local(name: str) -> Path | None:
    """The folder of an embedded or local model, or adapter, of this name; None if there is none here."""
    for folder in paths.places(name, paths.MODELS, paths.models()):
        kinds = (paths.CONFIG, paths.ADAPTER)
        if _is_fetched(folder) or any(os.path.isfile(folder / kind) for kind in kinds):  # False for a name too long
            return folder
    return None


def _is_fetched(folder: Path) -> bool:
    """True for the folder of an embedded model that says where its weights come from."""
    return os.path.isfile(folder / paths.SOURCE) and folder.resolve().parent == paths.MODELS


def _base_of(folder: Path) -> str | None:
    """The name of the base of a folder with an adapter alone; None for a model."""
    if (folder / paths.CONFIG).is_file() or not (folder / paths.ADAPTER).is_file():
        return None
    base: str = adapters.read_config(folder)["base_model_name_or_path"]
    return base


def _merged(folder: Path, above: tuple[Path, ...], download: bool) -> Path:
    """A folder with a model as it is; for one with an adapter alone, the folder of its base with the adapter."""
    if (name := _base_of(folder)) is None:
        return folder
    own = folder.resolve()
    if own in above:
        raise BenchError(f"The adapter {folder} builds on itself. Correct base_model_name_or_path in it.")
    base = _locate(name, f"base_model_name_or_path in {folder / paths.ADAPTER}", (*above, own), download)
    return adapters.merged(folder, base, identity(base))


def hub_name(folder: Path) -> str | None:
    """The hub id and the commit of a folder in the hub's cache, as ``ORGANISATION/NAME@COMMIT``; None for others."""
    found = re.search(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$", folder.as_posix())
    return f"{found[1].replace('--', '/')}@{found[2]}" if found else None


def tuned_on(name: str) -> list[tuple[str, str]]:
    """The documents on which a local model and the bases below it were tuned: (split, hash of the text) of each.

    The hashes are those of :func:`text_key`. Nothing is known of a base that was not made by ``tune-qa``.

    Raises:
        BenchError: the list of such a base cannot be read.
    """
    if (folder := _local(name)) is None:
        return []
    below = _base_of(folder)
    documents = [] if below is None else tuned_on(below)
    if (file := folder / paths.TUNED_ON).is_file():
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                documents += [(row["split"], row["document"]) for row in csv.DictReader(lines)]
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise BenchError(f"{file} could not be read ({error!r}). Restore it, or tune the base again.") from None
    return documents


def has_device(device: str) -> bool:
    """True if PyTorch can use a device here."""
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return present.get(device, False)


def check_device(device: str) -> None:
    """Check that PyTorch can use a device.

    Raises:
        BenchError: there is no such device here.
    """
    if not has_device(device):
        raise BenchError(f"PyTorch finds no {device} device here. Omit --device to run on the CPU.")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def check(folder: Path, device: str = "cpu") -> None:
    """Check that a model can be loaded: its configuration, tokenizer, headers of the weights and device.

    Raises:
        BenchError: not a causal language model, or one that needs code of its own (which is never run) or an adapter;
            weights that are missing, cut short or not safetensors (nothing is ever unpickled); a tokenizer without
            end-of-text token or character offsets; no positions; or an unavailable device.
    """
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    check_device(device)
    _check_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # each tokenizer library raises its own errors
        raise BenchError(f"No model and tokenizer could be read from {folder}: {_one_line(error)}") from None
    quantized.check(folder, config)
    architectures = config.architectures or []
    causal = any("CausalLM" in name or "LMHead" in name for name in architectures)
    if config.is_encoder_decoder or (architectures and not causal):
        raise BenchError(
            f"{folder} holds {', '.join(architectures)}, which has no causal language-model head. "
            f"Use a checkpoint whose architecture ends in ForCausalLM."
        )
    for name in POSITIONS:
        value = getattr(config, name, None)
        if value is not None and (not isinstance(value, int) or value <= 0):
            raise BenchError(f"{folder}/config.json has {name} = {value}. Set it to the model's window, in tokens.")
    if tokenizer.eos_token_id is None:
        raise BenchError(
            "The tokenizer has no end-of-text token, so answers would never stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise BenchError("The tokenizer gives no character offsets. Use a fast one, with a tokenizer.json.")
    weights = adapters.weight_files(folder)
    if not weights:
        repository = (hub_name(folder) or "").partition("@")[0]
        other = f", or name a revision that has them, often a pull request: {repository}@refs/pr/N" * bool(repository)
        raise BenchError(f"{folder} has no .safetensors weights. Save the model again with save_pretrained{other}.")
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BenchError(f"{path} is cut short or damaged ({error}). Download or save it again.") from None


def _check_files(folder: Path) -> None:
    """Check what transformers would ask for, or do without saying it."""
    from transformers import CONFIG_MAPPING

    if (folder / "adapter_config.json").exists():
        raise BenchError(
            f"{folder} holds a peft adapter (adapter_config.json) beside a model. Keep the adapter in a folder of its "
            f"own: given as a model, that folder is merged into its base."
        )
    config = _read_json(folder / "config.json")
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise BenchError(
            f"{folder} needs code of its own (auto_map in config.json), which is never run. Use a model of an "
            f"architecture that the installed transformers has."
        )
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise BenchError(
                    f"{folder} lacks {shard}, one of the {len(shards)} files named in {index.name}. Download it again."
                )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} could not be read: {error}. Download or save the model again.") from None
    if not isinstance(values, dict):
        raise BenchError(f"{path} is not a JSON object. Download or save the model again.")
    return values


def check_loaded(folder: Path, model: Any, tokenizer: Any, info: dict[str, Any]) -> None:
    """Check a loaded model against its files and its tokenizer.

    Raises:
        BenchError: weights that the files lack, that the configuration does not use or describes with another shape,
            or that are not finite; or tokens without an embedding.
    """
    import torch

    if missing := sorted(info["missing_keys"]):
        raise BenchError(f"{folder} lacks weights of the model ({missing[0]}). Use a complete causal LM checkpoint.")
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise BenchError(
            f"{name} in {folder} has the shape {tuple(stored)}, but config.json describes {tuple(expected)}. "
            f"Save model and configuration together with save_pretrained."
        )
    if unused := sorted(name for name in info["unexpected_keys"] if not TABLES.search(name)):
        raise BenchError(
            f"{folder} has weights that the model of its config.json does not use ({unused[0]}; {len(unused)} in all). "
            f"Save model and configuration together with save_pretrained."
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise BenchError(f"The weights {name} in {folder} hold NaN or infinity. Save or download the model again.")
    rows = model.get_input_embeddings().num_embeddings
    special = {at for at, token in tokenizer.added_tokens_decoder.items() if token.special}  # of images, say
    highest = max({*tokenizer.get_vocab().values()} - special | {tokenizer.eos_token_id, tokenizer.bos_token_id or 0})
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise BenchError(
            f"The tokenizer in {folder} has tokens up to {highest} ({token!r}), but the model has embeddings for "
            f"{rows}. Use the tokenizer that the model was trained with, or resize_token_embeddings."
        )
    generation = getattr(model, "generation_config", None)
    ends = getattr(generation, "eos_token_id", None)
    ids = [("bos_token_id", getattr(generation, "bos_token_id", None))]
    ids += [("eos_token_id", end) for end in (ends if isinstance(ends, list) else [ends])]
    for name, value in ids:
        if value is not None and not 0 <= value < rows:
            raise BenchError(
                f"{name} is {value} in {folder}/generation_config.json or config.json, outside the vocabulary of "
                f"{rows} tokens. Set it to that of the tokenizer."
            )


def check_embedded(tokens: Sequence[int], model: Any) -> None:
    """Check that the tokens of a prompt format have embeddings: those of a chat template may have been added later.

    Raises:
        BenchError: one has none.
    """
    rows = model.get_input_embeddings().num_embeddings
    if (highest := max(tokens)) >= rows:
        raise BenchError(
            f"The prompt format has the token {highest}, but the model has embeddings for {rows}. Use another format, "
            f"or resize_token_embeddings."
        )


POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names under which configurations state the number of positions."""


def positions(model: Any) -> int | None:
    """Most tokens that a model reads at once; None if its configuration has no limit."""
    import torch

    stated = (getattr(model.config, name, None) for name in POSITIONS)
    count = next((value for value in stated if isinstance(value, int) and value > 0), None)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond that, factors depend on the longest row of a batch
        return int(rope["original_max_position_embeddings"])
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
    for table in tables:
        if (
            table is not model.get_input_embeddings()
            and table.num_embeddings == count
            and table.padding_idx is not None
        ):
            return count - table.padding_idx - 1  # RoBERTa's kind: positions begin after that of padding
    return count


def mapped_tensors(folder: Path) -> dict[str, Any]:
    """The tensors in a model folder by name, mapped into memory: processes that only read them share one copy."""
    from safetensors import safe_open

    tensors: dict[str, Any] = {}
    for path in adapters.weight_files(folder):
        with safe_open(path, framework="pt") as file:
            tensors.update((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
    return tensors


def _weights(folder: Path) -> dict[str, Any]:
    """The tensors in a model folder, without the masks that older versions of transformers saved."""
    return {name: tensor for name, tensor in mapped_tensors(folder).items() if not TABLES.search(name)}


def parameter_count(folder: Path) -> int:
    """Number of parameters in a model folder."""
    tensors = _weights(folder)
    if all(tensor.is_floating_point() for tensor in tensors.values()):
        return sum(tensor.numel() for tensor in tensors.values())
    scales = (".SCB", ".weight_format")
    own = (tensor for name, tensor in tensors.items() if ".weight." not in name and not name.endswith(scales))
    return sum(map(quantized.numbers, own))


def weight_count(folder: Path) -> int:
    """Number of weights in a model folder; quantized ones count as the float32 numbers that their bytes would hold."""
    return sum(
        tensor.numel() if tensor.is_floating_point() else tensor.numel() * tensor.element_size() // 4
        for tensor in _weights(folder).values()
    )


def identity(folder: Path) -> str:
    """SHA-256 (hexadecimal) over the configuration, tokenizer, chat template and weights in a model folder.

    In the hub's cache, files are links to blobs. Those of large files have their SHA-256 as a name, so that they need
    not be read. Other files are read again in a process only when they changed.
    """
    digest, weights = hashlib.sha256(), adapters.weight_files(folder)
    for path in sorted(folder.iterdir()):
        if path in weights or (path.suffix in adapters.COPIED and not adapters.UNREAD.fullmatch(path.name)):
            digest.update(path.name.encode())
            blob = path.resolve()
            if path.is_symlink() and blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
                digest.update(bytes.fromhex(blob.name))
            else:
                digest.update(bytes.fromhex(path_hash(path)))
    return digest.hexdigest()
