"""Registry of methods: those in ``methods/``, in installed packages (entry points), and in the user's plug-in files.

Methods are listed by reading their source, so that a listing imports neither torch nor anybody's code. A method is
imported when it is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, nearest
from bench.hashing import PACKAGES, module_name, package_root, parse
from bench.paths import ROOT, relative

if TYPE_CHECKING:
    from bench.contract.method import Method

GROUP = "online_adaptation_bench.methods"
"""Entry-point group in which an installed package offers methods (``module:Class``)."""

LEARNING_SPLITS = ("train", "qa_train")
"""The splits from which methods may learn offline."""

PLUGINS = "_plugins_"
"""How the names of packages begin that are made for plug-in files."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Pattern of a method's name."""


@dataclass(frozen=True)
class MethodInfo:
    """A method as described by its source. ``broken`` is the reason why it cannot be used, or None."""

    name: str
    summary: str
    """First line of the docstring."""
    paper: str
    """Citation key, or "none"."""
    control: bool
    """True for a control."""
    file: Path
    module: str
    class_name: str
    broken: str | None = None

    @property
    def source(self) -> str:
        """The file's path for people: relative to the project, else to the working folder."""
        return relative(self.file) or os.path.relpath(self.file)


def list_methods(plugins: Sequence[str | Path] = ()) -> list[MethodInfo]:
    """All methods, sorted by name. ``broken`` says why a method cannot be used.

    Raises:
        BenchError: two methods have one name, or a plug-in file does not exist or holds no method.
    """
    methods: dict[str, MethodInfo] = {}
    for info in _all_methods(plugins):
        other = methods.setdefault(info.name, info)
        if (other.file, other.class_name) != (info.file, info.class_name):
            raise BenchError(
                f"Two methods are called {info.name}: one in {other.source}, one in {info.source}. Rename one of them."
            )
    return [methods[name] for name in sorted(methods)]


def methods_in(file: str | Path) -> list[MethodInfo]:
    """The methods defined in one source file.

    Raises:
        BenchError: the file does not exist, or no class in it states a name.
    """
    path = Path(file).resolve()
    if not os.path.isfile(path):  # False for a name that is too long, too
        raise BenchError(f"{file} is not a file. Give the path of a Python file that defines a method.")
    if "." in path.stem:
        raise BenchError(f"{file} cannot be imported as a module. Rename it, without a dot before .py.")
    module = module_name(path)
    if package_root(path) != ROOT or module.split(".")[0] not in PACKAGES:
        module = f"{_plugin_package(package_root(path))}.{module}"
    methods = list(_read(path, module))
    if not methods:
        raise BenchError(f'{file} defines no method: no class in it states name = "...".')
    return methods


def find_method(name: str, plugins: Sequence[str | Path] = ()) -> MethodInfo:
    """The method called ``name``.

    Raises:
        BenchError: there is none; the message gives the nearest names.
    """
    methods = {info.name: info for info in list_methods(plugins)}
    if name not in methods:
        raise BenchError(
            f"There is no method called {name}.{nearest(name, methods)} One in a file of your own needs --plugin FILE."
        )
    return methods[name]


def load_method(name: str, plugins: Sequence[str | Path] = ()) -> type[Method]:
    """Import the method called ``name`` and return its class.

    Raises:
        BenchError: there is no such method, it cannot be imported, or its class breaks the contract.
    """
    return load(find_method(name, plugins))


def load(info: MethodInfo) -> type[Method]:
    """Import a listed method and return its class.

    Raises:
        BenchError: it cannot be imported, or its class breaks the contract.
    """
    where = f"The method {info.name} ({info.source})"
    if info.broken:
        raise BenchError(f"{where} cannot be used: {info.broken}")
    try:
        method: Any = getattr(_import(info), info.class_name, None)
    except (Exception, SystemExit) as error:
        raise BenchError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    from bench.contract.config import MethodConfig
    from bench.contract.method import Method

    if not (isinstance(method, type) and issubclass(method, Method)):
        raise BenchError(f"{where}: {info.class_name} is not a subclass of bench.Method.")
    if not NAME.fullmatch(info.name):
        raise BenchError(f"{where} has a bad name: use lower-case letters, digits and underscores.")
    if not method.__dict__.get("paper"):
        raise BenchError(f'{where} states no paper: add paper = "citation key", or paper = "none", to its class.')
    if not info.summary:
        raise BenchError(f"{where} has no docstring: say in a paragraph what it does and what it costs.")
    for name in ("sees_evidence", "control"):
        if not isinstance(inspect.getattr_static(method, name), bool):
            raise BenchError(f"{where} has a {name} that is not a constant: write True or False into its class.")
    if inspect.getattr_static(method, "learns_from") not in LEARNING_SPLITS:
        raise BenchError(
            f"{where} learns from {method.learns_from!r}: methods learn from {' or '.join(LEARNING_SPLITS)} only."
        )
    if not issubclass(method.Config, MethodConfig):
        raise BenchError(f"{where} has a Config that is no subclass of bench.MethodConfig: derive it.")
    for base in method.__mro__[1:]:
        fields = getattr(getattr(base, "Config", None), "model_fields", {})
        if lacking := sorted(fields.keys() - method.Config.model_fields):
            raise BenchError(f"{where} has a Config without {lacking[0]}: derive it from {base.__name__}.Config.")
    missing = sorted(getattr(method, "__abstractmethods__", ()))
    if missing:
        raise BenchError(f"{where} does not implement {', '.join(missing)}.")
    return method


