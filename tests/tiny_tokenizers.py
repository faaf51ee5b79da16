"""Tiny tokenizers of every usual kind over one small corpus, and a tiny base model for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.data.prompt_format import PLAIN, PromptFormat
from bench.lm.base_model import BaseModel

CORPUS = ("Who built the mill? Anna built it.", "Where is the ferry? It is in Corvale.", "When? In 1983.")
SPECIAL = ["<unk>", "</s>"]
_LETTERS = sorted(set("".join(CORPUS)) - {" "})
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def _trained(model: Any, trainer: Any, size: int | None = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    for name, value in options.items():
        setattr(tokenizer, name, value)
    sizes = {} if size is None else {"vocab_size": size}
    tokenizer.train_from_iterator(CORPUS, trainer(special_tokens=SPECIAL, show_progress=False, **sizes))
    return tokenizer


def _metaspace(scheme: str) -> Tokenizer:
    return _trained(
        models.BPE(unk_token="<unk>"),
        trainers.BpeTrainer,
        70,
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme=scheme),
        decoder=decoders.Metaspace(prepend_scheme=scheme),
    )


def _prepending() -> dict[str, Any]:
    """Llama 2's way: a space before every text, and no words before the merges."""
    return {
        "normalizer": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        "decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    }


def _pieces(merges: list[tuple[str, str]]) -> Tokenizer:
    vocabulary = [*SPECIAL, "▁", *_LETTERS, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    for name, value in _prepending().items():
        setattr(tokenizer, name, value)
    return tokenizer


def _byte_level(merges: list[tuple[str, str]], prefix: bool, regex: bool) -> Tokenizer:
    vocabulary = [*SPECIAL, *_BYTES, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(extra: list[tuple[str, float]], **options: Any) -> Tokenizer:
    vocabulary = [(t, 0.0) for t in SPECIAL] + [(t, -4.0) for t in ("▁", "<", "/", ">", *_LETTERS)] + extra
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    for name, value in options.items():
        setattr(tokenizer, name, value)
    return tokenizer


def _words(split: Any) -> Tokenizer:
    return _trained(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer, pre_tokenizer=split)


def _word_piece() -> Tokenizer:
    return _trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        80,
        normalizer=normalizers.Lowercase(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )


SPLITTING: dict[str, Callable[[], Tokenizer]] = {
    "metaspace always": lambda: _metaspace("always"),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace never": lambda: _metaspace("never"),
    "prepend": lambda: _pieces([("m", "i"), ("▁", "A")]),
    "bytes": lambda: _byte_level([("Ġ", "A"), ("m", "i")], prefix=False, regex=True),
    "bytes with a space": lambda: _byte_level([("Ġ", "A"), ("m", "i")], prefix=True, regex=True),
    "unigram": lambda: _unigram(
        [("▁Anna", -5.0), ("▁the", -5.0)], pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    ),
    "words": lambda: _words(pre_tokenizers.Whitespace()),
    "word pieces": _word_piece,
}
"""Tokenizers without a token across the end of a question."""
MERGING: dict[str, Callable[[], Tokenizer]] = {
    "bytes that merge '? '": lambda: _byte_level([("?", "Ġ"), ("n", "n")], prefix=False, regex=False),
    "bytes with a space that merge '? '": lambda: _byte_level([("?", "Ġ"), ("Ġ", "A")], prefix=True, regex=False),
    "pieces that merge '? '": lambda: _pieces([("?", "▁"), ("▁", "A")]),
    "pieces that merge '? A'": lambda: _pieces([("?", "▁"), ("?▁", "A")]),
    "unigram with '? '": lambda: _unigram([("?▁", -1.0), ("▁A", -5.0)], **_prepending()),
}
"""Tokenizers with tokens across the end of a question."""
OTHERS: dict[str, Callable[[], Tokenizer]] = {"words between spaces": lambda: _words(pre_tokenizers.WhitespaceSplit())}
EVERY = {**SPLITTING, **MERGING, **OTHERS}


def base_with(kind: str, dtype: str = "float32") -> BaseModel:
    """A tiny random Llama with a tokenizer of this kind, the same at every call."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=EVERY[kind](), eos_token="</s>", unk_token="<unk>")
    return _base(tokenizer, dtype)


CHATS = {
    "turns": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "begin first": "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_end|>' }}"
    "{{ m['content'] | trim }}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>' }}{% endif %}",
    "words": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[Q] ' + m['content'] + ' [A]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
}
"""Chat templates: ChatML, Llama 3's kind, and Llama 2's kind, which marks turns by words."""


def chat_base(template: str | None, prompt: PromptFormat = PLAIN, begin: str | None = "<s>") -> BaseModel:
    """A tiny random Llama with a byte-level tokenizer that has this chat template and begin-of-text token."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=EVERY["bytes"](),
        eos_token="</s>",
        unk_token="<unk>",
        bos_token=begin,
        additional_special_tokens=["<s>", "<|im_start|>", "<|im_end|>", "<|eot|>"],
    )
    tokenizer.chat_template = template
    return _base(tokenizer, prompt=prompt)


def _base(tokenizer: PreTrainedTokenizerFast, dtype: str = "float32", prompt: PromptFormat = PLAIN) -> BaseModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BaseModel(LlamaForCausalLM(config), tokenizer, dtype=dtype, prompt=prompt)
