"""The measurements on a GPU: the script runs on a CPU, with tiny shapes."""

from __future__ import annotations

import re

import pytest

from tests import gpu


def test_the_script_measures_every_method_on_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny"])
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\w+) \| [\d.]+ \| \d+ % \| [\d.]+ \| \S+$", printed, re.MULTILINE)
    assert rows == [*gpu.METHODS] * len(gpu.TINY)
    assert re.findall(r"^nano, .* with half of its layers [^:]*: (.*)$", printed, re.MULTILINE) == ["as they should"]
