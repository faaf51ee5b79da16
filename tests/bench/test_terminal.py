"""Text on a terminal."""

from __future__ import annotations

import unicodedata

from bench.terminal import visible


def test_no_control_character_but_newlines_and_tabs_is_left() -> None:
    everything = "".join(map(chr, [*range(0x3000), *range(0xE000, 0x11000)]))
    shown = visible(everything)
    assert len(shown) == len(everything), "one for one, so that columns stay aligned"
    assert {c for c in shown if unicodedata.category(c) == "Cc"} == {"\n", "\t"}
    assert not {c for c in shown if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "RLI", "LRI")}


def test_escape_sequences_show_as_text_and_other_text_is_kept() -> None:
    assert visible("\x1b[31mred\x07\r\x9b2J\x7f") == "␛[31mred␇␍�2J␡"
    assert visible("Ä 大阪 🙂 é\n\tx") == "Ä 大阪 🙂 é\n\tx"