def _all_methods(plugins: Sequence[str | Path]) -> Iterator[MethodInfo]:
    for file in sorted((ROOT / "methods").glob("*.py")):
        yield from _read(file, f"methods.{file.stem}")
    for entry in importlib.metadata.entry_points(group=GROUP):
        yield _from_entry_point(entry)
    for plugin in plugins:
        yield from methods_in(plugin)


def _from_entry_point(entry: importlib.metadata.EntryPoint) -> MethodInfo:
    """The method that an entry point names, found without importing its package."""
    top, *rest = entry.module.split(".")
    spec = _spec(top)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    candidates = [path for folder in folders for path in _module_files(folder.joinpath(*rest))]
    if spec and spec.origin and not rest:
        candidates.insert(0, Path(spec.origin))
    file = next((path.resolve() for path in candidates if os.path.isfile(path)), None)
    reason = f"the entry point {entry.value} names a module that does not exist."
    if file:
        for info in _read(file, entry.module):
            if info.class_name == entry.attr or info.broken:
                return info
        reason = f'{file.name} has no class {entry.attr} that states name = "..."; name the module that defines it.'
    return MethodInfo(entry.name, "", "none", False, file or Path(*entry.module.split(".")), entry.module, "", reason)


def _module_files(path: Path) -> tuple[Path, Path]:
    return path / "__init__.py", path.with_name(f"{path.name}.py")


def _read(file: Path, module: str) -> Iterator[MethodInfo]:
    """The classes of a file that state a name; if the file is not valid Python, one broken method with its name."""
    try:
        tree = parse(file)
    except BenchError as error:
        yield MethodInfo(file.stem, "", "none", False, file, module, "", str(error).replace(str(file), file.name))
        return
    broken = _missing_import(tree, file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            constants = dict(_constants(node))
            name = constants.get("name")
            if isinstance(name, str):
                summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
                paper = str(constants.get("paper", "none"))
                control = any(constants.get(flag) is True for flag in ("sees_evidence", "control"))
                yield MethodInfo(name, summary, paper, control, file, module, node.name, broken)


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, object]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets: Sequence[ast.expr] = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        if isinstance(statement.value, ast.Constant):
            yield from ((t.id, statement.value.value) for t in targets if isinstance(t, ast.Name))


def _missing_import(tree: ast.Module, file: Path) -> str | None:
    """The reason why the imports at the top of a file would fail, found without running them; None if there is none."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            if _spec(top) is None:
                beside = file.with_name(f"{top}.py").is_file()
                reason = f"is the file beside it: write from . import {top}" if beside else "is not installed"
                return f"it imports {top} (line {node.lineno}), which {reason}."
    return None


def _spec(top: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except ValueError:  # a module without a spec, such as __main__
        return None


def _import(info: MethodInfo) -> types.ModuleType:
    package = info.module.split(".")[0]
    if package == _plugin_package(package_root(info.file)) and package not in sys.modules:
        parent = types.ModuleType(package)
        parent.__path__ = [str(package_root(info.file))]
        sys.modules[package] = parent
    importlib.invalidate_caches()
    return importlib.import_module(info.module)


def line_of_method(error: BaseException) -> str | None:
    """The last line of a method's file that led to an error; None if it came from no method."""
    lines = [
        f"{frame.f_code.co_filename}, line {number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(("methods.", PLUGINS))
    ]
    return lines[-1] if lines else None


def _plugin_package(folder: Path) -> str:
    """Name of a package for one folder with plug-ins: relative imports work, and sys.path is not changed."""
    return f"{PLUGINS}{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
