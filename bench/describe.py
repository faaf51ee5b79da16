"""What a method, data set or experiment is, in words: for ``run_bench.py describe``."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench import experiment, recipe, registry
from bench.errors import BenchError, nearest

if TYPE_CHECKING:
    from rich.console import RenderableType


def describe(name: str, plugins: Sequence[str] = ()) -> RenderableType:
    """A description to print.

    Raises:
        BenchError: nothing has that name (with the nearest names).
    """
    methods = [info.name for info in registry.list_methods(plugins)]
    if name in methods:
        return _method(name, plugins)
    if name in recipe.known():
        return _fields(recipe.find(name).model_dump(exclude_none=True))
    if name in experiment.known():
        return _fields(experiment.load(name).model_dump(exclude_none=True))
    known = [*methods, *recipe.known(), *experiment.known()]
    raise BenchError(f"Nothing is called {name!r}.{nearest(name, known)}")


def _method(name: str, plugins: Sequence[str]) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    method = registry.load_method(name, plugins)
    info = registry.find_method(name, plugins)
    table = Table("setting", "type", "default", "bounds", "tuned over", "meaning", box=None, padding=(0, 2, 0, 0))
    for key, field in method.Config.model_fields.items():
        kind = getattr(field.annotation, "__name__", str(field.annotation)) if field.annotation else ""
        shown = kind if "Literal" not in str(field.annotation) else str(field.annotation)
        for noise in ("typing.", "Literal"):
            shown = shown.replace(noise, "")
        bounds = ", ".join(
            f"{symbol} {getattr(item, attribute)}"
            for item in field.metadata
            for attribute, symbol in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if getattr(item, attribute, None) is not None
        )
        grid = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in method.grid.get(key, ()))
        row = (key, shown, str(field.default), bounds, grid, field.description or "")
        table.add_row(*map(escape, row))
    head = f"[bold]{name}[/bold]  ({escape(info.source)}; paper: {escape(method.paper)})"
    control = ["Control: it is given the document that answers each question."] if method.sees_evidence else []
    settings = [table] if method.Config.model_fields else ["It has no settings."]
    return Group(head, escape(inspect.getdoc(method) or ""), *control, "", *settings)


def _fields(values: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()
