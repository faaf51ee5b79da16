"""The hash of a method's code changes if a number could change, and only then; results are cached by content."""

import ast
import csv
import os
from pathlib import Path

import pydantic
import pytest

from bench import hashing
from bench.errors import BenchError
from bench.hashing import CachedByContent, body_hash, cached_by_content, closure, code_hash, path_hash
from bench.paths import ROOT

PROJECT = {
    "bench/__init__.py": '__version__ = "1"\n_HOMES = {"Method": "bench.method", "Other": "bench.other"}\n',
    "bench/method.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import bench.unused\nclass Method: x = 1\n"
    ),
    "bench/other.py": "OTHER = 1\n",
    "bench/unused.py": "UNUSED = 1\n",
    "bench/maths.py": "from bench import deep\ndef area(r): return deep.PI * r * r\n",
    "bench/deep.py": "PI = 3\n",
    "methods/__init__.py": "",
    "methods/plain.py": "from bench import Method\nclass Plain(Method): pass\n",
    "methods/clever.py": (
        "import json\nfrom bench import Method\nfrom methods.plain import Plain\n"
        "class Clever(Plain):\n    def observe(self):\n        from bench.maths import area\n        return area(2)\n"
    ),
    "elsewhere/mine.py": "from bench import Method\nfrom . import helper\nfrom .helper import x\nimport bench.deep\n",
    "elsewhere/helper.py": "x = 1\n",
}


