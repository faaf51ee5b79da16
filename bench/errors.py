"""Errors that the user sees as one or two sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import pydantic


class BenchError(Exception):
    """A wrong request (bad name, bad file, bad key): the message names it and the remedy. Exit code 2."""


class RunError(Exception):
    """A run that failed although the request was right. Exit code 1."""


class Diverged(RunError):
    """A loss or a state became NaN or infinite. In a run, the cell is recorded as diverged."""


def text_of(error: BaseException) -> str:
    """The error's message, or a word about one that cannot be shown, as UTF-8 can hold it."""
    try:
        text = str(error)
    except Exception:
        return "(its message cannot be shown)"
    return text.encode(errors="replace").decode()


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message: " Did you mean ...?" with the names most like ``name``, else a list of all names."""
    names = sorted({*names})
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(names)}." if names else ""


def first_problem(error: pydantic.ValidationError, model: type[pydantic.BaseModel], prefix: str = "") -> str:
    """The first problem that pydantic found in values for ``model``, as a sentence: key, scalar value, what is wrong.

    Unknown keys come first, with the nearest known ones: a misspelt key explains the other problems. The dotted key
    begins with ``prefix``, e.g. the name of a method.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, value, message = first["type"], first["input"], first["msg"].removeprefix("Value error, ")
    location = [part for part in first["loc"] if part != "[key]"]
    key = ".".join(map(str, [prefix, *location] if prefix else location))
    if kind == "extra_forbidden":
        return f"{key}: unknown key.{nearest(str(location[-1]), _keys(model, location[:-1]))}"
    if kind in ("model_type", "dict_type"):  # pydantic's message names the class
        message = "Input should be a mapping"
    if kind in ("list_type", "tuple_type") and isinstance(value, str | int | float):
        message = f"Input should be a list, as in [{value}]"
    if kind == "string_type" and isinstance(value, int | float):  # as YAML reads no, yes and numbers
        message = "Input should be text: put it in quotes"
    if location and kind != "missing" and "[key]" not in first["loc"] and isinstance(value, str | int | float | None):
        key = f"{key} = {value!r}"
    return f"{key}{': ' if key else ''}{message}{'' if message.endswith(('.', '?')) else '.'}"


def _keys(model: type[pydantic.BaseModel], location: Sequence[int | str]) -> set[str]:
    """The keys of the models at a location within ``model``."""
    models = [model]
    for part in location:  # indices of lists and keys of mappings lead to the same models
        fields = [one.model_fields[part] for one in models if isinstance(part, str) and part in one.model_fields]
        models = [inner for field in fields for inner in _models(field.annotation)] or models
    return {key for one in models for key in one.model_fields}


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """The models in a type: itself, or among its arguments."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
