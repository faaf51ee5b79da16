"""Files and folders: written completely or not at all, and formats that several rooms share."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path next to ``path``; if the block succeeds, the file there is flushed and replaces ``path``.

    A reader sees either the old file or the complete new one, even if the process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Make a folder once, completely or not at all: ``write`` gets a temporary folder, which then becomes ``path``.

    Nothing is done if ``path`` is there, which may be on a read-only disk. Another process that wants the same folder
    waits for it. What a killed process left is deleted first.
    """
    from filelock import FileLock

    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_dir():  # made while this process waited
            return
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            write(temporary)
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path, option: str) -> None:
    """Make the folder, and check that files can be written there.

    Raises:
        BenchError: they cannot; the message names the folder and the option that names another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BenchError(f"{folder} cannot be written ({error.strerror}): name another folder with {option}.") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically (:func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically (:func:`replacing`)."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A value as a JSON file."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write named tensors, with facts (plain data) in the header, as a safetensors file, atomically."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata=None if facts is None else {"facts": json.dumps(facts)})


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read named tensors, on the CPU, and the facts that :func:`write_tensors` wrote with them ({} if none).

    Raises:
        BenchError: the file is missing, cut short or damaged; the message ends with the ``remedy``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise BenchError(f"{path} is missing, cut short or damaged ({error}). {remedy}") from None


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as CSV with a header, one line per row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def curve_table(curve: Sequence[Mapping[str, float]]) -> list[str]:
    """About ten rows of a training curve, with the first and the last, as the lines of a Markdown table."""
    columns = list(dict.fromkeys(column for row in curve for column in row))
    rows = [row for i, row in enumerate(curve) if i % max(1, len(curve) // 9) == 0 or row is curve[-1]]
    cells = [[f"{row[column]:.4g}" if column in row else "" for column in columns] for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}", *(f"| {' | '.join(row)} |" for row in cells)]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError: the file cannot be read.
        BenchError: as :func:`parse_yaml`, or it is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BenchError(f"{path} is not valid YAML: {error}.") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text.

    Raises:
        BenchError: it is not YAML, a key is there twice or is not text, or it is nested without end or too deeply; the
            message begins with ``where`` and names the line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node: yaml.MappingNode = super().compose_mapping_node(anchor)
            names = set()
            for key, _ in node.value:
                problem = f"the key {key.value!r} is there twice" if str(key.value) in names else None
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    problem = "a key is not text: put it in quotes"
                if problem:
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                names.add(str(key.value))
            return node

        def construct_document(self, node: yaml.Node) -> Any:
            return self.construct_object(node, deep=True)  # so that a node within itself is an error

    exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")  # 1e-4, which YAML 1.1 takes for text
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, [*"-+0123456789"])
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        reason = "it is nested too deeply"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else str(error.problem)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # a bad date, a wrong tag
        reason = " ".join(str(error).split())
    raise BenchError(f"{where} is not valid YAML: {reason}.")
