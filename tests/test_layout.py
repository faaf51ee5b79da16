"""The rooms stay apart: imports run one way, and nothing in the tree belongs to one machine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench
from bench.contract.registry import list_methods

ROOT = Path(__file__).parents[1]
SMALL = {
    "bench.errors",
    "bench.seeds",
    "bench.paths",
    "bench.files",
    "bench.declared",
    "bench.machine",
    "bench.hashing",
    "bench.settings",
    "bench.terminal",
}
"""The small files of bench, which every room may import; together they are the room ``bench``."""
MAY_IMPORT: dict[str, set[str]] = {
    "bench": set(),
    "bench.data": {"bench"},
    "bench.nano": {"bench"},
    "bench.lm": {"bench", "bench.data"},
    "bench.contract": {"bench", "bench.data", "bench.lm"},
    "bench.answering": {"bench", "bench.data", "bench.lm", "bench.contract"},
    "bench.records": {"bench", "bench.data", "bench.answering"},
}
"""The rooms that each room may import beside itself."""
MAY_IMPORT["bench.harness"] = {*MAY_IMPORT} - {"bench.nano"}
MAY_IMPORT["bench.conformance"] = {*MAY_IMPORT} - {"bench.nano", "bench.records"}
MAY_IMPORT["bench.run"] = {*MAY_IMPORT} - {"bench.conformance"}
MAY_IMPORT["bench.qa_tuning"] = {"bench", "bench.data", "bench.lm", "bench.contract", "bench.answering"}
MAY_IMPORT["bench.help"] = {*MAY_IMPORT}
MAY_IMPORT["methods.parts"] = {"bench", "bench.data", "bench.lm", "bench.contract", "bench.answering"}
MAY_IMPORT["methods"] = {*MAY_IMPORT["methods.parts"], "methods.parts"}
MAY_IMPORT["reports"] = {"bench", "bench.data", "bench.answering", "bench.records", "bench.help"}
MODULES = [path for top in ("bench", "methods", "reports") for path in sorted((ROOT / top).rglob("*.py"))]
WHOLE = {"answer_form", "browser", "changing_answers", "families", "language_modelling", "page"}
"""Tests of several modules of their room at once."""
UNTRACKED = {"runs", "out", "build", "dist", "__pycache__"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a module, by its dotted name; None for a module from outside the project."""
    if module in SMALL or module == "bench":
        return "bench"
    rooms = sorted((room for room in MAY_IMPORT if room != "bench"), key=len, reverse=True)
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file; a name taken from ``bench`` counts as its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()
                is_package = (ROOT / Path(*module.split("."))).is_dir()
                face = {**bench._HOMES, **bench._FOR_READERS}.get(alias.name) if node.module == "bench" else None
                yield face or (module if is_module or is_package else str(node.module))


def forbidden_imports(module: str, source: bytes) -> set[str]:
    """The imports of a module that its room must not have."""
    room = room_of(module)
    assert room is not None, f"{module} is in no room"
    imported = set(imported_modules(ast.parse(source)))
    tops = ("bench", "methods", "reports", "run_bench", "tests")
    project = {name for name in imported if name.split(".")[0] in tops}
    return {name for name in project if room_of(name) not in {room, *MAY_IMPORT[room]}}


def tracked() -> list[Path]:
    """The files that belong to the project: git's answer, or outside git all but hidden and generated ones."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [ROOT / path for path in found if not any(part[0] == "." or part in UNTRACKED for part in path.parts)]


@pytest.mark.parametrize("path", [path for path in MODULES if path != ROOT / "bench" / "__init__.py"], ids=module_of)
def test_imports_run_one_way(path: Path) -> None:
    assert forbidden_imports(module_of(path), path.read_bytes()) == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("bench.data.reader", "from bench.lm import base_model"),
        ("bench.data.reader", "from bench import Method"),
        ("bench.contract.method", "def f():\n    import bench.harness.loop"),
        ("bench.harness.loop", "from methods.parts.adapters import Adapter"),
        ("bench.errors", "from bench.data.reader import load_split"),
        ("bench.conformance.suite", "from bench.run.cell import run"),
        ("bench.run.cell", "from reports import statistics"),
        ("bench.run.cell", "from bench import load_results"),
        ("methods.uniform", "from bench import load_results"),
        ("methods.parts.words", "from methods.tfidf import Tfidf"),
        ("methods.uniform", "from bench.harness.loop import Loop"),
        ("reports.board", "from bench.run import runner"),
    ],
)
def test_a_forbidden_import_is_noticed(module: str, source: str) -> None:
    assert len(forbidden_imports(module, source.encode())) == 1


def test_no_two_rooms_import_each_other() -> None:
    edges = {
        (room_of(module_of(path)), room_of(name))
        for path in MODULES
        if path != ROOT / "bench" / "__init__.py"
        for name in imported_modules(ast.parse(path.read_bytes()))
        if room_of(name)
    }
    assert {pair for pair in edges if pair[0] != pair[1] and pair[::-1] in edges} == set()
    assert len(edges) > 30


def test_each_package_has_an_import_free_init_that_says_what_it_is_for() -> None:
    for room in MAY_IMPORT:
        folder = ROOT / Path(*room.split("."))
        tree = ast.parse((folder / "__init__.py").read_bytes())
        assert ast.get_docstring(tree), room
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = set(imported_modules(ast.Module(imports, [])))
        if room in ("bench", "reports"):  # faces, which load names on first use
            assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names, room
        else:
            assert modules == set(), room


def test_no_module_of_bench_knows_a_method() -> None:
    names = {word for info in list_methods() for word in (info.name, info.class_name)}
    assert len(names) >= 30
    mentions = {
        (str(path.relative_to(ROOT)), word)
        for path in MODULES
        if path.is_relative_to(ROOT / "bench")
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
        if word in names
    }
    assert mentions == set()


def test_tests_mirror_the_rooms() -> None:
    """Each folder of tests has a folder of the same name in the tree, and each file tests a module of that name."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        folder = path.parent.relative_to(ROOT / "tests")
        if folder.parts and folder.parts[0] in ("bench", "methods", "reports"):
            module = path.stem.removeprefix("test_")
            assert (ROOT / folder / f"{module}.py").is_file() or module in WHOLE, path


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
