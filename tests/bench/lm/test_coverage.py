"""Characters that a tokenizer does not know are counted, whatever it does with them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.conformance import fixtures
from bench.lm.coverage import coverage

LETTERS = {token: i for i, token in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyz.", "the", "ferry"])}


def words() -> Any:
    tokenizer = Tokenizer(models.WordLevel(LETTERS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def letters(unknown: str | None, lower: bool = False) -> Any:
    tokenizer = Tokenizer(models.BPE(LETTERS, [], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


@pytest.mark.parametrize(
    ("tokenizer", "text", "unknown", "example"),
    [
        (words(), "the ferry", 0.0, ""),
        (words(), "the otter", 5 / 8, "t"),
        (letters("<unk>"), "the ferry.", 0.0, ""),
        (letters("<unk>"), "渡轮 ferry", 2 / 7, "渡"),
        (letters(None), "渡渡轮 ferry", 3 / 8, "渡"),  # without an unknown token they vanish
        (letters("<unk>"), "Ferry", 1 / 5, "F"),
        (letters("<unk>", lower=True), "Ferry", 0.0, ""),
        (letters("<unk>"), "", 0.0, ""),
        (letters("<unk>"), " \n\t", 0.0, ""),
    ],
)
def test_the_share_of_unknown_characters(tokenizer: Any, text: str, unknown: float, example: str) -> None:
    known = coverage(tokenizer, [text])
    assert known.unknown == pytest.approx(unknown)
    assert known.example == example


def test_the_share_is_over_all_texts() -> None:
    assert coverage(letters("<unk>"), ["abc", "渡", ""]).unknown == 1 / 4
    assert coverage(letters("<unk>"), []).unknown == 0


@pytest.mark.parametrize("text", ["渡轮七号从奥斯塔维亚启航。", "कोई नहीं", "“Où?” — 🦦 <|endoftext|>", "\x00\ufffd"])
def test_a_byte_level_tokenizer_knows_everything(text: str) -> None:
    assert coverage(fixtures.base_model().tokenizer, [text]).unknown == 0
