"""The text beside a figure: verdict, values with the digits that were read, differences and sources."""

from __future__ import annotations

import regex

from reports.board import build
from reports.reproduction import figure
from reports.reproduction.comparison import compare
from reports.reproduction.text import render
from tests.reports.records_factory import board, record, spec
from tests.reports.reproduction.planted import in_opposite_order, in_published_order, planted

TABLE = figure.read("table")
TINY = TABLE.runs("tiny")[0]


def text_of(built, runs):
    return render(compare(TABLE, "tiny", [(TINY, built)]))


def section(text, heading):
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_it_has_the_verdict_and_says_what_it_does_not_mean(tmp_path):
    verdict = section(text_of(in_opposite_order(tmp_path), tmp_path), "Verdict at the scale tiny")
    assert "Shapes of 24 published panels: sign differs (12), not resolved at this size (12)." in verdict
    line = next(line for line in verdict.splitlines() if "SQuAD, GPT2-Large" in line and "**" in line)
    assert "**sign differs** | -1.00 (95 % interval" in line and "sign differs (10)" in line
    assert "CMT above uniform by 7.48 in the paper, by -40" in verdict
    assert (
        "It does not say that anything was reproduced." in verdict and "reproduced" not in verdict.split("It does")[0]
    )


def test_published_values_have_the_digits_with_which_they_were_read(tmp_path):
    values = section(text_of(in_published_order(tmp_path), tmp_path), "Values")
    published = values.partition("Published, in percent:")[2].partition("EM (%)")[0]
    (line,) = [line for line in published.splitlines() if "StreamingQA, GPT2-Large" in line]
    assert line.endswith("| 7.00 | 8.54 | 10.60 | 13.31 | 13.43 |")
    numbers = regex.findall(r"\d+\.\d+", published.replace("GPT2", "").replace("Llama-2", ""))
    assert len(numbers) == 57 and all(len(number.partition(".")[2]) == 2 for number in numbers)
    assert "| world, tiny, 4 streams | 11.5 ± 2.1 | 21.5 ± 2.1 |" in values.partition("Published")[0]


def test_the_differences_and_every_source_are_under_it(tmp_path):
    text = text_of(in_published_order(tmp_path), tmp_path)
    differences = section(text, "Differences from the paper").strip().splitlines()
    assert [line.removeprefix("- ") for line in differences] == [*TABLE.differences]
    sources = section(text, "Sources of the published values")
    assert sources.count("\n- ") == 2 and "online.png" in sources and "seminar's slides" in sources
    assert "read on 2026-11-26" in sources and r"CaMeLS\* in the original: smaller proxy" in sources


def test_second_hand_values_say_so(tmp_path):
    context = figure.read("context-length")
    compared = compare(context, "tiny", [(context.runs("tiny")[0], in_published_order(tmp_path))])
    assert "second hand: quoted table" in section(render(compared), "Sources of the published values")


def test_a_relative_score_has_no_error_where_it_is_100_by_definition_alone(tmp_path):
    ids = []
    for k in range(2):
        for arm in ("stream", "irrelevant_50", "irrelevant_100"):
            ids.append(record(tmp_path, spec("cmt", f"test-4-{k}", arm=arm), [[0.5]] * 4, [3.0] * 4))
        ids.append(record(tmp_path, spec("closed_book", f"test-4-{k}"), [[0.0]] * 4, [3.0] * 4))
    board(tmp_path, ids)
    irrelevant = figure.read("irrelevant")
    text = render(compare(irrelevant, "tiny", [(irrelevant.runs("tiny")[0], build(tmp_path))]))
    assert "| CMT | 100.0 | 100.0 ± <0.1 | 100.0 ± <0.1 |" in text


def test_what_is_left_out_is_named(tmp_path):
    text = text_of(planted(tmp_path, {"uniform": 0.1, "cmt": 0.3}), tmp_path)
    assert "Left out here: salient spans (not run at this scale); CaMeLS (not run at this scale); MAC (not run" in text


def test_names_from_records_are_no_markup(tmp_path):
    ids = [record(tmp_path, spec("uniform", f"test-4-{k}", model="a|*b*"), [[0.5]] * 4, [2.0] * 4) for k in range(2)]
    board(tmp_path, ids)
    text = text_of(build(tmp_path), tmp_path)
    assert r"world, a\|\*b\*, 2 streams" in text and "a|*b*" not in text
