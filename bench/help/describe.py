"""Descriptions of methods, datasets and experiments, for ``run_bench.py describe``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from bench import paths
from bench.contract import registry
from bench.contract.config import MethodConfig
from bench.contract.search import Range
from bench.data import recipe
from bench.errors import BenchError, nearest
from bench.run import experiment

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.console import RenderableType


def describe(name: str, plugins: Sequence[str] = ()) -> RenderableType:
    """The description of a method, dataset or experiment, for rich to print.

    Raises:
        BenchError: nothing has that name; the message gives the nearest names.
    """
    methods = [info.name for info in registry.list_methods(plugins)]
    if name in methods:
        return _method(name, plugins)
    if name in paths.datasets():
        return _fields(recipe.find(name).model_dump(exclude_none=True))
    if name in paths.experiments():
        return _fields(experiment.load(name).model_dump(exclude_none=True))
    names = [*methods, *paths.datasets(), *paths.experiments()]
    raise BenchError(f"No method, dataset or experiment is named {name!r}.{nearest(name, names)}")


def _method(name: str, plugins: Sequence[str]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.padding import Padding

    method = registry.load_method(name, plugins)
    info = registry.find_method(name, plugins)
    parts: list[RenderableType] = [f"[bold]{name}[/bold]  ({escape(info.source)}; paper: {escape(method.paper)})"]
    if method.sees_evidence:
        parts.append("Control: with each question it receives the document that answers it.")
    paragraphs = (inspect.getdoc(method) or "").split("\n\n")  # joined: their lines are as wide as the source
    parts.append(escape("\n\n".join(" ".join(text.split()) for text in paragraphs)))
    parts += ["", "Settings (change one with --set method.key=value):"]
    space = method.search_space(method.Config())
    for key, field, value in _settings(method.Config()):
        default = "null" if value is None else str(value)
        parts.append(f"  [bold]{key}[/bold] = {escape(default)}   {escape(_range(field))}")
        meaning = (field.description or "") + (f"; tuned over {_values(space[key])}" if key in space else "")
        parts.append(Padding(escape(meaning), (0, 0, 0, 6)))
    return Group(*parts) if method.Config.model_fields else Group(*parts[:-1], "It has no settings.")


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
    """The allowed values of a setting: its choices, or its type with the bounds."""
    choices = get_args(field.annotation)
    if get_origin(field.annotation) is Literal:
        return " | ".join(map(str, choices))
    kinds = [getattr(kind, "__name__", str(kind)) for kind in choices or (field.annotation,)]
    limits = [
        f"{symbol} {getattr(item, attribute)}"
        for item in field.metadata
        for attribute, symbol in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if getattr(item, attribute, None) is not None
    ]
    return " ".join([" or ".join(kinds).replace("NoneType", "null"), *limits])


def _fields(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()
