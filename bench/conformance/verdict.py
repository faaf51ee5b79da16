"""The result of one check on one method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The result of one check on one method. A skipped check has passed; ``message`` says why it was skipped."""

    check: str
    method: str
    passed: bool
    skipped: bool = False
    message: str = ""

    def line(self) -> str:
        """The verdict on one line of a terminal."""
        verdict = "skip" if self.skipped else "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.method}  {self.check}" + (f": {self.message}" if self.message else "")
