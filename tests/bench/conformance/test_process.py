"""The conformance suite in a child process, as the command line runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.conformance import process, suite
from bench.errors import BenchError
from tests.conftest import ROOT
from tests.world import started, wait_until

BAD_METHODS = ROOT / "tests" / "conformance" / "bad_methods"
CHECK = [sys.executable, str(ROOT / "run_bench.py"), "check"]


def write(folder: Path, method: str, first_line: str, body: str = "pass") -> Path:
    path = folder / f"{method}.py"
    path.write_text(
        f"{first_line}\nfrom bench import Document, Method\n\n\n"
        f'class Plugin(Method):\n    """Has one fault."""\n\n    name = "{method}"\n    paper = "none"\n\n'
        f"    def observe(self, document: Document) -> None:\n        {body}\n"
    )
    return path


def test_a_method_that_ends_the_process_fails_every_check_that_is_missing() -> None:
    file = BAD_METHODS / "ends_the_process.py"
    ended = subprocess.run([*CHECK, str(file)], capture_output=True, text=True, timeout=300)
    lines = ended.stdout.splitlines()
    assert ended.returncode == 1 and f"{file} does not conform" in ended.stderr
    assert lines[:3] == [
        "pass  exits_at_once  declares_itself",
        "pass  exits_at_once  config_is_sound",
        "FAIL  exits_at_once  observe_only_reads: "
        "The method ended the process (exit code 0): it must raise an error instead.",
    ]
    assert lines[3:] == [
        f"FAIL  exits_at_once  {name}: Not checked, since the process had ended." for name in suite.NAMES[3:]
    ]


def test_so_does_one_that_ends_it_when_it_is_imported(tmp_path: Path) -> None:
    file = write(tmp_path, "ends_early", "__import__('os')._exit(0)")
    verdicts = list(process.check(str(file)))
    assert [verdict.check for verdict in verdicts] == [*suite.NAMES]
    assert not any(verdict.passed for verdict in verdicts)
    assert verdicts[0].message == "The method ended the process (exit code 0): it must raise an error instead."


def test_a_change_made_when_the_method_is_imported_counts(tmp_path: Path) -> None:
    patch = "from bench.answering import metrics; score = metrics.score; metrics.score = lambda *answer: score(*answer)"
    file = write(tmp_path, "patches_at_import", patch)
    verdict = next(one for one in process.check(str(file)) if one.check == "base_is_restored")
    assert not verdict.passed and "bench.answering.metrics.score was replaced" in verdict.message


def test_an_unknown_method_is_a_wrong_request() -> None:
    with pytest.raises(BenchError, match="no method called unifrom"):
        list(process.check("unifrom"))


def test_a_missing_file_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is not a file"):
        list(process.check(str(tmp_path / "none.py")))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_an_interrupt_ends_the_check_and_its_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"open({str(pid)!r}, 'w').write(str(__import__('os').getpid())); __import__('time').sleep(600)"
    command = [*CHECK, str(write(tmp_path, "sleeps", "", body))]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as check:
        assert check.stdout is not None
        assert [check.stdout.readline() for _ in range(2)] == [
            "pass  sleeps  declares_itself\n",
            "pass  sleeps  config_is_sound\n",
        ]
        wait_until(lambda: pid.exists() and pid.read_text())
        os.killpg(check.pid, signal.SIGINT)
        _, errors = check.communicate(timeout=60)
    assert check.returncode == 130
    assert "Traceback" not in errors and "Interrupted" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
