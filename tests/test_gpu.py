"""The measurements on a GPU: the script runs on a CPU, with tiny shapes."""

from __future__ import annotations

import re

import pytest

from tests import gpu


def test_the_script_measures_every_method_on_every_shape(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--tiny"])
    rows = re.findall(r"^(\w+) \| [\d.]+ \| \d+ % \| [\d.]+ \| \S+$", capsys.readouterr().out, re.MULTILINE)
    assert rows == [*gpu.METHODS] * len(gpu.TINY)
