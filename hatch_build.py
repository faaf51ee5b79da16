"""The layout of a wheel: what a clone holds, in one folder, and a .pth file that puts the folder on the path.

What finds files in a clone thus finds them in a wheel, and ``datasets/`` does not lie beside Hugging Face's package of
that name. pyproject.toml names the folders; this hook adds the single files, which an editable installation must not
copy.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "online_adaptation_bench"


class Layout(BuildHookInterface):  # type: ignore[type-arg]
    """Adds single files to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, unless the ``version`` of the wheel is an editable one."""
        if version == "standard":
            build_data["force_include"] |= {name: f"{FOLDER}/{name}" for name in ("run_bench.py", "CITATIONS.bib")}
            build_data["force_include"][f"{FOLDER}.pth"] = f"{FOLDER}.pth"
