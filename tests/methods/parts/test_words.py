"""Words: those of the usual pattern where words have spaces between them, and pairs of characters where not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import Document, Question
from bench.conformance import fixtures
from methods.bm25 import Bm25
from methods.parts.words import find_words, words

CASES = Path(__file__).parents[2] / "cases" / "data"
LATIN = st.text(st.characters(max_codepoint=0x2FF), max_size=30)


@given(LATIN | st.lists(st.sampled_from(["Mill", "x", "naïve", "1983", "snake_case", "—", "can't"])).map(" ".join))
def test_latin_words_are_those_of_the_usual_pattern(text: str) -> None:
    expected = [(match[0].lower(), *match.span()) for match in re.finditer(r"\b\w\w+\b", text)]
    assert [tuple(word) for word in find_words(text)] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("घड़ी किसने बनाई?", "घड़ी किसने बनाई"),
        ("বাংলা ভাষা", "বাংলা ভাষা"),
        ("தமிழ் மொழி", "தமிழ் மொழி"),
        ("مُحَمَّد كتب الكتاب", "مُحَمَّد كتب الكتاب"),
        ("שָׁלוֹם לך", "שָׁלוֹם לך"),
        ("Cafe\u0301s, Ἀθῆναι; Москва", "cafe\u0301s ἀθῆναι москва"),
        ("안녕하세요 세계", "안녕하세요 세계"),
        ("灯塔由谁设计？", "灯塔 塔由 由谁 谁设 设计"),
        ("谁？在 3 楼", "谁 在 楼"),
        ("iPhone手机 1882年", "iphone 手机 1882 年"),
        ("カメラを買う人々", "カメ メラ ラを を買 買う う人 人々"),
        ("コーヒー", "コー ーヒ ヒー"),
        ("ที่ไหน", "ที่ไ ไห หน"),
        ("ລາວ", "ລາ າວ"),
        ("មាន", "មាន"),
        ("မြန်မာ", "မြန် န်မာ"),
        ("", ""),
        ("\u0301\u094d 🛳️👩\u200d🔬 、。", ""),
    ],
)
def test_words_of_many_scripts(text: str, expected: str) -> None:
    assert words(text) == expected.split()
    assert all(text[start:end].lower() == word for word, start, end in find_words(text))


THAI = [
    ("ประภาคารสร้างโดยสมชาย", "ใครสร้างประภาคาร"),
    ("ตลาดปลาเปิดทุกวันพุธ", "ตลาดปลาเปิดวันไหน"),
    ("เรือแดงชื่อนกนางนวล", "เรือแดงชื่ออะไร"),
]
JAPANESE = [
    ("灯台は李さんが設計した。", "灯台は誰が設計したか。"),
    ("赤い船の名前はカモメだ。", "赤い船の名前は何か。"),
    ("魚市場は水曜日に開く。", "魚市場はいつ開くか。"),
]
BURMESE = [
    ("မီးပြတိုက်ကို ကိုအောင်ဆောက်သည်", "မီးပြတိုက်ကို ဘယ်သူဆောက်သလဲ"),
    ("ငါးဈေးသည် ဗုဒ္ဓဟူးနေ့ဖွင့်သည်", "ငါးဈေး ဘယ်နေ့ဖွင့်သလဲ"),
    ("လှေနီ၏အမည်မှာ ဇင်ယော်ဖြစ်သည်", "လှေနီ၏အမည်က ဘာလဲ"),
]
TAMIL = [
    ("கலங்கரை விளக்கத்தை முருகன் கட்டினார்.", "கலங்கரை விளக்கத்தை யார் கட்டினார்?"),
    ("மீன் சந்தையை சீதா நடத்துகிறார்.", "மீன் சந்தையை யார் நடத்துகிறார்?"),
    ("சிவப்பு படகின் பெயர் அன்னம்.", "சிவப்பு படகின் பெயர் என்ன?"),
]


def squad(name: str) -> list[tuple[str, str]]:
    articles = json.loads((CASES / f"{name}.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    return [(paragraph["context"], paragraph["qas"][0]["question"]) for paragraph in paragraphs]


@pytest.mark.parametrize("pairs", [squad("zh_six"), squad("hi_six"), THAI, JAPANESE, BURMESE, TAMIL])
def test_bm25_finds_each_question_s_document(pairs: list[tuple[str, str]]) -> None:
    method = Bm25(fixtures.base_model())
    method.reset()
    for i, (text, _) in enumerate(pairs):
        method.observe(Document(str(i), text))
    ranks = method.rank([Question("q", question) for _, question in pairs])
    assert [list(rank) for rank in ranks] == [[i] for i in range(len(pairs))]


@pytest.mark.parametrize(
    "text", ["x" * 300_000, "灯" * 100_000, "\u0301" * 300_000, "a_" * 100_000, "灯\u0301 " * 80_000]
)
def test_long_runs_take_linear_time(text: str) -> None:
    start = time.process_time()
    words(text)
    assert time.process_time() - start < 5
