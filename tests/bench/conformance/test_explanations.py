"""Every check is explained, and the examples of the explanations fail and pass it as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.conformance import suite
from bench.conformance.explanations import EXPLANATIONS, explain, overview
from bench.errors import BenchError
from tests.conftest import ROOT
from tests.snippets import as_method


def test_every_check_is_explained() -> None:
    assert list(EXPLANATIONS) == [*suite.NAMES, "is_tried_out"], "in the order of the verdicts"
    assert all(EXPLANATIONS[name].wrong and EXPLANATIONS[name].right for name in suite.NAMES)


def test_the_rules_that_checks_guard_exist() -> None:
    titles = {match[1] for match in re.finditer(r"^## (.*)$", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE)}
    for explanation in EXPLANATIONS.values():
        file, _, section = explanation.rule.partition(":")[0].partition(", ")
        assert (ROOT / file).is_file()
        assert section in titles if section else file == "bench/contract/method.py"


def test_the_overview_has_a_short_line_for_each() -> None:
    lines = overview().splitlines()
    assert [line.split()[0] for line in lines] == list(EXPLANATIONS)
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("name", suite.NAMES)
def test_the_wrong_example_fails_the_check_and_the_right_one_passes(name: str, tmp_path: Path) -> None:
    example = EXPLANATIONS[name]
    wrong, right = (
        suite.examine(as_method("\n\n".join(filter(None, (example.common, code))), example.base, tmp_path), name)
        for code in (example.wrong, example.right)
    )
    assert not wrong.passed, "the wrong example passes"
    assert right.passed and not right.skipped, right.message


def test_an_explanation_shows_the_rule_and_both_examples() -> None:
    text = explain("reset_forgets")
    example = EXPLANATIONS["reset_forgets"]
    assert text.startswith("reset_forgets\n") and example.rule in text and example.slip in text
    assert text.index("    def observe") < text.index("Wrong:") < text.index("Right:") < text.rindex("super().reset()")


def test_an_unknown_check_is_answered_with_all_names() -> None:
    with pytest.raises(BenchError, match="no check called 'reset_forgot'") as error:
        explain("reset_forgot")
    assert all(name in str(error.value) for name in EXPLANATIONS)
