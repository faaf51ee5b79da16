"""Examples of the documentation as methods: the body of a class, in a file with the imports that examples use."""

from __future__ import annotations

import itertools
import re
import textwrap
from pathlib import Path

from bench.contract import registry
from tests.conftest import ROOT

_numbers = itertools.count()


def imports() -> str:
    """The imports that CONTRIBUTING.md names for its examples."""
    match = re.search(r"<!-- imports -->\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def as_method(body: str, base: str, folder: Path) -> registry.MethodInfo:
    """A method with this body, in a new file. A body without ``observe`` gets one that does nothing.

    A body that is a whole class stays as it is.
    """
    file = folder / f"example_{next(_numbers)}.py"
    if "(Method):" not in body:
        head = f'class Example({base}):\n    """An example."""\n\n    name = "{file.stem}"\n    paper = "none"\n'
        if base == "Method" and "def observe(" not in body:
            body += "\n\ndef observe(self, document):\n    pass"
        body = f"{head}\n{textwrap.indent(body, '    ')}"
    file.write_text(f"import sys\n{imports()}\n\n{body}\n", encoding="utf-8")
    (info,) = registry.methods_in(file)
    return info
