"""The verdicts of the conformance suite on one method."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.conformance import suite
from bench.conformance.verdict import Verdict
from bench.contract import registry

SKELETON = '''
from bench import Document, Method


class {name}(Method):
    """{doc}"""

    name = "{method}"
    paper = "none"

    def observe(self, document: Document) -> None:
        {body}
'''


def write(folder: Path, method: str, body: str = "pass", doc: str = "Does nothing.") -> Path:
    path = folder / f"{method}.py"
    path.write_text(SKELETON.format(name=method.title().replace("_", ""), method=method, body=body, doc=doc))
    return path


def check(file: Path) -> list[Verdict]:
    (info,) = registry.methods_in(file)
    return list(suite.check_method(info))


def test_a_file_is_checked_and_every_check_reports(tmp_path: Path) -> None:
    verdicts = check(write(tmp_path, "does_nothing"))
    assert [verdict.check for verdict in verdicts] == ["declares_itself", *suite.CHECKS]
    assert all(verdict.passed and not verdict.skipped for verdict in verdicts)
    assert verdicts[0].line() == "pass  does_nothing  declares_itself"


def test_a_method_without_docstring_gets_no_further(tmp_path: Path) -> None:
    (verdict,) = check(write(tmp_path, "silent", doc=""))
    assert not verdict.passed and "no docstring" in verdict.message


def test_a_method_that_skips_every_check_fails(tmp_path: Path) -> None:
    body = "pass\n\n    def __init__(self, lm, config=None, seed=0):\n        from bench.errors import BenchError\n"
    body += "        raise BenchError('install unobtainium')"
    *others, last = check(write(tmp_path, "absent", body))
    assert all(o.passed for o in others) and sum(o.skipped for o in others) == len(suite.CHECKS) - 1
    assert "skip  absent  reset_forgets: install unobtainium" in [verdict.line() for verdict in others]
    assert last.line().startswith("FAIL  absent  is_tried_out: Every check was skipped")


def test_runs_are_not_compared_if_equal_ones_differ(tmp_path: Path) -> None:
    body = """self.lm.model.lm_head.weight.data += __import__("random").random()

    def flush(self):
        self.observe(None)

    def condition(self, questions):
        from bench import Conditioning

        text = [str(__import__("random").random()) for _ in questions]
        return Conditioning(text=text, weights=[0] * len(questions))

    def using(self, key):
        return __import__("contextlib").nullcontext()"""
    verdicts = {o.check: o for o in check(write(tmp_path, "by_chance", body))}
    assert [name for name, verdict in verdicts.items() if not verdict.passed] == ["same_seed_same_results"]
    assert all(verdicts[name].skipped for name in suite.COMPARING)


def test_an_error_of_the_method_names_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "breaks", "raise ValueError('no\\n   way.')")
    verdict = next(o for o in check(file) if o.check == "observe_only_reads")
    line = file.read_text().splitlines().index("        raise ValueError('no\\n   way.')") + 1
    assert verdict.message == f"ValueError: no way (breaks.py, line {line})."


@pytest.mark.parametrize(
    ("hook", "note"),
    [
        ("reset(self)", ""),
        ("observe(self, document)", " This happened on an empty text."),
        ("flush(self)", " This happened while the questions were answered."),
        ("condition(self, questions)", " This happened while the questions were answered."),
    ],
)
def test_an_error_names_the_odd_document_on_which_it_happened(tmp_path: Path, hook: str, note: str) -> None:
    body = f"pass\n\n    def {hook}:\n        raise ValueError('no')"
    file = write(tmp_path, f"breaks_in_{hook.partition('(')[0]}", body)
    (info,) = registry.methods_in(file)
    verdict = suite.examine(info, "reads_odd_documents")
    assert verdict.message == f"ValueError: no ({file.name}, line {len(file.read_text().splitlines())}).{note}"
