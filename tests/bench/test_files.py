"""Files are written completely or not at all, and damaged ones are named with the remedy."""

from __future__ import annotations

import errno
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.errors import BenchError
from bench.files import (
    check_writable,
    make_folder,
    parse_yaml,
    read_tensors,
    read_yaml,
    replacing,
    write_bytes,
    write_json,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([1, 2], dtype=torch.int64)}
FACTS = {"step": 3, "curve": [{"loss": 0.5}], "name": "é"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with old content."""
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def test_the_new_file_replaces_the_old_one(path: Path) -> None:
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"name": "é"})
    assert json.loads((tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8")) == {"name": "é"}


def test_a_failed_block_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write = Path.write_bytes

    def write_half(self: Path, content: bytes) -> None:
        write(self, content[: len(content) // 2])
        fail()

    if call == "write":
        monkeypatch.setattr(Path, "write_bytes", write_half)
    else:
        monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new content")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


NOT_YAML = {
    "a: 1\nb: 2\na: 3": "line 3, column 1: the key 'a' is there twice",
    "a: {b: 1, c: {d: 1, d: 1}}": "line 1, column 21: the key 'd' is there twice",
    "a:\n- {b: 1, 'b': 2}": "line 2, column 10: the key 'b' is there twice",
    "1: 2": "line 1, column 1: a key is not text: put it in quotes",
    "a: {yes: 2}": "line 1, column 5: a key is not text: put it in quotes",
    "a: {null: 2}": "a key is not text",
    "a: {2020-01-01: 2}": "a key is not text",
    "? [a]\n: 2": "a key is not text",
    "? {a: b}\n: 2": "a key is not text",
    "a: 2020-99-99": "month must be in 1..12",
    "a: !!int x": "invalid literal for int",
    "a: !!timestamp x": "",
    "a: !!bool x": "",
    "a: !!python/object:os.system x": "could not determine a constructor",
    "a: \x00": "unacceptable character",
    "a: [": "line 1, column 5",
    "a: 1\n---\nb: 1": "another document",
    "a: &a [*a]": "recursive",
    "a: &a {b: *a}": "recursive",
    "[" * 5000: "it is nested too deeply",
    "{a: " * 2000 + "1" + "}" * 2000: "it is nested too deeply",
    "- " * 3000: "it is nested too deeply",
}
"""Texts, and what the message says about them."""


@pytest.mark.parametrize("text", NOT_YAML, ids=lambda text: text[:20])
def test_what_is_not_yaml_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(BenchError, match=re.escape(f"{file} is not valid YAML: ")) as error:
        read_yaml(file)
    assert NOT_YAML[text] in str(error.value) and "\n" not in str(error.value)


def test_text_that_is_not_utf8_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(BenchError, match="is not valid YAML"):
        read_yaml(tmp_path / "settings.yaml")


def test_yaml_with_anchors_and_merged_keys_is_read_as_by_the_library(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: [.inf, 1.0e+3, 2020-01-01]}\nb: {<<: *a, x: 2}\nc: {<<: [*a, {z: 1}], y: null}\n'1': *a\n"
    (tmp_path / "settings.yaml").write_text(text)
    assert read_yaml(tmp_path / "settings.yaml") == yaml.safe_load(text) == parse_yaml(text, "")


def test_a_number_with_an_exponent_alone_is_a_number_and_in_quotes_a_text() -> None:
    assert parse_yaml("[1e-4, -2E5, 1e+3, 5.e1, '1e-4', 1e4x, 12e]", "") == [1e-4, -2e5, 1e3, 50, "1e-4", "1e4x", "12e"]


@pytest.mark.parametrize("folder", ["file", "file/folder", "file/a/b"])
def test_a_folder_that_cannot_be_made_is_named_with_the_option(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"cannot be written \(.*\): name another folder with --out\.") as error:
        check_writable(tmp_path / folder, "--out")
    assert str(tmp_path / folder) in str(error.value)


def test_a_read_only_folder_is_named_with_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(BenchError, match=r"\(Read-only file system\): name another folder with --runs"):
        check_writable(tmp_path, "--runs")


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    for content in ("first", "second"):
        make_folder(tmp_path / "a" / "b", lambda folder, text=content: (folder / "file").write_text(text))
    assert (tmp_path / "a" / "b" / "file").read_text() == "first"
    (tmp_path / "a" / ".b.lock").unlink()
    (tmp_path / "a" / ".b.lock").mkdir()  # no lock can be taken, as on a read-only disk
    make_folder(tmp_path / "a" / "b", lambda folder: (folder / "other").touch())
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_folder_that_fails_is_not_there_and_what_a_killed_process_left_does_not_count(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "b", interrupted)
    assert [path.name for path in tmp_path.iterdir()] == [".b.lock"]
    (tmp_path / ".b.partial").mkdir()
    (tmp_path / ".b.partial" / "old").touch()
    make_folder(tmp_path / "b", lambda folder: (folder / "file").write_text("whole"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["file"]


def test_processes_that_want_one_folder_make_it_once(tmp_path: Path) -> None:
    made = []

    def write(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)  # the others come meanwhile
        (folder / "file").touch()

    def want() -> None:
        start.wait()
        make_folder(tmp_path / "b", write)

    start = threading.Barrier(4, timeout=60)
    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and (tmp_path / "b" / "file").is_file()


def test_values_that_are_not_json_leave_the_old_file(path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(path, {"tensor": torch.zeros(1)})
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("facts", [FACTS, None])
def test_tensors_and_facts_are_read_as_they_were_written(tmp_path: Path, facts: dict[str, Any] | None) -> None:
    write_tensors(tmp_path / "t", TENSORS, facts)
    tensors, read_facts = read_tensors(tmp_path / "t", "Train again.")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert [value.dtype for value in tensors.values()] == [value.dtype for value in TENSORS.values()]
    assert read_facts == (facts or {})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 100),
        lambda path: path.unlink(),
    ],
    ids=["truncated tensors", "truncated header", "empty", "garbage", "missing"],
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, TENSORS, FACTS)
    damage(path)
    with pytest.raises(BenchError, match=r"missing, cut short or damaged .*\. Train again\.$") as error:
        read_tensors(path, "Train again.")
    assert str(error.value).startswith(str(path))
