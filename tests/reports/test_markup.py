"""Texts from records cannot do anything in Markdown, LaTeX and CSV but be shown."""

from __future__ import annotations

import csv
import io
import re
import string

import pytest
from markdown_it import MarkdownIt

from bench.terminal import visible
from reports.markup import ampersands, latex, markdown, pipes, spreadsheet

HOSTILE = (
    r"a|b \| c\\| d\\",
    "<b>bold</b> <script>alert(1)</script> <!-- x --> </table> a < b, <0.001",
    "![x](https://example.org/x.png) [y](javascript:alert(1)) [z][y] <https://example.org>",
    "*a* **b** _c_ __d__ `e` ~~f~~ snake_case_name",
    "&lt;b&gt; &#60; &copy; A & B",
    "# one\n\n- two\r\n> three\n    four\n| x | y |\n| --- | --- |\n",
    "\x1b[2J\x07 tab\there \u202eback",
    "=1+1",
    r"\input{secret} \write18{touch x} ^^5cinput 100% #1 $x_1$ {} ~ ^",
    string.punctuation,
)


def shown(text: str) -> str:
    """The text as a reader should see it: on one line, with visible control characters."""
    return visible(" ".join(text.split()))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("mark", ["", "*", "**"])
def test_a_text_in_a_markdown_table_is_one_cell_and_reads_as_it_is(text: str, mark: str) -> None:
    page = "\n".join([pipes(["a", "b"]), pipes(["---", "---:"]), pipes([text, "end"], [mark])])
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    assert [token.type for token in tokens].count("tr_open") == 2
    cells = [token.children or [] for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert "".join(child.content for child in cells[2]) == shown(text)
    emphasis = {"": set(), "*": {"em_open", "em_close"}, "**": {"strong_open", "strong_close"}}[mark]
    assert {child.type for child in cells[2]} - {"text", "text_special"} == emphasis


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_in_markdown_is_one_paragraph_or_heading(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"Note: {markdown(text)}\n")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children or []) == f"Note: {shown(text)}"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("salient_spans (lr=50%)", r"salient\_spans (lr=\allowbreak{}50\%)"),
        ("0.5 ± <0.001", r"0.5 $\pm$ $<$0.001"),
        ("-0.1 ± 0.2", r"$-$0.1 $\pm$ 0.2"),
        ("1e-05 well-known", "1e-05 well-known"),
        (r"a\b{c}^~&#$", r"a\textbackslash{}b\{c\}\textasciicircum{}\textasciitilde{}\&\#\$"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("[imported] *", "{[}imported] {*}"),
        ("a\x1b\n\tb\xa0c", "a   b c"),
    ],
)
def test_latex_is_escaped(text: str, escaped: str) -> None:
    assert latex(text) == escaped


@pytest.mark.parametrize("text", HOSTILE)
def test_no_character_keeps_its_meaning_in_latex(text: str) -> None:
    words = (
        r"\\text(?:backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]|\$(?:\\pm|[<>|-])\$|\{[\[*]\}|=\\allowbreak\{\}"
    )
    rest = re.sub(words, "", ampersands([text]).removesuffix(r" \\"))
    assert not {*r"\&%$#_{}~^[*"} & {*rest} and rest.isprintable()


def test_a_row_of_a_latex_table_can_have_bold_cells() -> None:
    assert ampersands(["a_1", "b", ""], [True, False]) == r"\textbf{a\_1} & b &  \\"


def test_a_text_is_no_formula_in_a_spreadsheet_and_a_number_stays_one() -> None:
    formulas = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "=cmd|' /C calc'!A0"]
    harmless = ["a=1", "'=1", "", "\u22121", " x", '"=1"', "a,b\n=1", "a\r=1"]
    row = {f"text {place}": text for place, text in enumerate([*formulas, *harmless])}
    written = spreadsheet([{"=key": -0.25, "count": -3, "none": None, "flag": True, **row}])
    (read,) = csv.DictReader(io.StringIO(written, newline=""))
    assert list(read.values()) == [
        "-0.25",
        "-3",
        "",
        "True",
        *(f"'{text}".replace("\r", "\n") for text in formulas),
        *harmless[:-1],
        "a\n=1",
    ]
    assert next(iter(read)) == "'=key"
