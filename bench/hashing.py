"""Hashes of data and of code. The hash of code covers its syntax, the project code that it imports, and its data files.

Comments, docstrings, blank lines and imports for type checkers do not count. The hash is the same on every machine and
Python version. Only import statements are followed, anywhere in the file: those of project modules, and from code
outside the project also those of packages that are no part of the installation, such as one that is being worked on. A
data file of a source file is a file in its folder, or below, that its strings name.

A change that cannot change a number would give new keys to all records, and ask for new trained weights. Such changes
are declared in ``bench/same_numbers.csv``: code with a hash that stands there counts by the hash of earlier code.
"""

from __future__ import annotations

import ast
import csv
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from bench.errors import BenchError
from bench.paths import ROOT, relative

P = ParamSpec("P")
T = TypeVar("T")

PACKAGES = ("bench", "methods")
"""The packages under ROOT whose modules count. For code from elsewhere, its own package counts as well."""
LOOP = ROOT / "bench" / "harness" / "loop.py"
"""The file that imports all of the harness that can change a number."""
SAME_NUMBERS = (ROOT / "bench" / "same_numbers").with_suffix(".csv")  # a string with its name would make it hashed
"""By module and hash of its present code, the hash that it ``counts_as``, none for a new module, and the ``change``."""
INSTALLED = ("site-packages", "dist-packages")
"""Names of the folders of installed packages."""


