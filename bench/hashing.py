"""What a piece of code is: a hash of its syntax and of the project code that it imports.

Comments, docstrings, blank lines and imports for type checkers do not count, and the hash is the same on every machine
and Python version. Only imports that are written as statements are followed (anywhere in the file).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.paths import ROOT

PACKAGES = ("bench", "methods")
"""The packages under ROOT whose modules count; for code from outside, its own package counts as well."""


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_hash(file: Path) -> str:
    """SHA-256 (hexadecimal) of a source file and of every project module it imports, directly or not.

    Each file is read once per process, so the hash describes the code as it was when first asked for.

    Raises:
        BenchError: the file or a module that it imports is missing or not valid Python.
    """
    lines = sorted(f"{module_name(path)} {_read(path).digest}" for path in closure(file))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def body_hash(files: Iterable[Path]) -> str:
    """SHA-256 (hexadecimal) of what source files say, whatever they are called and which project modules they import.

    Raises:
        BenchError: as :func:`code_hash`.
    """
    return hashlib.sha256("\n".join(sorted(_read(path.resolve()).body for path in files)).encode()).hexdigest()


def closure(file: Path, within: Callable[[Path], bool] = lambda _: True) -> list[Path]:
    """A source file and the project modules that it imports, directly or through others of those ``within``.

    Raises:
        BenchError: as :func:`code_hash`.
    """
    pending, found = [file.resolve()], []
    while pending:
        path = pending.pop()
        if path not in found:
            found.append(path)
            pending.extend(imported for imported in _imported(path, _read(path)) if within(imported))
    return found


def method_hash(method: type) -> str:
    """:func:`code_hash` of the file that defines a class."""
    try:
        return code_hash(Path(inspect.getfile(method)))
    except (OSError, TypeError):
        raise BenchError(f"The source of {method.__name__} cannot be found; define it in a file.") from None


def package_root(file: Path) -> Path:
    """The folder from which ``file`` would be imported: the first one upwards that is not a package itself."""
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
        BenchError: it is missing, unreadable or not valid Python; the message names the line.
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
    """``from <level dots><module> import <name>``; without a name ``import <module>``."""

    level: int
    module: tuple[str, ...]
    name: str | None


@dataclass(frozen=True)
class _Source:
    digest: str
    body: str
    """The digest without the imports of project modules."""
    imports: tuple[_Import, ...]
    homes: Mapping[str, str]
    """Of a package that loads names on first use: where each lives (its literal ``_HOMES``)."""


@cache
def _read(path: Path) -> _Source:
    tree = _Essential().visit(parse(path))
    imports, homes, digest = tuple(_imports(tree)), _homes(tree), _digest(tree)
    root = package_root(path)
    project = {*PACKAGES, *(path.relative_to(root).parts[:1] if root != path.parent else ())}
    return _Source(digest, _digest(_Unimporting(project).visit(tree)), imports, homes)


def _digest(tree: ast.AST) -> str:
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()


class _Essential(ast.NodeTransformer):
    """Drops what cannot change a number: strings that stand alone, ``pass``, and ``if TYPE_CHECKING`` blocks."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        return node.orelse if name == "TYPE_CHECKING" else node


class _Unimporting(ast.NodeTransformer):
    """Drops the imports of these packages, and relative ones."""

    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def visit_Import(self, node: ast.Import) -> ast.Import | None:
        node.names = [alias for alias in node.names if alias.name.split(".")[0] not in self.packages]
        return node if node.names else None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        return None if node.level or (node.module or "").split(".")[0] in self.packages else node


def _plain(node: object) -> object:
    """A tree as nested tuples without empty fields (which fields a node has differs between Python versions)."""
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


def _imported(path: Path, source: _Source) -> Iterator[Path]:
    """The project files behind the import statements of ``path``."""
    for imported in source.imports:
        if imported.level:
            folder = path.parents[imported.level - 1]
        else:
            own = package_root(path)
            inside = own != path.parent and imported.module[0] == path.relative_to(own).parts[0]
            if not inside and imported.module[0] not in PACKAGES:
                continue
            folder = own if inside else ROOT
        if imported.name is not None and (submodule := _locate(folder, (*imported.module, imported.name))):
            yield submodule
        elif module := _locate(folder, imported.module):
            homes = _read(module).homes
            if imported.name not in homes:
                yield module
            names = homes.values() if imported.name in (None, "*") else [homes.get(imported.name or "")]
            for home in filter(None, names):
                if located := _locate(package_root(module), tuple(home.split("."))):
                    yield located


def _locate(folder: Path, module: tuple[str, ...]) -> Path | None:
    path = folder.joinpath(*module)
    candidates = [path / "__init__.py"] + ([path.with_name(f"{path.name}.py")] if module else [])
    return next((candidate for candidate in candidates if candidate.is_file()), None)
