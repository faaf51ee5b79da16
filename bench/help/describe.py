"""Descriptions of methods, datasets, experiments and base models, for ``run_bench.py describe``."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from bench import paths
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.search import Range
from bench.data import recipe
from bench.errors import BenchError, nearest
from bench.help import citations
from bench.run import experiment
from bench.settings import dotted

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.console import RenderableType

SUFFIXES = (".py", ".yaml", ".yml")
"""Endings of plug-ins and experiments."""


def describe(name: str, plugins: Sequence[str] = ()) -> RenderableType:
    """The description of what has this name, or of what is at this path, for rich to print.

    A path leads to a dataset, a base model, or plug-ins (their folder), or to a plug-in or an experiment (a file).

    Raises:
        BenchError: there is nothing of that name, with the nearest names; or what is there cannot be used.
    """
    methods = method_names(plugins)
    if name in methods:
        return _method(registry.find_method(name, plugins))
    if name in paths.datasets():
        return _dataset(recipe.find(name))
    if name in paths.experiments():
        return _experiment(name)
    if name in (models := paths.models()):
        return _base_model(paths.MODELS / name)
    if os.path.exists(name):  # False for a name that is too long, too
        return _at(Path(name), plugins)
    if os.sep in name or Path(name).suffix in SUFFIXES:
        raise BenchError(f"There is no file or folder {name}. Correct the path, or give a name that list shows.")
    names = [*methods, *paths.datasets(), *paths.experiments(), *models]
    raise BenchError(f"No method, dataset, experiment or base model is named {name!r}.{nearest(name, names)}")


def method_names(plugins: Sequence[str | Path] = ()) -> list[str]:
    """The names of all methods."""
    return [info.name for info in registry.list_methods(plugins)]


def method_settings(name: str, plugins: Sequence[str | Path] = ()) -> list[str]:
    """The settings of a method, by their dotted names."""
    from bench.contract.method import validate_config

    return list(dotted(validate_config(registry.load_method(name, plugins), {}).model_dump()))


def _at(path: Path, plugins: Sequence[str]) -> RenderableType:
    """The description of what is in a folder or a file."""
    folder = path.parent if path.name in (paths.RECIPE, *paths.BASES) else path
    if os.path.isfile(folder / paths.RECIPE):
        return _dataset(recipe.read(folder))
    if any(os.path.isfile(folder / kind) for kind in paths.BASES):
        return _base_model(folder)
    if path.suffix in SUFFIXES[1:]:
        return _experiment(str(path))
    if path.suffix == ".py":
        return _plug_ins([path], plugins)
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.py")) if _defines_a_method(file)]
        if files:
            return _plug_ins(files, plugins)
        raise BenchError(
            f"{path} has neither a {paths.RECIPE} (a dataset), nor a {paths.CONFIG} (a base model), nor a Python file "
            f"that defines a method. Name a folder that has one of them."
        )
    raise BenchError(f"{path} cannot be described: give a plug-in (.py) or an experiment (.yaml).")


def _defines_a_method(file: Path) -> bool:
    try:
        return bool(registry.methods_in(file))
    except BenchError:
        return False


def _plug_ins(files: Sequence[Path], plugins: Sequence[str]) -> RenderableType:
    """The descriptions of all methods in some files. One that cannot be used is named, unless it is the only one."""
    from rich.console import Group
    from rich.markup import escape

    registry.list_methods([*plugins, *files])  # fails if two methods have one name
    infos = [info for file in files for info in registry.methods_in(file)]
    parts: list[RenderableType] = []
    for info in infos:
        try:
            parts += [_method(info), ""]
        except BenchError as error:
            if len(infos) == 1:
                raise
            parts += [escape(str(error)), ""]
    return Group(*parts[:-1])


def _method(info: registry.MethodInfo) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding

    from bench.contract.method import validate_config

    method = registry.load(info)
    parts: list[RenderableType] = [f"[bold]{info.name}[/bold]  ({escape(info.source)})"]
    if method.sees_evidence:
        parts.append("Control: with each question it receives the document that answers it.")
    if method.control:
        parts.append("Control: it breaks a rule of the benchmark on purpose.")
    paragraphs = (inspect.getdoc(method) or "").split("\n\n")  # joined: their lines are as wide as the source
    parts.append(escape("\n\n".join(" ".join(text.split()) for text in paragraphs)))
    parts += [escape(citations.sentence(method.paper)), "", "Settings (change one with --set method.key=value):"]
    config = validate_config(method, {})
    space = method.search_space(config)
    for key, field, value in _settings(config):
        default = "null" if value is None else str(value)
        parts.append(f"  [bold]{key}[/bold] = {escape(default)}   {escape(_range(field))}")
        tuned = f"tuned over {_values(space[key])}" if key in space else ""
        parts.append(Padding(escape("; ".join(filter(None, (field.description, tuned)))), (0, 0, 0, 6)))
    return Group(*parts) if method.Config.model_fields else Group(*parts[:-1], "It has no settings.")


def _experiment(name: str) -> RenderableType:
    """Everything that an experiment states or leaves at its default; of the prompt, only what is not the default."""
    stated = experiment.load(name)
    values = stated.model_dump(exclude_none=True)
    values["prompt"] = stated.prompt.model_dump(exclude_defaults=True)
    return _fields({key: value for key, value in values.items() if key != "prompt" or value})


def _dataset(data: recipe.Recipe) -> RenderableType:
    """The recipe, and the streams that are frozen."""
    counts = Counter(path.stem.rpartition("-")[0] for path in (data.folder / "streams").glob("*.json"))
    frozen = ", ".join(f"{count} of {name}" for name, count in sorted(counts.items()))
    streams = frozen or "none: they are drawn when a run needs them"
    return _fields(data.model_dump(exclude_none=True), {**_place(data.folder), "frozen streams": streams})


def _base_model(folder: Path) -> RenderableType:
    """The sizes of a base model, after the check of its files that every run makes; its weights are not loaded.

    Raises:
        BenchError: it cannot be used as a base, or is not there.
    """
    from transformers import AutoConfig

    from bench.lm import checkpoint

    whole = checkpoint.locate(str(folder))
    checkpoint.check(whole)
    config = AutoConfig.from_pretrained(whole, trust_remote_code=False)
    parameters = checkpoint.parameter_count(whole)
    sizes = {
        "window": next((getattr(config, name) for name in checkpoint.POSITIONS if hasattr(config, name)), None),
        "vocabulary": getattr(config, "vocab_size", None),
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden size": getattr(config, "hidden_size", None),
    }
    embedded = folder.resolve().parent == paths.MODELS
    name = folder.name if embedded else _place(folder)["folder"]
    return _fields(
        {"architecture": ", ".join(config.architectures or [type(config).__name__]), "parameters": parameters},
        {name: size for name, size in sizes.items() if isinstance(size, int)},
        {**_place(folder), **({} if whole == folder else {"weights": str(whole)})},
        {"use": f"{paths.PROGRAM} run EXPERIMENT --model {name}"},
    )


def _place(folder: Path) -> dict[str, str]:
    """The folder of a dataset or a base model as it is shown to people, and its card, if it has one."""
    shown = paths.relative(folder.resolve()) or str(folder)
    return {"folder": shown, "card": f"{shown}/README.md"} if (folder / "README.md").is_file() else {"folder": shown}


def _values(values: Range | Sequence[Any]) -> str:
    """A range, or the choices, in words."""
    return str(values) if isinstance(values, Range) else ", ".join(map(str, values))


def _settings(config: MethodConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Name, field and default of every setting; the name is dotted for a setting in a group."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, MethodConfig):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, field, value


def _range(field: FieldInfo) -> str:
    """The allowed values of a setting: its choices or their pattern, or its type with the bounds."""
    kind = field.annotation
    kinds = [_kind(choice) for choice in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,))]
    limits = [
        f"{symbol} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, symbol in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(item, attribute, None) is not None
    ]
    return " ".join([" or ".join(kinds).replace("NoneType", "null"), *limits])


def _kind(annotation: Any) -> str:
    """A type in words: choices, a pattern (a regular expression), or the name."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    for item in getattr(annotation, "__metadata__", ()):
        if pattern := getattr(item, "pattern", None):
            return str(pattern).strip("^$")
    return getattr(annotation, "__name__", str(annotation))


def _fields(*groups: dict[str, Any]) -> str:
    """Named values as YAML, for rich to print."""
    import yaml
    from rich.markup import escape

    values = {key: value for group in groups for key, value in group.items()}
    return escape(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip())
