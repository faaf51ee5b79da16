"""Tiny random language models of many architectures, from transformers' configuration classes, and their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.conformance import fixtures
from bench.lm.base_model import BaseModel

WINDOW = 24
"""Attention window of the architectures that have one: shorter than the longest texts of the tests."""
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "openai-gpt": _GPT,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
        "pad_token_id": 1,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "llama": _SIZES,
    "phi3": {**_SIZES, "pad_token_id": 0},
    "mistral": {**_SIZES, "head_dim": 8, "sliding_window": WINDOW},
    "gemma2": {**_SIZES, **_SLIDING, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_SIZES, **_SLIDING, "head_dim": 8},
    "mixtral": {**_SIZES, **_EXPERTS},
    "gpt_oss": {**_SIZES, **_SLIDING, **_EXPERTS, "head_dim": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 256},
    "recurrent_gemma": {**_SIZES, "num_hidden_layers": 3, "attention_window_size": WINDOW, "lru_width": 32},
    "bamba": {**_SIZES, **_STATES, "attn_layer_indices": [1]},
    "granitemoehybrid": {
        **_SIZES,
        **_STATES,
        **_EXPERTS,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
    },
    "zamba2": {
        **_SIZES,
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_ngroups": 1,
        "chunk_size": 16,
        "num_mem_blocks": 1,
        "attention_head_dim": 16,
    },
    "lfm2": {**_SIZES, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "qwen3_next": {
        **_SIZES,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}
"""Sizes of each architecture's configuration."""


def tiny_model(architecture: str, **changes: Any) -> Any:
    """A random model of an architecture, always the same, with the vocabulary of the fixtures' tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = fixtures.base_model().tokenizer
    end = tokenizer.eos_token_id
    settings = {"bos_token_id": end, "eos_token_id": end, **CONFIGS.get(architecture, {}), **changes}
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for name, parameter in model.named_parameters():  # far from equal logits, with stable recurrences
            if parameter.ndim == 2 and not name.endswith(("A_log", "dt_proj.weight")):
                parameter.mul_(4)
    return model


def tiny_base(architecture: str, **changes: Any) -> BaseModel:
    """:func:`tiny_model` with the fixtures' byte-level tokenizer."""
    return BaseModel(tiny_model(architecture, **changes), fixtures.base_model().tokenizer)


def weights(lm: BaseModel) -> dict[str, Tensor]:
    """Copies of a base's weights, by name."""
    return {name: value.detach().clone() for name, value in lm.named_tensors()}
