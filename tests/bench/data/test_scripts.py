"""Characters of scripts without spaces are told apart from words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.data.scripts import characters_and_words, mostly_unspaced


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("灯塔建于1882年", ["灯", "塔", "建", "于", "1882", "年"]),
        ("iPhone手机 pro max", ["iPhone", "手", "机", "pro", "max"]),
        ("東京タワー", ["東", "京", "タ", "ワ", "ー"]),
        ("ไทย ok", ["ไ", "ท", "ย", "ok"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("서울 타워", ["서울", "타워"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("  two  words ", ["two", "words"]),
        ("", []),
    ],
)
def test_each_character_of_a_script_without_spaces_is_a_piece(text: str, pieces: list[str]) -> None:
    assert characters_and_words(text) == pieces


@given(st.text())
def test_nothing_but_spaces_is_lost(text: str) -> None:
    assert "".join(characters_and_words(text)) == "".join(text.split())


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["李安", "王芳", "Tarnov"], True),
        (["李安", "Tarnov"], False),
        (["1882年", "三十米"], True),
        (["iPhone手机", "李安 (Ang Lee)"], False),
        (["रमेश", "서울", "1882"], False),
        (["กรุงเทพ", "ミナト", "北京"], True),
        ([], False),
    ],
)
def test_answers_are_mostly_unspaced_if_most_of_them_are(texts: list[str], expected: bool) -> None:
    assert mostly_unspaced(texts) is expected