def content(value: Any) -> str:
    """Plain data and pydantic models as JSON text, the same text for the same content."""
    return json.dumps(value, sort_keys=True, default=lambda model: model.model_dump(mode="json"))


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of plain data and pydantic models."""
    return hashlib.sha256(content(value).encode()).hexdigest()


class CachedByContent(Generic[P, T]):
    """A function that caches its last results by the content of its arguments, which need not be hashable."""

    def __init__(self, function: Callable[P, T], size: int) -> None:
        functools.update_wrapper(self, function)
        self._function, self._size = function, size
        self._results: dict[str, T] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        key = content([args, kwargs])
        result = self._results.pop(key) if key in self._results else self._function(*args, **kwargs)
        self._results[key] = result  # the newest last
        if len(self._results) > self._size:
            del self._results[next(iter(self._results))]
        return result

    def cache_clear(self) -> None:
        """Drop all results."""
        self._results.clear()


def cached_by_content(size: int) -> Callable[[Callable[P, T]], CachedByContent[P, T]]:
    """Decorate a function of plain data and pydantic models to cache the ``size`` results that were used last."""
    return lambda function: CachedByContent(function, size)


LARGE = 2**20
"""Bytes above which the hash of a file is kept: a small one is soon read, and may change within a tick of its times."""


def path_hash(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's content, or of the names and contents of all files under a folder.

    Raises:
        BenchError: there is no such file or folder, or it cannot be read.
    """
    try:
        if path.is_dir():
            files = files_under(path)
            return digest([[file.relative_to(path).as_posix(), path_hash(file)] for file in files])
        state = path.stat()
        hashed = _file_hash if state.st_size > LARGE else _file_hash.__wrapped__
        return hashed(path.absolute(), (state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}.") from None


def files_under(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted, also those in linked folders, each of which is entered once."""
    entered, files = set(), []
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        files += [file for name in names if (file := Path(place, name)).is_file()]
    return sorted(files)


@functools.lru_cache(maxsize=1024)
def _file_hash(path: Path, state: tuple[int, int, int]) -> str:
    """The hash of a file; ``state``, its size and times, tells whether it is still the one that was read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def code_hash(file: Path) -> str:
    """SHA-256 (hexadecimal) of a source file, the project modules that it imports in turn, and their data files.

    It is computed once per process, since every cell has it in its key: it describes the files as they were then.

    Raises:
        BenchError: the file or a module that it imports is missing or not valid Python.
    """
    files = closure(file, lambda path: bool(_counted(path, "digest")))  # nor what is imported for it alone
    lines = sorted(f"{module_name(path)} {_counted(path, 'digest')}" for path in files)
    lines += sorted(path_hash(data) for path in files for data in _data_files(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_current(files: Iterable[Path]) -> None:
    """Check that the code of source files and their imports is what this process has read, and may have imported.

    Raises:
        BenchError: one of them was edited since.
    """
    for path in dict.fromkeys(itertools.chain.from_iterable(map(closure, files))):
        known = _read(path)
        if not path.is_file() or (path.stat().st_mtime_ns != known.written and _parsed(path).digest != known.digest):
            raise BenchError(
                f"{relative(path) or path} has changed since this process read it. Start Python again (in a notebook, "
                f"the kernel), and run the experiment again: it runs only what is missing."
            )


def body_hash(files: Iterable[Path]) -> str:
    """SHA-256 (hexadecimal) of the code and data files of source files, without names and imports of project modules.

    Raises:
        BenchError: as :func:`code_hash`.
    """
    paths = [path for path in (file.resolve() for file in files) if _counted(path, "body")]
    lines = sorted(_counted(path, "body") for path in paths)
    lines += sorted(path_hash(data) for path in paths for data in _data_files(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def own_hashes(file: Path) -> tuple[str, str]:
    """The hashes of a source file alone that count in :func:`code_hash` and in :func:`body_hash`, if none is declared.

    Raises:
        BenchError: as :func:`code_hash`.
    """
    source = _read(file.resolve())
    return source.digest, source.body


def _counted(path: Path, kind: Literal["digest", "body"]) -> str:
    """The hash of a source file or the one that it counts as; "" for a new module that changes no number."""
    own: str = getattr(_read(path), kind)
    return declared().get((module_name(path), own), own)


@functools.cache
def declared() -> Mapping[tuple[str, str], str]:
    """What is declared in :data:`SAME_NUMBERS`: from a module and a hash of its code to the hash that it counts as."""
    rows = csv.DictReader(SAME_NUMBERS.read_text(encoding="utf-8").splitlines())
    return {(row["module"], row["hash"]): row["counts_as"] for row in rows}


def closure(file: Path, within: Callable[[Path], bool] = lambda _: True) -> list[Path]:
    """A source file and the project modules that it imports, directly or indirectly, as far as ``within`` allows.

    Raises:
        BenchError: as :func:`code_hash`.
    """
    pending, files = [file.resolve()], []
    while pending:
        path = pending.pop()
        if path not in files:
            files.append(path)
            pending.extend(module for module in _imported_files(path, _read(path)) if within(module))
    return files


def method_hash(method: type) -> str:
    """:func:`code_hash` of the file that defines a class."""
    try:
        return code_hash(Path(inspect.getfile(method)))
    except (OSError, TypeError):
        raise BenchError(f"The source of {method.__name__} cannot be found; define it in a file.") from None


def package_root(file: Path) -> Path:
    """The folder from which ``file`` would be imported: the first folder above it that is not a package."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def module_name(file: Path) -> str:
    """The dotted name under which ``file`` would be imported from its :func:`package_root`."""
    parts = file.relative_to(package_root(file)).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(file: Path) -> ast.Module:
    """The syntax tree of a source file.

    Raises:
        BenchError: the file is missing, unreadable or not valid Python; the message names the line.
    """
    try:
        return ast.parse(file.read_bytes(), file.name)
    except OSError as error:
        raise BenchError(f"{file} cannot be read: {error.strerror}.") from None
    except SyntaxError as error:
        raise BenchError(f"{file}, line {error.lineno}: {error.msg}.") from None
    except ValueError as error:
        raise BenchError(f"{file} is not Python source: {error}.") from None


@dataclass(frozen=True)
class _Import:
    """``from <level dots><module> import <name>``, or ``import <module>`` if there is no name."""

    level: int
    module: tuple[str, ...]
    name: str | None


@dataclass(frozen=True)
class _Source:
    digest: str
    body: str
    """The digest without the imports of project modules."""
    imports: tuple[_Import, ...]
    strings: frozenset[str]
    """Its strings of one line, any of which may name a data file."""
    homes: Mapping[str, str]
    """For a package that loads names on first use, the module of each name (its literal ``_HOMES``)."""
    written: int
    """When the file was written, in nanoseconds."""


_sources: dict[Path, _Source] = {}


def _read(path: Path) -> _Source:
    if path not in _sources:
        _sources[path] = _parsed(path)
    return _sources[path]


def _parsed(path: Path) -> _Source:
    written = path.stat().st_mtime_ns if path.is_file() else 0
    tree = _Essential().visit(parse(path))
    imports, homes, digest = tuple(_imports(tree)), _homes(tree), _digest(tree)
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    strings = frozenset(text for text in constants if isinstance(text, str) and "\n" not in text)
    root = package_root(path)
    project = {*PACKAGES, *(path.relative_to(root).parts[:1] if root != path.parent else ())}
    body = _digest(_Unimporting(project).visit(tree))
    return _Source(digest, body, imports, strings, homes, written)


def _data_files(path: Path) -> list[Path]:
    """The files in the folder of a source file, or below, that its strings name; modules count by their imports.

    A string may name the file by its path or, beside one that names a folder, by its name alone.
    """
    strings = {text.strip("/") for text in _read(path).strings}  # f"{folder}/words.txt"
    named = {path.parent / text for text in strings}
    below = [path.parent / text for text in strings if Path(text).parts and ".." not in Path(text).parts]
    named |= {file for folder in filter(os.path.isdir, below) for file in folder.rglob("*") if file.name in strings}
    return sorted(file for file in named if os.path.isfile(file) and file.suffix != ".py")  # False for a text too long


def _digest(tree: ast.AST) -> str:
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


class _Essential(ast.NodeTransformer):
    """Drops code that cannot change a number: bare strings, ``pass``, and ``if TYPE_CHECKING`` blocks."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_string else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        return node.orelse if name == "TYPE_CHECKING" else node


class _Unimporting(ast.NodeTransformer):
    """Drops imports of the given packages, and relative imports."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def visit_Import(self, node: ast.Import) -> ast.Import | None:
        node.names = [alias for alias in node.names if alias.name.split(".")[0] not in self.packages]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.level or (node.module or "").split(".")[0] in self.packages else node


def _plain(node: object) -> object:
    """A tree as nested tuples without empty fields, because the fields of a node differ between Python versions."""
    if isinstance(node, ast.AST):
        fields = ((name, _plain(value)) for name, value in ast.iter_fields(node) if name != "kind")
        return (type(node).__name__, *sorted((name, value) for name, value in fields if value not in (None, ())))
    if isinstance(node, list):
        return tuple(_plain(item) for item in node)
    return node if node is None else repr(node)


def _imports(tree: ast.AST) -> Iterator[_Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_Import(0, tuple(alias.name.split(".")), None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            yield from (_Import(node.level, module, alias.name) for alias in node.names)


def _homes(tree: ast.Module) -> Mapping[str, str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "_HOMES" for target in node.targets):
            homes: Mapping[str, str] = ast.literal_eval(node.value)
            return homes
    return {}


def _imported_files(path: Path, source: _Source) -> Iterator[Path]:
    """The project files that the import statements of ``path`` load."""
    for item in source.imports:
        if item.level:
            folder = path.parents[item.level - 1]
        else:
            own, package = package_root(path), item.module[0]
            inside = own != path.parent and package == path.relative_to(own).parts[0]
            place = own if inside else ROOT if package in PACKAGES else None
            if place is None and not path.is_relative_to(ROOT):
                place = _place_of(package)
            if place is None:
                continue
            folder = place
        if item.name is not None and (submodule := _locate(folder, (*item.module, item.name))):
            yield submodule
        elif module := _locate(folder, item.module):
            homes = _read(module).homes
            if item.name not in homes:
                yield module
            names = homes.values() if item.name in (None, "*") else [homes.get(item.name or "")]
            for home in filter(None, names):
                if file := _locate(package_root(module), tuple(home.split("."))):
                    yield file


@functools.cache
def _place_of(package: str) -> Path | None:
    """The folder from which a package is imported; None for an installed one, and for one that is not there."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.has_location and spec.origin:
        place = package_root(Path(spec.origin))
    else:  # a folder without __init__.py, or built into Python
        place = next((Path(folder).parent for folder in spec.submodule_search_locations or ()), ROOT)
    standard = Path(sysconfig.get_path("stdlib")).resolve()
    known = any(place.resolve().is_relative_to(folder) for folder in (standard, ROOT))
    return None if known or any(name in place.parts for name in INSTALLED) else place


def _locate(folder: Path, module: tuple[str, ...]) -> Path | None:
    path = folder.joinpath(*module)
    candidates = [path / "__init__.py"] + ([path.with_name(f"{path.name}.py")] if module else [])
    return next((candidate for candidate in candidates if candidate.is_file()), None)
