"""Where the weights of a base are: on one device, spread over several GPUs, or in part offloaded to main memory.

Which layer goes where is chosen by accelerate, whose hooks also bring offloaded weights to a GPU when their layer runs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence, Set
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.machine import available_memory

if TYPE_CHECKING:
    import torch

GPU_BYTES = 600 * 2**20
"""Memory of a process on each of its GPUs before it has a base: CUDA's context and libraries."""
WEIGHT_BYTES, READING_BYTES, LEARNING_BYTES = 4, 10, 28
"""Memory for each weight of a base: its float32 value; if it is read, also the copy that restores it (which is shared
on a CPU if the file is in float32), and its cast to 16 bits; and, if all weights learn with Adam, also gradient,
moments, and what a pass keeps."""
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # it warns of what is offloaded
OFFLOADED = ("cpu", "disk")
"""Places, in the map of a model that is in part on GPUs, of what is offloaded."""


def options(weights: int, device: str, offload: bool = False, is_quantized: bool = False) -> dict[str, Any]:
    """Options to load a base of so many weights with.

    A base is spread over all GPUs that this process sees if it cannot be fine-tuned on the first of them, by its size,
    or not be read there, by what is free. With ``offload``, layers for which they have no room even if the base is only
    read are offloaded.

    Raises:
        BenchError: the GPUs, or they and main memory, cannot hold the weights; or a base that is to be offloaded is
            quantized.
    """
    sizes = _gpu_sizes() if device == "cuda" else []
    if sizes and (LEARNING_BYTES * weights > sizes[0] - GPU_BYTES or READING_BYTES * weights > _free_bytes(1)[0]):
        free = _free_bytes(len(sizes))
        most: dict[Any, int] = {i: left * WEIGHT_BYTES // READING_BYTES for i, left in enumerate(free)}
        if offload and READING_BYTES * weights > sum(free):
            memory = int(0.9 * available_memory())  # with what loading needs beside
            _check_room(weights, sum(most.values()) + memory, "the GPUs and main memory")
            if is_quantized:
                raise BenchError("A quantized base cannot be offloaded. Use more GPUs, or leave --offload out.")
            return {"device_map": "sequential", "max_memory": {**most, "cpu": memory}}
        _check_room(weights, sum(free), "the GPUs")
        if len(sizes) > 1:
            is_ample = READING_BYTES * weights < 0.9 * sum(free)  # layers are not divided
            return {"device_map": "balanced", "max_memory": most if is_ample else dict(enumerate(free))}
    return {"device_map": {"": device}} if is_quantized else {}  # what is quantized cannot be moved later


def _check_room(weights: int, room: int, where: str) -> None:
    if WEIGHT_BYTES * weights > room:
        raise BenchError(
            f"The weights of the base take {WEIGHT_BYTES * weights / 1e9:.1f} GB, and {where} have {room / 1e9:.1f} GB "
            f"free. Give it more GPUs or a smaller base; run and doctor can keep a part in main memory (--offload)."
        )


def _gpu_sizes() -> list[int]:
    """Bytes of each GPU that this process sees, none of which it takes for asking."""
    import torch

    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def _free_bytes(count: int) -> list[int]:
    """Free bytes of the first GPUs that this process sees, beside what CUDA itself takes there."""
    import torch

    return [torch.cuda.mem_get_info(i)[0] for i in range(count)]


def check(model: Any, device: str, offload: bool) -> None:
    """Check that a loaded model is where it may be.

    Raises:
        BenchError: layers are offloaded that must not be, or all are.
    """
    places = {*getattr(model, "hf_device_map", {}).values()}
    if device == "cuda" and places and (places <= {*OFFLOADED} or (places & {*OFFLOADED} and not offload)):
        raise BenchError(
            "The layers of the base do not fit into what is free on the GPUs. End the processes that use them, or give "
            "the base more GPUs."
        )


def first_device(model: Any, device: str) -> torch.device:
    """The device on which a model begins: that of its first part on a GPU, if it was loaded by a map."""
    import torch

    places = getattr(model, "hf_device_map", {}).values()
    first = next((place for place in places if place not in OFFLOADED), device)
    return torch.device(device, first) if isinstance(first, int) else torch.device(first)


def stated(model: Any) -> str:
    """How a model is placed, in words; "" if it is on one device."""
    over = f"over {len(devices(model))} GPUs" if len(devices(model)) > 1 else ""
    return ", ".join(filter(None, [over, "in part offloaded" if is_offloaded(model) else ""]))


def visible(device: str) -> Sequence[torch.device]:
    """All devices of a kind that this process sees."""
    import torch

    if device != "cuda":
        return [torch.device(device)]
    torch.cuda.init()  # else their memory cannot be asked for
    return [torch.device(device, i) for i in range(torch.cuda.device_count())]


def is_placed(model: Any) -> bool:
    """True if a model was loaded to where it is used, and must not be moved."""
    return hasattr(model, "hf_device_map")


def is_offloaded(model: Any) -> bool:
    """True if weights of a model are in main memory until their layer runs on a GPU."""
    return any(parameter.is_meta for parameter in model.parameters())


def devices(model: Any) -> Sequence[torch.device]:
    """The devices that hold the model's weights."""
    return list(dict.fromkeys(parameter.device for parameter in model.parameters() if not parameter.is_meta))


def connect(model: Any, device: str) -> None:
    """Let each part of a model that is on several devices take its inputs to its own, and the results to the first.

    These are hooks of torch in place of those of accelerate, which replace ``forward``, as others do. A model that is
    offloaded keeps accelerate's as well, which bring its weights.
    """
    places = getattr(model, "hf_device_map", {})
    if len({*places.values()}) < 2:
        return
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import send_to_device

    if not is_offloaded(model):
        remove_hook_from_module(model, recurse=True)
        for module in model.modules():
            vars(module).pop("forward", None)  # which it leaves behind
    kept = model._skip_keys_device_placement
    first = first_device(model, device)
    modules = dict(model.named_modules())
    for part, place in ((modules[name], place) for name, place in places.items() if name in modules):
        layers = {module.layer_idx for module in part.modules() if hasattr(module, "layer_idx")}
        layers |= {module.layer_id for module in part.modules() if hasattr(module, "layer_id")}  # of GPT-Neo
        own = first if place in OFFLOADED else place
        part.register_forward_pre_hook(partial(_take_inputs, own, layers, kept), with_kwargs=True)
    for part in dict.fromkeys([model, model.base_model, model.get_output_embeddings()]):  # each may be called alone
        part.register_forward_hook(lambda _, __, output: send_to_device(output, first, skip_keys=kept))


def _take_inputs(default: Any, layers: Set[int], kept: Any, part: Any, args: Any, kwargs: Any) -> Any:
    from accelerate.utils import send_to_device
    from transformers import Cache

    device = _device_of(part, default)
    for cache in (*args, *kwargs.values()):
        if isinstance(cache, Cache):  # which may begin with keys and values that a method made
            held: list[Any] = [cache.layers[i] for i in layers if i < len(cache.layers)]
            for layer in held:
                if getattr(layer, "keys", None) is not None:
                    layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
    return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=kept)


def _device_of(part: Any, default: Any) -> Any:
    """Where the part's weights are: a method may have moved a copy of it."""
    held = next((tensor.device for tensor in itertools.chain(part.parameters(), part.buffers())), None)
    return default if held is None or held.type == "meta" else held


def replace_forward(module: Any, forward: Callable[..., Any]) -> None:
    """Let a module call ``forward(module, ...)`` instead of its own, inside the hook of accelerate, if it has one.

    It is bound, so that a copy of the model gets its own.
    """
    setattr(module, "_old_forward" if hasattr(module, "_hf_hook") else "forward", MethodType(forward, module))
