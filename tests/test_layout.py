"""The rooms stay apart: imports point one way, and nothing in the tree belongs to one machine."""

import ast
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.contract.registry import list_methods

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "bench": {"methods", "reports", "run_bench", "tests"},
    "methods": {"reports", "run_bench", "tests"},
    "reports": {"methods", "run_bench", "tests"},
}
MODULES = [path for room in FORBIDDEN for path in sorted((ROOT / room).rglob("*.py"))]
MOST_LINES = 300
UNTRACKED = {"runs", "out", "build", "dist", "__pycache__"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def words(tree: ast.AST) -> Iterator[str]:
    """What a module says to the interpreter: its identifiers and its strings, docstrings aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.ClassDef):
            yield node.name


def tracked() -> list[Path]:
    """The files that belong to the project: git's answer, or outside git all but hidden and generated ones."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [ROOT / path for path in found if not any(part[0] == "." or part in UNTRACKED for part in path.parts)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_bytes()))}
    assert used & FORBIDDEN[room] == set()


def test_no_module_of_bench_knows_a_method() -> None:
    known = {word for info in list_methods() for word in (info.name, info.class_name)}
    assert len(known) >= 6
    found = {
        (path.name, word)
        for path in MODULES
        if path.is_relative_to(ROOT / "bench")
        for word in words(ast.parse(path.read_bytes()))
        if word in known
    }
    assert found == set()


def test_modules_stay_small() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in MODULES}
    assert {name: length for name, length in lengths.items() if length >= MOST_LINES} == {}


def test_the_datasets_folder_does_not_hide_hugging_face_datasets() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
    spec = importlib.util.find_spec("datasets")
    assert spec is not None and spec.origin is not None and not Path(spec.origin).is_relative_to(ROOT / "datasets")


def test_nothing_in_the_tree_belongs_to_one_machine() -> None:
    local = re.compile(
        rb"(?<![\w.])/(?:home|work|root|Users|mnt)/\w|\bfile://|"
        rb"(?:index-url|extra-index|pypi\.org|pythonhosted|download\.pytorch)"
    )
    own = Path(__file__).resolve()
    found = {}
    for path in tracked():
        content = path.read_bytes()
        if path != own and b"\0" not in content[:8192]:
            hits = [match[0].decode() for match in local.finditer(content)]
            if hits:
                found[str(path.relative_to(ROOT))] = hits[:3]
    assert found == {}
