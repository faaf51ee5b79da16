"""What is declared in a YAML file, by its name in a folder of the project or by a path: experiments and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.errors import BenchError, nearest
from bench.files import read_yaml


def names(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read(kind: str, name: str, folder: Path, example: str) -> tuple[Path, dict[str, Any]]:
    """The file of a ``name``, and the settings in it.

    Raises:
        BenchError: there is no such file, with the nearest names; or it cannot be read, or is no mapping, of which
            ``example`` is one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        if path.parent != folder:
            raise BenchError(f"There is no file {path.resolve()} with the {kind}.") from None
        raise BenchError(f"No {kind} {name!r}.{nearest(name, names(folder))}") from None
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(values, dict):
        raise BenchError(f"{path.name} must be a mapping of settings; see {example}.")
    return path, values