class Project:
    """A small project of the same layout, whose files can be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in PROJECT.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(text)

    def hash(self, name: str) -> str:
        """The hash in a new process."""
        hashing._sources.clear()
        code_hash.cache_clear()
        return code_hash(self.root / name)

    def hash_with(self, name: str, changed: str, text: str) -> str:
        """The hash of ``name`` while another file reads ``text``."""
        before = (self.root / changed).read_text()
        (self.root / changed).write_text(text)
        try:
            return self.hash(name)
        finally:
            (self.root / changed).write_text(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(hashing, "ROOT", tmp_path)
    return Project(tmp_path)


def test_comments_docstrings_and_layout_do_not_count(project: Project) -> None:
    text = '"""About."""\nfrom bench import (\n    Method,  # the base\n)\n\n\nclass Plain(Method):\n    """It."""\n'
    assert project.hash_with("methods/plain.py", "methods/plain.py", text) == project.hash("methods/plain.py")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ("methods/clever.py", PROJECT["methods/clever.py"].replace("area(2)", "area(3)")),
        ("methods/plain.py", PROJECT["methods/plain.py"].replace("pass", "y = 1")),
        ("bench/method.py", PROJECT["bench/method.py"].replace("x = 1", "x = 2")),
        ("bench/maths.py", PROJECT["bench/maths.py"].replace("r * r", "r + r")),
        ("bench/deep.py", "PI = 4\n"),
    ],
)
def test_a_change_anywhere_along_the_imports_counts(project: Project, changed: str, text: str) -> None:
    assert project.hash_with("methods/clever.py", changed, text) != project.hash("methods/clever.py")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ("bench/other.py", "OTHER = 2\n"),  # only Method is imported from bench
        ("bench/unused.py", "UNUSED = 2\n"),  # imported for the type checker
        ("bench/__init__.py", PROJECT["bench/__init__.py"].replace('"1"', '"2"')),  # a new version of the project
    ],
)
def test_code_that_is_not_imported_does_not_count(project: Project, changed: str, text: str) -> None:
    assert project.hash_with("methods/clever.py", changed, text) == project.hash("methods/clever.py")


def test_importing_a_whole_package_counts_everything_in_it(project: Project) -> None:
    before = project.hash_with("methods/plain.py", "methods/plain.py", "import bench\n")
    (project.root / "bench/other.py").write_text("OTHER = 2\n")
    assert project.hash_with("methods/plain.py", "methods/plain.py", "import bench\n") != before


def test_a_plugin_counts_with_its_neighbours_and_the_harness(project: Project) -> None:
    before = project.hash("elsewhere/mine.py")
    assert project.hash_with("elsewhere/mine.py", "elsewhere/helper.py", "x = 2\n") != before
    assert project.hash_with("elsewhere/mine.py", "bench/deep.py", "PI = 4\n") != before


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('WORDS = Path(__file__).with_name("words.txt").read_text()', ["words.txt"]),
        ('WORDS = (Path(__file__).parent / "words.txt").read_text()', ["words.txt"]),
        ('WORDS = open(os.path.join(os.path.dirname(__file__), "lists/words.tsv"))', ["lists/words.tsv"]),
        ('WORDS = open(f"{FOLDER}/words.txt")', ["words.txt"]),
        ('WORDS = (Path(__file__).parent / "lists" / "words.tsv").read_text()', ["lists/words.tsv"]),
        ('NAMES = ["words.txt", "lists/words.tsv"]', ["words.txt", "lists/words.tsv"]),
        ("class A:\n    def f(self): return 'LICENCE'", ["LICENCE"]),
        ('"""Reads words.txt."""', []),
        ('"words.txt"', []),  # a bare string
        ('X = "other.txt", "lists", ".", "", "/", "..", "words.txt\\n", "\\0", "mine.py", "x" * 3', []),
        (f"X = {'long' * 5000!r}", []),
    ],
)
def test_data_files_that_a_source_names_count(project: Project, source: str, names: list[str]) -> None:
    data = ["words.txt", "lists/words.tsv", "LICENCE", "unnamed.txt"]
    for name in data:
        (project.root / "elsewhere" / name).parent.mkdir(exist_ok=True)
        (project.root / "elsewhere" / name).write_text("one two")
    (project.root / "elsewhere/helper.py").write_text(source)
    before, body = project.hash("elsewhere/mine.py"), body_hash([project.root / "elsewhere/helper.py"])
    for name in data:
        (project.root / "elsewhere" / name).write_text("one three")
        assert (project.hash("elsewhere/mine.py") != before) == (name in names), name
        assert (body_hash([project.root / "elsewhere/helper.py"]) != body) == (name in names), name
        (project.root / "elsewhere" / name).write_text("one two")


def test_a_package_from_elsewhere_counts_as_a_whole(project: Project) -> None:
    (project.root / "theirs").mkdir()
    (project.root / "theirs/__init__.py").write_text("")
    (project.root / "theirs/a.py").write_text("from theirs.b import y\n")
    (project.root / "theirs/b.py").write_text("y = 1\n")
    assert project.hash_with("theirs/a.py", "theirs/b.py", "y = 2\n") != project.hash("theirs/a.py")


@pytest.mark.parametrize(("place", "counts"), [("src", True), ("lib/site-packages", False)])
def test_a_package_that_a_plugin_imports_counts_unless_it_is_installed(
    project: Project,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    counts: bool,
) -> None:
    folder = tmp_path_factory.mktemp("theirs") / place
    for package, start in (("tools", "from tools.core import f\n"), ("loose", None)):
        (folder / package).mkdir(parents=True)
        (folder / package / "core.py").write_text("def f(): return 1\n")
        if start is not None:
            (folder / package / "__init__.py").write_text(start)
    plugin = tmp_path_factory.mktemp("mine") / "thin.py"
    plugin.write_text("import torch\nfrom tools import f\nfrom loose.core import f as g\n")
    monkeypatch.syspath_prepend(str(folder))
    hashing._place_of.cache_clear()
    before = project.hash(str(plugin))
    for package in ("tools", "loose"):
        (folder / package / "core.py").write_text("def f(): return 2\n")
        assert (project.hash(str(plugin)) != before) == counts
        (folder / package / "core.py").write_text("def f(): return 1\n")
    assert project.hash(str(plugin)) == before
    hashing._place_of.cache_clear()


def test_the_location_of_the_project_does_not_count(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project.hash("methods/clever.py")
    other = Project(tmp_path_factory.mktemp("copy"))
    monkeypatch.setattr(hashing, "ROOT", other.root)
    assert other.hash("methods/clever.py") == here


def test_fields_that_other_python_versions_add_or_omit_do_not_count() -> None:
    older = ast.parse("def f(x): return x")
    newer = ast.parse("def f(x): return x")
    assert isinstance(newer.body[0], ast.FunctionDef)
    newer.body[0].type_params = []  # type: ignore[attr-defined]  # as Python 3.12 has it
    newer.body[0]._fields = (*ast.FunctionDef._fields, "type_params")
    assert hashing._plain(newer) == hashing._plain(older)


def test_values_that_look_alike_differ() -> None:
    texts = ["x = 1", "x = 1.0", "x = True", "x = '1'", "x = None", "def f(): return", "def f(): return None"]
    assert len({repr(hashing._plain(ast.parse(text))) for text in texts}) == len(texts)


def test_the_hash_of_a_class_is_that_of_its_file() -> None:
    assert hashing.method_hash(Project) == code_hash(Path(__file__))


def test_a_file_that_is_missing_or_not_python_is_named_with_the_line(project: Project) -> None:
    with pytest.raises(BenchError, match=r"nowhere\.py cannot be read"):
        project.hash("methods/nowhere.py")
    with pytest.raises(BenchError, match=r"deep\.py, line 2"):
        project.hash_with("methods/clever.py", "bench/deep.py", "PI = 3\nPI = = 4\n")


def test_a_body_stays_the_same_when_it_or_what_it_imports_is_renamed(project: Project) -> None:
    clever, plain = (project.root / "methods" / name for name in ("clever.py", "plain.py"))
    before = body_hash([clever, plain])
    text = clever.read_text().replace("methods.plain", "methods.simple").replace("bench.maths", "bench.geometry")
    moved = [clever.with_name("bright.py"), plain.rename(plain.with_name("simple.py"))]
    moved[0].write_text(text.replace("from bench import Method", "from .. import Method"))
    assert body_hash(moved) == before
    hashing._sources.clear()
    moved[0].write_text(text.replace("import json", "import csv"))
    assert body_hash(moved) != before, "an import from outside the project is part of the body"
    moved[0].write_text(text.replace("area(2)", "area(3)"))
    hashing._sources.clear()
    assert body_hash(moved) != before


def test_a_change_that_is_declared_keeps_the_hashes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    area = project.root / "bench" / "maths.py"
    before, body = project.hash("methods/clever.py"), body_hash([area])
    earlier = hashing.own_hashes(area)
    area.write_text("from bench import deep, shape\ndef area(r): return r * r * deep.PI\n")
    shape = project.root / "bench" / "shape.py"
    shape.write_text("SIDES = 4\n")
    hashing._sources.clear()
    pairs = zip(hashing.own_hashes(area), earlier, strict=True)
    declared = {("bench.maths", now): then for now, then in pairs}
    declared |= dict.fromkeys([("bench.shape", own) for own in hashing.own_hashes(shape)], "")
    assert project.hash("methods/clever.py") != before and body_hash([area]) != body
    monkeypatch.setattr(hashing, "declared", lambda: declared)
    assert project.hash("methods/clever.py") == before and body_hash([area, shape]) == body
    for name in ("maths.py", "shape.py"):
        text = (project.root / "bench" / name).read_text()
        assert project.hash_with("methods/clever.py", f"bench/{name}", f"{text}MORE = 1\n") != before, name


def test_what_is_declared_is_the_present_code() -> None:
    """A row that is not of the present code does nothing: replace its hash, or delete it if the change may count."""
    rows = list(csv.DictReader(hashing.SAME_NUMBERS.read_text().splitlines()))
    for row in rows:
        file = ROOT.joinpath(*row["module"].split(".")).with_suffix(".py")
        assert row["hash"] in hashing.own_hashes(file), row["module"]
        assert row["hash"] != row["counts_as"] and row["change"], row["module"]
    assert len({(row["module"], row["hash"]) for row in rows}) == len(rows)


def test_code_that_was_edited_since_it_was_read_is_refused(project: Project) -> None:
    file, part = project.root / "methods/clever.py", project.root / "bench/deep.py"
    project.hash("methods/clever.py")
    hashing.check_current([file])
    os.utime(part, (1, 1))
    part.write_text(part.read_text() + "# a comment\n")
    hashing.check_current([file])
    part.write_text("PI = 4\n")
    with pytest.raises(BenchError, match=r"bench/deep.py has changed since this process read it\. Start Python again"):
        hashing.check_current([file])


def test_a_folder_counts_with_the_folders_that_it_links_to(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "weights").write_text(version)
    (tmp_path / "model").mkdir()
    link = tmp_path / "model" / "part"
    link.symlink_to(tmp_path / "one")
    before = path_hash(tmp_path / "model")
    (tmp_path / "one" / "again").symlink_to(tmp_path / "model")  # a loop
    link.unlink()
    link.symlink_to(tmp_path / "two")
    assert path_hash(tmp_path / "model") != before
    link.unlink()
    link.symlink_to(tmp_path / "one")
    assert path_hash(tmp_path / "model") == before


def test_a_closure_can_be_limited(project: Project) -> None:
    start = project.root / "methods" / "clever.py"
    everything = closure(start)
    assert {path.name for path in everything} == {"clever.py", "plain.py", "method.py", "maths.py", "deep.py"}
    inside = closure(start, lambda path: path.parent.name == "methods")
    assert {path.name for path in inside} == {"clever.py", "plain.py"}


class Settings(pydantic.BaseModel):
    rate: float
    names: dict[str, list[str]] = {}


@pytest.fixture
def calls() -> list[tuple[object, ...]]:
    """The calls of the function that is cached."""
    return []


@pytest.fixture
def cached(calls: list[tuple[object, ...]]) -> CachedByContent[..., object]:
    """A function that returns a new object for each call, with a cache of two results."""

    @cached_by_content(2)
    def function(*args: object, **kwargs: object) -> object:
        """The function."""
        calls.append((*args, kwargs))
        return object()

    return function


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, {"a": 1, "b": [3]}),
        (Settings(rate=0.1, names={"x": ["y"]}), Settings(rate=0.1, names={"x": ["y"]}), Settings(rate=0.2)),
        ({"a": (1, 2)}, {"a": [1, 2]}, {"a": [2, 1]}),
        ("é", "é", "e"),
    ],
)
def test_results_are_cached_by_the_content_of_the_arguments(
    cached: CachedByContent[..., object], one: object, same: object, other: object
) -> None:
    assert cached(one, key=one) is cached(same, key=same)
    assert cached(one, key=one) is not cached(other, key=one)
    assert cached(one, key=one) is not cached(one, key=other)


def test_the_result_that_was_used_last_stays_and_the_oldest_goes(
    cached: CachedByContent[..., object], calls: list[tuple[object, ...]]
) -> None:
    first, second = cached(1), cached(2)
    assert cached(1) is first, "now 2 is the oldest"
    cached(3)
    assert cached(1) is first
    assert cached(2) is not second
    assert len(calls) == 4


def test_a_cleared_cache_calls_again(cached: CachedByContent[..., object], calls: list[tuple[object, ...]]) -> None:
    first = cached(1)
    cached.cache_clear()
    assert cached(1) is not first
    assert len(calls) == 2


def test_a_call_that_fails_is_not_cached() -> None:
    ready: list[int] = []

    @cached_by_content(2)
    def function() -> int:
        return ready[0]

    with pytest.raises(IndexError):
        function()
    ready.append(1)
    assert function() == 1


def test_a_cached_function_keeps_its_name_and_docstring(cached: CachedByContent[..., object]) -> None:
    assert (cached.__name__, cached.__doc__) == ("function", "The function.")  # type: ignore[attr-defined]
