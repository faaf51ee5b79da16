"""The conformance suite, called as by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.conformance import suite
from bench.errors import BenchError

SKELETON = '''
from bench import Document, Method


class {name}(Method):
    """{doc}"""

    name = "{method}"
    paper = "none"

    def observe(self, document: Document) -> None:
        {body}
'''


def write(folder: Path, method: str, body: str = "pass", doc: str = "Does nothing.") -> str:
    path = folder / f"{method}.py"
    path.write_text(SKELETON.format(name=method.title().replace("_", ""), method=method, body=body, doc=doc))
    return str(path)


def test_a_file_is_checked_and_every_check_reports(tmp_path: Path) -> None:
    verdicts = list(suite.check(write(tmp_path, "does_nothing")))
    assert [verdict.check for verdict in verdicts] == ["declares_itself", *suite.CHECKS]
    assert all(verdict.passed and not verdict.skipped for verdict in verdicts)
    assert verdicts[0].line() == "pass  does_nothing  declares_itself"


def test_a_method_without_docstring_gets_no_further(tmp_path: Path) -> None:
    (verdict,) = suite.check(write(tmp_path, "silent", doc=""))
    assert not verdict.passed and "no docstring" in verdict.message


def test_a_method_that_skips_every_check_fails(tmp_path: Path) -> None:
    body = "pass\n\n    def __init__(self, lm, config=None, seed=0):\n        from bench.errors import BenchError\n"
    body += "        raise BenchError('install unobtainium')"
    *others, last = suite.check(write(tmp_path, "absent", body))
    assert all(o.passed for o in others) and sum(o.skipped for o in others) == len(suite.CHECKS) - 1
    assert "skip  absent  reset_forgets: install unobtainium" in [verdict.line() for verdict in others]
    assert last.line().startswith("FAIL  absent  is_tried_out: Every check was skipped")


def test_runs_are_not_compared_if_equal_ones_differ(tmp_path: Path) -> None:
    body = "self.lm.model.lm_head.weight.data += __import__('random').random()"
    verdicts = {o.check: o for o in suite.check(write(tmp_path, "by_chance", body))}
    assert not verdicts["same_seed_same_results"].passed
    assert all(verdicts[name].skipped for name in suite.COMPARING)


def test_an_error_of_the_method_names_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "breaks", "raise ValueError('no\\n   way.')")
    verdict = next(o for o in suite.check(file) if o.check == "observe_only_reads")
    line = Path(file).read_text().splitlines().index("        raise ValueError('no\\n   way.')") + 1
    assert verdict.message == f"ValueError: no way (breaks.py, line {line})."


def test_an_unknown_method_is_a_wrong_request() -> None:
    with pytest.raises(BenchError, match="no method called unifrom"):
        list(suite.check("unifrom"))


def test_a_missing_file_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is not a file"):
        list(suite.check(str(tmp_path / "none.py")))
