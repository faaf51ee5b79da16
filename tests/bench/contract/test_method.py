"""The example in the contract's docstring runs, and keeps the contract."""

import doctest

from bench.contract import method


def test_the_example_in_the_docstring_runs() -> None:
    result = doctest.testmod(method)
    assert result.attempted >= 6 and result.failed == 0
