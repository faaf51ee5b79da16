"""Every registered method keeps the contract."""

from __future__ import annotations

import pytest

from bench.conformance import suite
from bench.contract import registry

METHODS = [info for info in registry.list_methods() if info.broken is None]


@pytest.mark.parametrize("check", ["declares_itself", *suite.CHECKS])
@pytest.mark.parametrize("info", METHODS, ids=lambda info: info.name)
def test_conforms(info: registry.MethodInfo, check: str) -> None:
    verdict = suite.examine(info, check)
    assert verdict.passed and not verdict.skipped, verdict.message
